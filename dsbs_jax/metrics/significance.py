"""Is one method better than another, or was it luck?

A test set of a few hundred examples moves an accuracy by points, so methods are compared on the same examples with the
same seeds, and the luck of the test set and that of the training seed are told apart:

- the examples: an exact sign-flip permutation test of the per-example differences, each averaged over the seeds. If
  the methods were equal on an example, its difference could as well have had the other sign. All 2^examples
  assignments of signs count, none is sampled. With one seed this is the exact McNemar test.
- the seeds: a paired t-test of the per-seed differences in accuracy. It asks whether retraining would give the same
  winner, and with three seeds it is hard to convince.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import scipy.stats


@dataclasses.dataclass(frozen=True, slots=True)
class PairedTest:
    """Method a against method b on the same examples and seeds; accuracies are fractions of 1.

    Attributes:
      difference: accuracy of a minus accuracy of b.
      standard_error: of `difference`, over examples.
      interval: `confidence` interval of `difference`, over examples (Student's t).
      p_value: two-sided, exact sign-flip test over examples. It speaks of these trained students.
      seed_p_value: two-sided, paired t-test over seeds; NaN where the seeds show no spread to measure against (a single
        seed, or the same difference in each).
    """

    difference: float
    standard_error: float
    interval: tuple[float, float]
    p_value: float
    seed_p_value: float


def paired_test(correct_a: np.ndarray, correct_b: np.ndarray, confidence: float = 0.95) -> PairedTest:
    """Tests whether two methods differ in accuracy.

    Args:
      correct_a: bool [seeds, examples], whether method a answered right.
      correct_b: the same for method b: same seeds, same examples, same order.
      confidence: level of the interval, between 0 and 1.

    Raises:
      ValueError: for shapes that differ, are not two-dimensional or hold fewer than two examples, for values that are
        not bool, or a confidence outside (0, 1).
    """
    a, b = np.asarray(correct_a), np.asarray(correct_b)
    if a.shape != b.shape or a.ndim != 2 or a.shape[0] < 1 or a.shape[1] < 2:
        raise ValueError(
            f"Both methods need results [seeds, examples] of one shape with at least 1 seed and 2 examples; "
            f"these have {a.shape} and {b.shape}."
        )
    if a.dtype != np.bool_ or b.dtype != np.bool_:
        raise ValueError(f"Results must be bool (right or wrong); these are {a.dtype} and {b.dtype}.")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; it must lie between 0 and 1.")
    per_cell = a.astype(np.int64) - b.astype(np.int64)
    difference, standard_error = mean_and_standard_error(per_cell.mean(axis=0))
    margin = float(scipy.stats.t.ppf((1 + confidence) / 2, a.shape[1] - 1)) * standard_error
    return PairedTest(
        difference=difference,
        standard_error=standard_error,
        interval=(difference - margin, difference + margin),
        p_value=_sign_flip_p_value(per_cell.sum(axis=0)),
        seed_p_value=_t_test_p_value(per_cell.sum(axis=1)),
    )


def mean_and_standard_error(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """Mean and standard error of the mean (from the sample deviation, n - 1); the latter is NaN for a single value.

    Raises:
      ValueError: if `values` is empty or not one-dimensional.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not array.size:
        raise ValueError(f"The mean needs a list of at least one number; this has the shape {array.shape}.")
    if array.size == 1:
        return float(array[0]), float("nan")
    return float(array.mean()), float(array.std(ddof=1) / np.sqrt(array.size))


def _sign_flip_p_value(differences: np.ndarray) -> float:
    """P(|sum of s_i d_i| >= |sum of d_i|) over all signs s_i, for integer d_i [examples].

    The n_m differences of size m sum to m (2 B - n_m) with B ~ Binomial(n_m, 1/2), so the whole distribution is a
    convolution of a few binomials on the integers and nothing has to be sampled.
    """
    sizes, counts = np.unique(np.abs(differences[differences != 0]), return_counts=True)
    # probability[k] belongs to the sum 2 k - total, `total` being the largest possible sum.
    probability = np.ones(1)
    for size, count in zip(sizes, counts, strict=True):
        binomial = np.zeros(size * count + 1)
        binomial[::size] = scipy.stats.binom.pmf(np.arange(count + 1), count, 0.5)
        probability = np.convolve(probability, binomial)
    sums = 2 * np.arange(len(probability)) - (len(probability) - 1)
    return float(min(1.0, probability[np.abs(sums) >= abs(int(differences.sum()))].sum()))


def _t_test_p_value(differences: np.ndarray) -> float:
    """Two-sided one-sample t-test of the mean against 0, for differences [seeds]; NaN where they do not spread."""
    if np.ptp(differences) == 0:
        return float("nan")
    return float(scipy.stats.ttest_1samp(differences, 0.0).pvalue)
