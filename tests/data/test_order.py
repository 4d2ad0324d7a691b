"""Which rows, in which order: epochs, nested fractions, policies and streams, all without history."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsbs_jax.data.order import ExampleOrder, choose_rows, permutation
from dsbs_jax.data.store import Split


def split_of(sizes, tasks=("label", "rationale"), tmp_path="nowhere"):
    return Split(tmp_path, tasks, sum(sizes), (8, 8), tuple(sizes), (1.0,) * len(sizes))


def rows_of(split, fraction, seed=0, exists=None, policy="label_only"):
    exists = np.ones((split.num_examples, len(split.tasks)), bool) if exists is None else exists
    return choose_rows(split, exists, fraction, seed, policy)


def test_permutations_never_change():
    # Numbers of the first release: a change would silently reorder every run and every data fraction.
    assert permutation(8, seed=0, epoch=0, purpose=0, stream=0).tolist() == [0, 2, 1, 5, 4, 3, 6, 7]
    assert permutation(8, seed=1, epoch=2, purpose=1, stream=3).tolist() == [4, 3, 6, 7, 1, 2, 5, 0]


@settings(max_examples=40, deadline=None)
@given(size=st.integers(1, 30), seed=st.integers(-5, 2**40), start=st.integers(0, 200), count=st.integers(1, 90))
def test_each_epoch_visits_each_row_once(size, seed, start, count):
    order = ExampleOrder([np.arange(size) * 3], (1.0,), seed)
    epochs = order.slots(0, 10 * size).reshape(10, size)
    assert (np.sort(epochs, axis=1) == np.arange(size) * 3).all()
    # Anywhere in the run, without the slots before.
    again = ExampleOrder([np.arange(size) * 3], (1.0,), seed)
    assert (again.slots(start, count) == order.slots(0, start + count)[start:]).all()


def test_epochs_and_seeds_differ():
    order = ExampleOrder([np.arange(100)], (1.0,), 0)
    assert (order.slots(0, 100) != order.slots(100, 100)).any()
    assert (order.slots(0, 100) != ExampleOrder([np.arange(100)], (1.0,), 1).slots(0, 100)).any()


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=3),
    fractions=st.tuples(st.floats(0.001, 1), st.floats(0.001, 1)),
    seed=st.integers(0, 3),
)
def test_fractions_are_nested(sizes, fractions, seed):
    split = split_of(sizes)
    small, large = (set(np.concatenate(rows_of(split, fraction, seed)[0])) for fraction in sorted(fractions))
    assert small <= large
    assert len(np.concatenate(rows_of(split, 1.0, seed)[0])) == split.num_examples


def test_fractions_have_the_size_they_say():
    split = split_of([100])
    for fraction, count in ((0.07, 7), (0.125, 13), (0.25, 25), (1e-9, 1)):
        assert len(rows_of(split, fraction)[0][0]) == count
    assert (rows_of(split, 0.25, seed=0)[0][0] != rows_of(split, 0.25, seed=1)[0][0]).any()


EXISTS = np.array([[1, 1], [1, 0], [0, 1], [0, 0], [1, 1]], bool)


def test_policies_count_what_they_leave_out():
    split = split_of([5])
    (rows,), report = rows_of(split, 1.0, exists=EXISTS)
    assert rows.tolist() == [0, 1, 4]
    assert report == {
        "rows": 5,
        "rows_in_fraction": 5,
        "rows_used": 3,
        "rows_excluded": {"no label pair": 2},
        "rows_used_without_pair": {"rationale": 1},
    }
    (rows,), report = rows_of(split, 1.0, exists=EXISTS, policy="drop")
    assert rows.tolist() == [0, 4]
    assert report["rows_excluded"] == {"no label pair": 2, "no rationale pair (rationale_policy drop)": 1}


def test_nothing_left_is_an_error():
    with pytest.raises(ValueError, match=r"No rows to train on .* of 5 rows, 5 .*'no label pair': 5"):
        rows_of(split_of([5]), 1.0, exists=np.zeros((5, 2), bool))


def test_streams_keep_their_rates_and_their_own_epochs():
    streams, rates = [np.arange(0, 10), np.arange(10, 40), np.arange(40, 45)], (3.0, 1.0, 0.5)
    order = ExampleOrder(streams, rates, seed=0)
    slots = order.slots(0, 9000)
    shares = [np.isin(slots, rows).mean() for rows in streams]
    # 9,000 slots are about two periods of 4,096; within them shares are exact to a few slots.
    np.testing.assert_allclose(shares, np.array(rates) / 4.5, atol=0.01)
    for rows in streams:
        of_stream = slots[np.isin(slots, rows)]
        whole = len(of_stream) // len(rows)
        assert (np.sort(of_stream[: whole * len(rows)].reshape(whole, -1), axis=1) == rows).all()
    assert (ExampleOrder(streams, rates, seed=0).slots(5000, 777) == slots[5000:5777]).all()
    with pytest.raises(ValueError, match="each must be above 0"):
        ExampleOrder(streams, (1.0, 0.0, 1.0), seed=0)
