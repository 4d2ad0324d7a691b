"""How many at a time and how long to wait, by a clock of the test's own."""

import asyncio
import email.utils

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsbs_jax.teacher.pacing import Concurrency, Patience, Window, retry_after

NOW = 1_700_000_000.0


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("3", 3.0),
        ("0.25", 0.25),
        (" 7 ", 7.0),
        ("-5", 0.0),
        (email.utils.formatdate(NOW + 90, usegmt=True), 90.0),
        (email.utils.formatdate(NOW - 90, usegmt=True), 0.0),
        ("soon", None),
        ("", None),
        (None, None),
        ("nan", None),
        ("inf", None),
        ("Fri, 99 Foo 2023 00:00:00 GMT", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(value, seconds):
    assert retry_after(value, lambda: NOW) == seconds


@given(st.text())
def test_any_retry_after_gives_a_wait_or_none(value):
    seconds = retry_after(value)
    assert seconds is None or seconds >= 0


def test_backoff_doubles_to_its_bound_and_jitter_is_full():
    patience = Patience(first_seconds=0.5, longest_seconds=6.0)
    assert [patience.backoff(n, lambda: 1.0) for n in (1, 2, 3, 4, 5, 6, 10_000)] == [0.5, 1, 2, 4, 6, 6, 6]
    assert patience.backoff(5, lambda: 0.0) == 0.0


def fill(window):
    """Takes every slot that is free; the times at which they were taken."""

    async def take():
        return [await window.acquire() for _ in range(int(window.limit) - window.in_use)]

    return asyncio.run(take())


def test_the_window_doubles_until_congestion_then_grows_by_one_a_round_trip():
    now = [0.0]
    window = Window(Concurrency(2, 1, 64), lambda: now[0])
    for limit in (4, 8, 16):
        fill(window)
        # One answer for each that is in flight, whose slot is taken again at once.
        for _ in range(window.in_use):
            window.grow()
            window.release()
            fill(window)
        assert window.limit == limit
    while window.in_use:
        window.release()
    taken = fill(window)
    before = window.limit
    now[0] = 1.0
    # All that were in flight together meet the same congestion.
    for at in taken:
        window.shrink(at)
    assert window.limit == before / 2
    while window.in_use:
        window.release()
    fill(window)
    limit = window.limit
    for _ in range(int(limit)):
        window.grow()
    assert limit + 0.9 < window.limit < limit + 1.1


def test_the_window_keeps_its_bounds_and_grows_only_when_it_is_used():
    now = [0.0]
    window = Window(Concurrency(4, 2, 5), lambda: now[0])
    window.grow()
    assert window.limit == 4
    fill(window)
    for _ in range(100):
        window.grow()
        fill(window)
    assert window.limit == 5
    for _ in range(10):
        now[0] += 1
        window.shrink(now[0] - 0.5)
    assert window.limit == 2


def test_a_pause_is_the_longest_that_was_asked_for():
    now = [0.0]
    window = Window(Concurrency(), lambda: now[0])
    assert window.pause_left() < 0
    window.shrink(0.0, pause=5.0)
    window.shrink(0.0, pause=2.0)
    now[0] = 1.0
    assert window.pause_left() == 4.0


def test_waiters_get_slots_in_order_and_a_cancelled_one_gives_its_slot_on():
    async def scenario():
        window = Window(Concurrency(1, 1, 1))
        await window.acquire()
        order = []

        async def wait(name):
            await window.acquire()
            order.append(name)

        tasks = [asyncio.create_task(wait(name)) for name in "abc"]
        await asyncio.sleep(0)
        # `a` is given the slot and cancelled before it runs.
        window.release()
        tasks[0].cancel()
        await asyncio.wait(tasks[:2])
        assert order == ["b"]
        window.release()
        await asyncio.wait(tasks)
        assert order == ["b", "c"]
        assert window.in_use == 1

    asyncio.run(scenario())


def test_bounds_are_checked():
    with pytest.raises(ValueError, match="minimum 3, start 2, maximum 1"):
        Concurrency(2, 3, 1)
    with pytest.raises(ValueError, match="at least 1"):
        Patience(attempts=0)
    with pytest.raises(ValueError, match="first_seconds is 9"):
        Patience(first_seconds=9, longest_seconds=1)
