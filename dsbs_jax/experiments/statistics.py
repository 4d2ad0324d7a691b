"""What a table of a report is made of: means over seeds, paired comparisons, corrected p-values, data saved.

The paired test itself stands in `metrics/significance.py`.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from dsbs_jax.metrics.significance import PairedTest, mean_and_standard_error, paired_test

# All resamplings of up to this many seeds are counted (5^5 = 3125); of more, `_DRAWS` are drawn.
_COUNTED_SEEDS = 5
_DRAWS = 10_000
_LEVEL = 0.95


@dataclasses.dataclass(frozen=True, slots=True)
class Mean:
    """Mean over seeds; `error` is the standard error of the mean, NaN for a single seed. Shares in [0, 1]."""

    mean: float
    error: float
    count: int


@dataclasses.dataclass(frozen=True, slots=True)
class Answers:
    """One run's answers to the test split: `ids` [examples] in the split's order, `correct` bool [examples]."""

    ids: tuple[str, ...]
    correct: np.ndarray


@dataclasses.dataclass(frozen=True, slots=True)
class Comparison:
    """One method against another, over the seeds that both have, on the same examples; see `paired_test`."""

    seeds: tuple[int, ...]
    examples: int
    test: PairedTest


@dataclasses.dataclass(frozen=True, slots=True)
class DataSaved:
    """The least share of the training data at which a curve reaches an accuracy.

    Attributes:
      fraction: in (0, 1], interpolated; None where the curve does not reach it.
      interval: 95 % percentile interval of `fraction` over resampled seeds; infinity stands for "not reached"; None
        with a single seed.
      at_most: whether `fraction` is the smallest share that was measured: the true one may be smaller.
      target: the accuracy to reach.
      seeds: those that the curve and the target share, which are resampled.
    """

    fraction: float | None
    interval: tuple[float, float] | None
    at_most: bool
    target: float
    seeds: tuple[int, ...]


def mean_over_seeds(values: Sequence[float]) -> Mean:
    """Mean and standard error (sample deviation, n - 1).

    Raises:
      ValueError: if `values` is empty.
    """
    return Mean(*mean_and_standard_error(values), len(values))


def compare(a: Mapping[int, Answers], b: Mapping[int, Answers]) -> Comparison:
    """Tests method a against method b: per example the difference averaged over the seeds that both have, then an exact
    two-sided sign-flip test over the examples (no sampling); beside it a paired t-test over the seeds.

    Args:
      a: answers by seed.
      b: likewise, on the same examples.

    Raises:
      ValueError: no seed in common, or other examples: says which.
    """
    seeds = tuple(sorted(a.keys() & b.keys()))
    if not seeds:
        raise ValueError(f"no seed in common ({sorted(a)} and {sorted(b)})")
    ids = a[seeds[0]].ids
    if any(side[seed].ids != ids for side in (a, b) for seed in seeds):
        raise ValueError("their test examples differ")
    one, other = (np.stack([side[seed].correct for seed in seeds]) for side in (a, b))
    return Comparison(seeds, len(ids), paired_test(one, other))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: adjusted p-values that may be read at one level for the whole table.

    The k-th smallest of m is multiplied by m - k + 1, never falls below a smaller one's, and stays at most 1; it
    controls the chance of any false alarm without assuming independence. NaN (no test) stays NaN and does not count.
    """
    order = sorted((index for index, p in enumerate(p_values) if not math.isnan(p)), key=lambda index: p_values[index])
    adjusted, highest = [float("nan")] * len(p_values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def data_saved(curve: Mapping[float, Mapping[int, float]], target: Mapping[int, float]) -> DataSaved | None:
    """Where the mean curve, linear between the measured shares, first reaches the other method's mean accuracy.

    The interval resamples seeds with replacement, the same seeds for the curve and the target: all n^n resamplings up
    to 5 seeds, 10,000 seeded draws above. With 3 or 4 seeds it is coarse, and narrower than it should be.

    Args:
      curve: share of the training data -> seed -> accuracy.
      target: seed -> accuracy of the other method on all of its data.

    Returns:
      None where no seed is in all of them.
    """
    shares = sorted(curve)
    seeds = tuple(sorted(set(target).intersection(*(curve[share] for share in shares))))
    if not shares or not seeds:
        return None
    values = np.array([[curve[share][seed] for seed in seeds] for share in shares], np.float64)
    goals = np.array([target[seed] for seed in seeds], np.float64)
    reached = _first_reaching(shares, values.mean(axis=1), goals.mean())
    interval = None
    if len(seeds) > 1:
        draws = [
            _first_reaching(shares, values[:, list(drawn)].mean(axis=1), goals[list(drawn)].mean())
            for drawn in _resamplings(len(seeds))
        ]
        # Between a number and infinity nothing can be interpolated: the quantiles are draws.
        tails = [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2]
        low, high = np.quantile(draws, tails, method="inverted_cdf")
        interval = (float(low), float(high))
    return DataSaved(
        fraction=None if math.isinf(reached) else reached,
        interval=interval,
        at_most=reached == shares[0],
        target=float(goals.mean()),
        seeds=seeds,
    )


def _resamplings(count: int) -> Iterator[tuple[int, ...]]:
    if count <= _COUNTED_SEEDS:
        return itertools.product(range(count), repeat=count)
    return (tuple(drawn) for drawn in np.random.default_rng(0).integers(count, size=(_DRAWS, count)))


def _first_reaching(shares: Sequence[float], means: np.ndarray, goal: float) -> float:
    # Means of the same shares in another order may differ in the last bit; half an answer in a million is not that.
    goal = goal - 1e-9
    if means[0] >= goal:
        return shares[0]
    for (left, low), (right, high) in itertools.pairwise(zip(shares, means, strict=True)):
        if high >= goal:
            return float(left + (right - left) * min(1.0, (goal - low) / (high - low)))
    return math.inf
