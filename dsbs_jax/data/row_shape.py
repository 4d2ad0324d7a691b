"""Row lengths and a number of rows that every step of a run fits into: batches have one shape, which compiles once."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from dsbs_jax.data import packing
from dsbs_jax.data.order import ExampleOrder

# Steps packed at once: for a whole run, and to choose row lengths.
_RUN_STEPS, _FULLEST_STEPS = 512, 32
_GOOD_ENOUGH = 0.02


@dataclasses.dataclass(frozen=True)
class StepLengths:
    """How long the sequences of every step are, in one order of the examples.

    Attributes:
      encoder: int [rows of the split, tasks]; 0 for no sequence.
      decoder: the same for the targets.
      order: of the examples.
      batch_size: examples a step.
      steps: of the run.
    """

    encoder: np.ndarray
    decoder: np.ndarray
    order: ExampleOrder
    batch_size: int
    steps: int

    def between(self, first: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of steps `first` to `stop`: rows [steps, batch_size], and both lengths [steps, batch_size * tasks]."""
        indices = self.order.slots(first * self.batch_size, (stop - first) * self.batch_size)
        shape = stop - first, self.batch_size * self.encoder.shape[1]
        return (
            indices.reshape(stop - first, self.batch_size),
            self.encoder[indices].reshape(shape),
            self.decoder[indices].reshape(shape),
        )

    def totals(self) -> np.ndarray:
        """Tokens of every step: int [2 sides, steps]."""
        return np.concatenate([[encoder.sum(1), decoder.sum(1)] for _, encoder, decoder in self._chunks()], axis=1)

    def rows_needed(self, row_lengths: tuple[int, int]) -> np.ndarray:
        """By every step: int32 [steps]."""
        return np.concatenate(
            [packing.rows_needed(encoder, decoder, row_lengths) for _, encoder, decoder in self._chunks()]
        )

    def _chunks(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        for first in range(0, self.steps, _RUN_STEPS):
            yield self.between(first, min(first + _RUN_STEPS, self.steps))


def cheapest_row_lengths(
    lengths: StepLengths, longest: tuple[int, int], rows_multiple: int, cost: packing.RowCost
) -> tuple[int, int]:
    """The (encoder, decoder) length of rows that make a step cheapest when every step of the run must fit.

    A few full steps give each candidate a lower bound on its rows. The best one is tried on the whole run; the
    steps that need most there sharpen all bounds, until what was tried is within 2 % of what any could reach.

    Args:
      lengths: of the run's steps.
      longest: (encoder, decoder) lengths that must fit into a row.
      rows_multiple: rows are a multiple of this.
      cost: what a row costs.
    """
    totals = lengths.totals()
    candidates = packing.candidate_row_lengths(longest, totals[1].sum() / totals[0].sum())
    row_price = cost(*candidates.T)
    least = np.zeros(len(candidates), np.int64)
    tried: dict[float, tuple[int, int]] = {}
    fullness = (totals / totals.mean(axis=1, keepdims=True)).sum(axis=0)
    steps = np.argsort(-fullness, kind="stable")[:_FULLEST_STEPS]
    while True:
        of_steps = [lengths.between(step, step + 1)[1:] for step in steps]
        encoder, decoder = (np.tile(np.concatenate(side), (len(candidates), 1)) for side in zip(*of_steps, strict=True))
        needed = packing.rows_needed(encoder, decoder, tuple(np.repeat(candidates, len(steps), axis=0).T))
        least = np.maximum(least, needed.reshape(len(candidates), len(steps)).max(axis=1))
        bounds = packing.round_up(least, rows_multiple) * row_price
        best = int(np.argmin(bounds))
        if tried and min(tried) <= (1 + _GOOD_ENOUGH) * bounds[best]:
            return tried[min(tried)]
        row_lengths = int(candidates[best, 0]), int(candidates[best, 1])
        needed = lengths.rows_needed(row_lengths)
        least[best] = needed.max()
        tried[packing.round_up(int(least[best]), rows_multiple) * float(row_price[best])] = row_lengths
        steps = np.argsort(-needed, kind="stable")[:4]
