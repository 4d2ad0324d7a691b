"""Which examples a run trains on, and in which order: index arithmetic from seeds alone.

Training slots are numbered through the whole run. With one dataset of N rows, slot s is row s % N of epoch s // N, and
every epoch is one seeded global shuffle. A foreign mixture deals its slots to streams by a seeded periodic pattern, and
each stream counts epochs of its own. So any slot is found without its history.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from dsbs_jax.data.store import Split
from dsbs_jax.schema import RationalePolicy

# What a random permutation is for; part of its Philox counter, so that purposes never share numbers.
_SHUFFLE, _FRACTION, _STREAMS = range(3)
# A period of the pattern of streams: rates are honoured to 1 / 4096.
_PATTERN_SLOTS = 4096
_NAMED_ROWS = 5


def check_fraction(fraction: float) -> None:
    """Raises `ValueError` for what is no share of the rows."""
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction is {fraction}; it must lie in (0, 1]: 0.125 is 12.5 %.")


def choose_rows(
    split: Split, exists: np.ndarray, fraction: float, fraction_seed: int, policy: RationalePolicy
) -> tuple[list[np.ndarray], dict[str, Any]]:
    """The rows to train on, and the account of all rows.

    Args:
      split: the split.
      exists: bool [rows, tasks]; whether a row has a task's pair.
      fraction: share of each stream's rows, in (0, 1]; smaller ones lie inside larger ones.
      fraction_seed: which rows a fraction holds.
      policy: for rows that lack the pair of a task after the first; see `BatchPlan`.

    Returns:
      int64 rows of each stream; and counts by name.

    Raises:
      ValueError: a stream has no rows left, or a row lacks a pair under `error`.
    """
    first, *others = split.tasks
    starts = np.cumsum([0, *split.stream_sizes])
    chosen = np.zeros(len(exists), bool)
    for stream, size in enumerate(split.stream_sizes):
        # The rounding guards against 0.07 * 100 = 7.000000000000001.
        count = max(math.ceil(round(fraction * size, 6)), 1)
        chosen[starts[stream] + permutation(size, fraction_seed, 0, _FRACTION, stream)[:count]] = True
    complete = exists.all(axis=1)
    if policy == "error" and (chosen & ~complete).any():
        _refuse(split, np.flatnonzero(chosen & ~complete), exists)
    excluded = {f"no {first} pair": chosen & ~exists[:, 0]}
    if policy == "drop" and others:
        excluded[f"no {' or '.join(others)} pair (rationale_policy drop)"] = chosen & exists[:, 0] & ~complete
    used = chosen & ~np.any(list(excluded.values()), axis=0)
    report = {
        "rows": len(exists),
        "rows_in_fraction": int(chosen.sum()),
        "rows_used": int(used.sum()),
        "rows_excluded": {reason: int(rows.sum()) for reason, rows in excluded.items() if rows.any()},
        "rows_used_without_pair": {task: int((used & ~exists[:, i]).sum()) for i, task in enumerate(others, 1)},
    }
    streams = [start + np.flatnonzero(used[start:stop]) for start, stop in itertools.pairwise(starts)]
    if not all(map(len, streams)):
        raise ValueError(
            f"No rows to train on are left in {split.path}: of {report['rows']} rows, {report['rows_in_fraction']} are "
            f"in the fraction {fraction}, and of those are excluded: {report['rows_excluded'] or 'none'}."
        )
    return streams, report


def _refuse(split: Split, rows: np.ndarray, exists: np.ndarray) -> None:
    tasks = np.array(split.tasks)
    examples = split.examples(rows[:_NAMED_ROWS])
    named = [
        f"{example.get('id', row)} (no {', no '.join(tasks[~exists[row]])})"
        for row, example in zip(rows, examples, strict=False)
    ]
    raise ValueError(
        f"{len(rows)} rows of {split.path} lack a pair: {'; '.join(named)}{', ...' if len(rows) > len(named) else ''}. "
        "Choose rationale_policy 'label_only' or 'drop', or complete the teacher's answers."
    )


class ExampleOrder:
    """The row in every training slot of a run.

    Args:
      streams: int64 rows of each stream; one stream where there is one dataset.
      rates: each stream's share, up to a common factor.
      seed: of the shuffles and of the pattern of streams.
    """

    def __init__(self, streams: Sequence[np.ndarray], rates: Sequence[float], seed: int):
        self._streams = streams
        self._seed = seed
        self._pattern, self._rank, self._per_period = _stream_pattern(rates, seed)
        self._epoch = functools.lru_cache(maxsize=2 * len(streams) + 2)(self._shuffled)

    def slots(self, start: int, count: int) -> np.ndarray:
        """The rows in slots `start` to `start + count`: int64 [count]."""
        period, within = np.divmod(np.arange(start, start + count), len(self._pattern))
        out = np.empty(count, np.int64)
        for stream, rows in enumerate(self._streams):
            here = np.flatnonzero(self._pattern[within] == stream)
            if len(here):
                # A stream's slots take its rows one after the other, epoch after epoch.
                number = int(period[here[0]] * self._per_period[stream] + self._rank[within[here[0]]])
                epochs = range(number // len(rows), (number + len(here) - 1) // len(rows) + 1)
                ordered = np.concatenate([self._epoch(stream, epoch) for epoch in epochs])
                offset = number - epochs[0] * len(rows)
                out[here] = ordered[offset : offset + len(here)]
        return out

    def _shuffled(self, stream: int, epoch: int) -> np.ndarray:
        rows = self._streams[stream]
        return rows[permutation(len(rows), self._seed, epoch, _SHUFFLE, stream)]


def permutation(size: int, seed: int, epoch: int, purpose: int, stream: int) -> np.ndarray:
    """A random order of `range(size)`: int64 [size].

    It ranks raw Philox words, which no version of NumPy changes; `Generator.permutation` promises no such thing.
    """
    generator = np.random.Philox(counter=[0, 0, stream, purpose], key=np.array([seed % 2**64, epoch], np.uint64))
    return np.argsort(generator.random_raw(size), kind="stable")


def _stream_pattern(rates: Sequence[float], seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which stream each slot of a period draws from, its rank among that stream's slots, and each stream's number."""
    if len(rates) == 1:
        return np.zeros(1, np.int64), np.zeros(1, np.int64), np.ones(1, np.int64)
    if not all(rate > 0 for rate in rates):
        raise ValueError(f"The mixture's rates are {tuple(rates)}; each must be above 0.")
    shares = np.array(rates) / sum(rates) * _PATTERN_SLOTS
    counts = np.maximum(np.floor(shares), 1).astype(np.int64)
    # The largest remainders share what rounding left; many tiny rates make the period a little longer.
    counts[np.argsort(np.floor(shares) - shares, kind="stable")[: max(_PATTERN_SLOTS - counts.sum(), 0)]] += 1
    slots = int(counts.sum())
    pattern = np.repeat(np.arange(len(rates)), counts)[permutation(slots, seed, 0, _STREAMS, 0)]
    rank = np.empty(slots, np.int64)
    for stream, count in enumerate(counts):
        rank[pattern == stream] = np.arange(count)
    return pattern, rank, counts
