"""Statistics of a report, against definitions counted out by hand and properties that must hold for any numbers."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsbs_jax.experiments.statistics import Answers, compare, data_saved, holm, mean_over_seeds
from dsbs_jax.metrics.significance import paired_test

p_lists = st.lists(st.floats(0, 1), min_size=1, max_size=6)


def answers(*correct, ids=None):
    return Answers(tuple(ids or (f"test/{i}" for i in range(len(correct)))), np.array(correct, bool))


def test_known_corrections():
    # 3 * 0.01, 2 * 0.02, 1 * 0.04 -> the last is lifted to the one before it.
    assert holm([0.04, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    corrected = holm([0.01, float("nan")])
    assert corrected[0] == 0.01
    assert math.isnan(corrected[1])


@given(p_lists)
def test_holm_is_the_closed_test_of_bonferroni(p_values):
    """By definition: the largest Bonferroni p-value of all sets of hypotheses that hold this one."""
    numbers = range(len(p_values))
    sets = [chosen for size in numbers for chosen in itertools.combinations(numbers, size + 1)]
    bonferroni = {chosen: min(1.0, len(chosen) * min(p_values[i] for i in chosen)) for chosen in sets}
    expected = [max(p for chosen, p in bonferroni.items() if i in chosen) for i in numbers]
    # The same products, but for the order of a maximum.
    assert holm(p_values) == pytest.approx(expected, rel=1e-12)


def test_comparison_pairs_the_seeds_that_both_have():
    a = {0: answers(1, 1, 0), 1: answers(1, 1, 1), 7: answers(0, 0, 0)}
    b = {1: answers(0, 0, 0), 0: answers(0, 1, 0)}
    compared = compare(a, b)
    assert (compared.seeds, compared.examples) == ((0, 1), 3)
    expected = paired_test(np.array([[1, 1, 0], [1, 1, 1]], bool), np.array([[0, 1, 0], [0, 0, 0]], bool))
    assert compared.test == expected


@pytest.mark.parametrize(
    ("b", "sentence"),
    [({3: answers(1, 0)}, r"no seed in common \(\[0\] and \[3\]\)"), ({0: answers(1, 0, ids="xy")}, "examples differ")],
)
def test_what_cannot_be_paired_is_said(b, sentence):
    with pytest.raises(ValueError, match=sentence):
        compare({0: answers(1, 0)}, b)


def test_mean_over_seeds():
    # Sample deviation 0.1 over three seeds.
    mean = mean_over_seeds([0.8, 0.9, 1.0])
    assert (mean.mean, mean.error, mean.count) == (pytest.approx(0.9), pytest.approx(0.1 / math.sqrt(3)), 3)


def test_the_crossing_is_interpolated_and_resampled():
    curve = {0.25: {0: 0.2, 1: 0.3}, 0.5: {0: 0.5, 1: 0.5}, 1.0: {0: 0.9, 1: 0.7}}
    target = {0: 0.6, 1: 0.6, 2: 0.0}
    saved = data_saved(curve, target)
    # From 0.5 at half of the data to 0.8 at all of it: a third of the way.
    assert saved.fraction == pytest.approx(0.5 + 0.5 / 3, abs=1e-6)
    assert saved.seeds == (0, 1)
    assert not saved.at_most
    # Of the four resamplings one is seed 0 alone (a quarter of the way), one seed 1 alone (half).
    assert saved.interval == pytest.approx((0.5 + 0.5 / 4, 0.5 + 0.5 / 2), abs=1e-6)


def test_never_reached_already_reached_and_a_single_seed():
    never = data_saved({0.5: {0: 0.1}, 1.0: {0: 0.2}}, {0: 0.9})
    assert (never.fraction, never.interval, never.at_most) == (None, None, False)
    at_once = data_saved({0.5: {0: 0.95}, 1.0: {0: 0.99}}, {0: 0.9})
    assert (at_once.fraction, at_once.at_most) == (0.5, True)
    sometimes = data_saved({0.5: {0: 0.1, 1: 0.1}, 1.0: {0: 1.0, 1: 0.2}}, {0: 0.5, 1: 0.5})
    assert math.isinf(sometimes.interval[1])
    assert data_saved({0.5: {0: 0.1}}, {1: 0.9}) is None


accuracies = st.integers(0, 100).map(lambda percent: percent / 100)


@st.composite
def curves(draw, seeds=3):
    shares = draw(st.lists(st.sampled_from((0.125, 0.25, 0.5, 0.75, 1.0)), min_size=1, max_size=4, unique=True))
    return {share: {seed: draw(accuracies) for seed in range(seeds)} for share in shares}


@given(curves(), accuracies, st.integers(0, 20))
def test_a_better_curve_never_needs_more_data(curve, goal, gain):
    target = dict.fromkeys(range(3), goal)
    better = {share: {seed: value + gain / 100 for seed, value in cell.items()} for share, cell in curve.items()}
    before, after = data_saved(curve, target), data_saved(better, target)
    # Interpolation rounds in the last bits.
    assert (after.fraction or math.inf) <= (before.fraction or math.inf) + 1e-9
    assert all(new <= old + 1e-9 for new, old in zip(after.interval, before.interval, strict=True))


@given(curves())
def test_a_curve_reaches_its_own_end_with_its_own_data(curve):
    saved = data_saved(curve, curve[max(curve)])
    assert min(curve) <= saved.fraction <= max(curve)
    low, high = saved.interval
    assert min(curve) <= low <= high <= max(curve)
