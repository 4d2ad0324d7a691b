import itertools
import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from dsbs_jax.metrics.significance import mean_and_standard_error, paired_test


def _cells(both: int, only_a: int, only_b: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    a = [True] * both + [True] * only_a + [False] * only_b + [False] * neither
    b = [True] * both + [False] * only_a + [True] * only_b + [False] * neither
    return np.array([a]), np.array([b])


@pytest.mark.parametrize(("only_a", "only_b"), [(10, 2), (2, 10), (5, 5), (1, 0), (0, 0), (400, 330)])
def test_one_seed_is_mcnemars_exact_test(only_a: int, only_b: int):
    result = paired_test(*_cells(50, only_a, only_b, 40))
    expected = scipy.stats.binomtest(only_a, only_a + only_b, 0.5).pvalue if only_a + only_b else 1.0
    # Both sum the same binomial terms, in another order.
    assert result.p_value == pytest.approx(expected, rel=1e-9)
    assert result.difference == pytest.approx((only_a - only_b) / (90 + only_a + only_b))
    assert math.isnan(result.seed_p_value)


def test_known_p_value():
    # 10 against 2 discordant pairs: 2 * (C(12,0) + C(12,1) + C(12,2)) / 2^12 = 158 / 4096.
    assert paired_test(*_cells(0, 10, 2, 0)).p_value == pytest.approx(158 / 4096, rel=1e-12)


@given(st.integers(1, 3), st.integers(2, 8), st.randoms(use_true_random=False))
def test_all_sign_flips_counted_one_by_one(seeds: int, examples: int, random):
    a, b = (np.array([[random.random() < 0.5 for _ in range(examples)] for _ in range(seeds)]) for _ in range(2))
    differences = (a.astype(int) - b.astype(int)).sum(axis=0)
    sums = [abs(np.dot(signs, differences)) for signs in itertools.product((-1, 1), repeat=examples)]
    expected = np.mean([total >= abs(differences.sum()) for total in sums])
    assert paired_test(a, b).p_value == pytest.approx(expected, rel=1e-12)


def test_agrees_with_scipys_sampled_permutation_test():
    random = np.random.RandomState(0)
    b = random.rand(4, 300) < 0.6
    a = np.where(random.rand(4, 300) < 0.12, True, b)
    a &= random.rand(4, 300) > 0.04
    result = paired_test(a, b)
    sampled = scipy.stats.permutation_test(
        ((a.mean(axis=0) - b.mean(axis=0)),),
        lambda x, axis: x.mean(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=20_000,
        batch=1000,
    )
    # Four standard errors of 20,000 samples.
    tolerance = 4 * math.sqrt(max(result.p_value, 1e-4) / 20_000) + 1e-4
    assert result.p_value == pytest.approx(float(sampled.pvalue), abs=tolerance)


def test_standard_error_interval_and_seeds():
    random = np.random.RandomState(1)
    a, b = random.rand(3, 200) < 0.7, random.rand(3, 200) < 0.6
    result = paired_test(a, b)
    per_example = a.mean(axis=0) - b.mean(axis=0)
    assert result.standard_error == pytest.approx(scipy.stats.sem(per_example))
    interval = scipy.stats.ttest_1samp(per_example, 0).confidence_interval(0.95)
    assert result.interval == pytest.approx((interval.low, interval.high))
    assert result.seed_p_value == pytest.approx(scipy.stats.ttest_rel(a.mean(axis=1), b.mean(axis=1)).pvalue)


def test_identical_methods_and_opposite_methods():
    a = np.ones((2, 30), dtype=bool)
    same = paired_test(a, a)
    assert (same.difference, same.p_value, same.interval) == (0.0, 1.0, (0.0, 0.0))
    opposite = paired_test(a, ~a)
    assert opposite.difference == 1.0
    assert opposite.p_value == pytest.approx(2 * 0.5**30, rel=1e-9)
    assert math.isnan(opposite.seed_p_value)


def test_a_test_set_of_e_snlis_size_is_exact_too():
    random = np.random.RandomState(2)
    b = random.rand(4, 9824) < 0.88
    a = np.where(random.rand(4, 9824) < 0.03, True, b)
    assert 0 <= paired_test(a, b).p_value < 1e-6


def test_false_alarms_are_as_rare_as_promised():
    random = np.random.RandomState(3)
    p_values = [paired_test(random.rand(3, 100) < 0.7, random.rand(3, 100) < 0.7).p_value for _ in range(400)]
    # Expected 20 of 400 at 5 %; 36 is more than three standard errors (4.4) above.
    assert np.sum(np.array(p_values) < 0.05) <= 36


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (np.ones((2, 5), bool), np.ones((2, 6), bool), r"\(2, 5\) and \(2, 6\)"),
        (np.ones(5, bool), np.ones(5, bool), r"\[seeds, examples\]"),
        (np.ones((1, 1), bool), np.ones((1, 1), bool), "2 examples"),
        (np.ones((1, 5)), np.ones((1, 5)), "must be bool"),
    ],
)
def test_bad_results(a: np.ndarray, b: np.ndarray, message: str):
    with pytest.raises(ValueError, match=message):
        paired_test(a, b)


def test_bad_confidence():
    with pytest.raises(ValueError, match="between 0 and 1"):
        paired_test(np.ones((1, 5), bool), np.ones((1, 5), bool), confidence=95)


def test_mean_and_standard_error():
    mean, error = mean_and_standard_error([0.8, 0.9, 1.0])
    assert mean == pytest.approx(0.9)
    assert error == pytest.approx(0.1 / math.sqrt(3))
    mean, error = mean_and_standard_error([0.5])
    assert mean == 0.5
    assert math.isnan(error)
    with pytest.raises(ValueError, match="at least one number"):
        mean_and_standard_error([])
