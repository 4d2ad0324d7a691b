"""Batches as a pure function of (store, seed, step), and the packed arrays they become.

Step k trains on the slots k * batch_size and following of the run's `ExampleOrder`. So a step needs no history, and its
examples do not depend on the number of hosts: hosts differ only in which rows of the packed batch they build.
"""

from __future__ import annotations

import dataclasses
import functools
import queue
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

from dsbs_jax.data import packing
from dsbs_jax.data.order import ExampleOrder, check_fraction, choose_rows
from dsbs_jax.data.row_shape import StepLengths, cheapest_row_lengths
from dsbs_jax.data.store import Split
from dsbs_jax.schema import RationalePolicy

# Steps packed at once, around a batch that is asked for.
_BLOCK_STEPS = 32
# The orders of these seeds fit into every run's shape, whatever its own: so runs have one, and compile once.
_SHARED_SEEDS = range(4)


@dataclasses.dataclass(frozen=True)
class StepStats:
    """What one global batch holds.

    Attributes:
      indices: int64 [batch_size]; rows of the split.
      sequences: packed sequences, all tasks together.
      encoder_tokens: real tokens on the encoder's side.
      decoder_tokens: real target tokens.
      encoder_utilisation: real tokens per position, in [0, 1].
      decoder_utilisation: the same for the decoder.
    """

    indices: np.ndarray
    sequences: int
    encoder_tokens: int
    decoder_tokens: int
    encoder_utilisation: float
    decoder_utilisation: float


class BatchPlan:
    """The training batches of one run.

    Attributes:
      split: the rows.
      tasks: task names; their order is that of `decoder_task_ids`.
      shape: (rows, encoder length, decoder length) of every global batch; every step of the run fits.
      report: how many rows are used and why others are not, and how full the batches are.
    """

    def __init__(
        self,
        split: Split,
        *,
        batch_size: int,
        steps: int,
        seed: int = 0,
        fraction: float = 1.0,
        fraction_seed: int = 0,
        rationale_policy: RationalePolicy = "label_only",
        row_multiple: int = 1,
        microbatches: int = 1,
        packed: bool = True,
        row_lengths: tuple[int, int] | None = None,
        cost: packing.RowCost = packing.DEFAULT_COST,
    ):
        """Chooses the rows and the shape; reads lengths only.

        Args:
          split: the split to train on.
          batch_size: examples a step, over all hosts; each brings one sequence per task.
          steps: steps of the run; the shape fits them all.
          seed: of the order of the examples.
          fraction: share of the split's rows, in (0, 1]; smaller ones lie inside larger ones.
          fraction_seed: which rows a fraction holds.
          rationale_policy: for rows that lack the pair of a task after the first: train on the pairs there are
            (`label_only`), leave the row out (`drop`), or refuse (`error`). A row that lacks the first task's pair is
            left out, and counted.
          row_multiple: rows of a microbatch are a multiple of this: what the mesh divides them by.
          microbatches: parts a step's rows are computed in.
          packed: whether sequences share rows; otherwise each has its own.
          row_lengths: (encoder, decoder) length of a row; None chooses the cheapest.
          cost: what rows cost, for that choice.

        Raises:
          ValueError: no rows are left, a row misses a pair under `error`, or `row_lengths` is too short.
        """
        check_fraction(fraction)
        for name, value in (
            ("batch_size", batch_size),
            ("steps", steps),
            ("row_multiple", row_multiple),
            ("microbatches", microbatches),
        ):
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1.")
        self.split = split
        self.tasks = split.tasks
        self.batch_size = batch_size
        self.steps = steps
        self._packed = packed
        lengths = {
            feature: np.stack([split.lengths(task, feature) for task in self.tasks], axis=1)
            for feature in ("inputs", "targets")
        }
        exists = (lengths["inputs"] > 0) & (lengths["targets"] > 0)
        self._encoder_lengths = np.where(exists, lengths["inputs"], 0)
        self._decoder_lengths = np.where(exists, lengths["targets"], 0)

        streams, self.report = choose_rows(split, exists, fraction, fraction_seed, rationale_policy)
        # Outside of the fraction a row may miss what `error` refuses.
        policy: RationalePolicy = "drop" if rationale_policy == "error" else rationale_policy
        all_streams, _ = choose_rows(split, exists, 1.0, fraction_seed, policy)

        def in_order(streams: list[np.ndarray], seed: int) -> StepLengths:
            order = ExampleOrder(streams, split.stream_rates, seed)
            return StepLengths(self._encoder_lengths, self._decoder_lengths, order, batch_size, steps)

        self._steps = in_order(streams, seed)
        shared = [in_order(all_streams, number) for number in _SHARED_SEEDS]
        self._layouts = functools.lru_cache(maxsize=3)(self._pack_block)
        self.shape = self._choose_shape(
            shared, np.concatenate(all_streams), row_multiple * microbatches, row_lengths, cost
        )
        self._tell(len(np.concatenate(streams)))

    def indices(self, step: int) -> np.ndarray:
        """The rows of the split that step `step` (from 0) trains on, in their order: int64 [batch_size]."""
        return self._steps.order.slots(step * self.batch_size, self.batch_size)

    def batch(self, step: int, rows: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """The packed arrays of step `step`.

        Args:
          step: from 0.
          rows: int [...], ascending: the rows of the global batch that this host builds; None for all.

        Returns:
          int32 `[rows, length]`: `encoder_input_tokens`, `encoder_segment_ids`, `encoder_positions`,
          `decoder_input_tokens` (targets shifted right within each segment), `decoder_target_tokens`,
          `decoder_segment_ids`, `decoder_positions`, `decoder_task_ids`; float32 `decoder_loss_weights`: 1 on target
          tokens, EOS included, 0 on padding. Segments count from 1, padding is 0.

        Raises:
          ValueError: a step beyond the plan's, and too long for its rows.
        """
        indices, layout, at = self._layout(step)
        total_rows, encoder_length, decoder_length = self.shape
        rows = np.arange(total_rows) if rows is None else rows
        local = np.full(total_rows, -1)
        local[rows] = np.arange(len(rows))
        encoder = _Side(len(rows), encoder_length)
        decoder = _Side(len(rows), decoder_length)
        task_ids = np.zeros((len(rows), decoder_length), np.int32)
        for task_id, task in enumerate(self.tasks):
            of_task = slice(task_id, None, len(self.tasks))
            row = local[layout.row[at, of_task]]
            here = np.flatnonzero(row >= 0)
            place = row[here], layout.segment[at, of_task][here]
            encoder.put(
                *self.split.ragged(task, "inputs"), indices[here], *place, layout.encoder_offset[at, of_task][here]
            )
            put = decoder.put(
                *self.split.ragged(task, "targets"), indices[here], *place, layout.decoder_offset[at, of_task][here]
            )
            task_ids.reshape(-1)[put] = task_id
        return {
            "encoder_input_tokens": encoder.tokens,
            "encoder_segment_ids": encoder.segments,
            "encoder_positions": encoder.positions,
            "decoder_input_tokens": decoder.shifted(),
            "decoder_target_tokens": decoder.tokens,
            "decoder_segment_ids": decoder.segments,
            "decoder_positions": decoder.positions,
            "decoder_task_ids": task_ids,
            "decoder_loss_weights": (decoder.segments > 0).astype(np.float32),
        }

    def stats(self, step: int) -> StepStats:
        """What the global batch of step `step` holds."""
        indices = self.indices(step)
        rows, encoder_length, decoder_length = self.shape
        encoder_tokens = int(self._encoder_lengths[indices].sum())
        decoder_tokens = int(self._decoder_lengths[indices].sum())
        return StepStats(
            indices=indices,
            sequences=int((self._encoder_lengths[indices] > 0).sum()),
            encoder_tokens=encoder_tokens,
            decoder_tokens=decoder_tokens,
            encoder_utilisation=encoder_tokens / (rows * encoder_length),
            decoder_utilisation=decoder_tokens / (rows * decoder_length),
        )

    def _choose_shape(
        self,
        shared: list[StepLengths],
        rows_of_all: np.ndarray,
        rows_multiple: int,
        row_lengths: tuple[int, int] | None,
        cost: packing.RowCost,
    ) -> tuple[int, int, int]:
        """The shape of a run on all rows, in the orders of some seeds; with more rows where this run needs them.

        So seeds and fractions share it, at the price of a few rows: what the fullest step needs differs little.
        """
        longest = int(self._encoder_lengths[rows_of_all].max()), int(self._decoder_lengths[rows_of_all].max())
        if row_lengths is not None and (row_lengths[0] < longest[0] or row_lengths[1] < longest[1]):
            raise ValueError(
                f"pack_lengths is {tuple(row_lengths)} (inputs, targets), but {self.split.path} has sequences of "
                f"{longest} tokens: give at least that, shorten feature_lengths, or leave the choice open."
            )
        if not self._packed:
            rows = self.batch_size * len(self.tasks)
            row_lengths = row_lengths or (packing.round_up(longest[0], 16), packing.round_up(longest[1], 8))
        else:
            row_lengths = row_lengths or cheapest_row_lengths(shared[0], longest, rows_multiple, cost)
            rows = max(int(steps.rows_needed(row_lengths).max()) for steps in (self._steps, *shared))
        return packing.round_up(rows, rows_multiple), *row_lengths

    def _tell(self, rows_used: int) -> None:
        rows, *row_lengths = self.shape
        utilisation = self._steps.totals().sum(1) / (self.steps * rows * np.array(row_lengths))
        self.report |= {
            "batch_size": self.batch_size,
            "steps": self.steps,
            "epochs": round(self.steps * self.batch_size / rows_used, 3),
            "rows_per_step": rows,
            "row_lengths": row_lengths,
            "encoder_utilisation": round(float(utilisation[0]), 4),
            "decoder_utilisation": round(float(utilisation[1]), 4),
        }

    def _pack_block(self, block: int) -> tuple[np.ndarray, packing.Packing]:
        first = block * _BLOCK_STEPS
        indices, encoder, decoder = self._steps.between(first, first + _BLOCK_STEPS)
        if self._packed:
            return indices, packing.pack(encoder, decoder, self.shape[1:], self.shape[0])
        return indices, packing.one_per_row(encoder, decoder)

    def _layout(self, step: int) -> tuple[np.ndarray, packing.Packing, int]:
        block, at = divmod(step, _BLOCK_STEPS)
        indices, layout = self._layouts(block)
        if not layout.fits[at]:
            raise ValueError(
                f"Step {step} needs more than {self.shape[0]} rows: this plan was made for {self.steps} steps."
            )
        return indices[at], layout, at


class _Side:
    """One side, encoder or decoder, of a packed batch under construction."""

    def __init__(self, rows: int, length: int):
        self.tokens, self.segments, self.positions = (np.zeros((rows, length), np.int32) for _ in range(3))

    def put(
        self,
        tokens: np.ndarray,
        offsets: np.ndarray,
        indices: np.ndarray,
        rows: np.ndarray,
        segments: np.ndarray,
        columns: np.ndarray,
    ) -> np.ndarray:
        """Copies sequences `indices` of a ragged array to (rows, columns); returns the flat positions written."""
        lengths = offsets[indices + 1] - offsets[indices]
        within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        target = np.repeat(rows.astype(np.int64) * self.tokens.shape[1] + columns, lengths) + within
        self.tokens.reshape(-1)[target] = tokens[np.repeat(offsets[indices], lengths) + within]
        self.segments.reshape(-1)[target] = np.repeat(segments, lengths)
        self.positions.reshape(-1)[target] = within
        return target

    def shifted(self) -> np.ndarray:
        """The tokens one position later, 0 at the start of each segment and on padding."""
        shifted = np.zeros_like(self.tokens)
        shifted[:, 1:] = self.tokens[:, :-1]
        shifted[self.positions == 0] = 0
        return shifted


def prefetch(
    plan: BatchPlan, start: int, stop: int, rows: np.ndarray | None = None, depth: int = 2
) -> Iterator[tuple[int, dict[str, np.ndarray], StepStats]]:
    """(step, batch, stats) of steps `start` to `stop`, made in a background thread, at most `depth` ahead.

    An exception in the thread is raised here. Closing the iterator, or dropping it, ends the thread.
    """
    ready: queue.Queue[Any] = queue.Queue(maxsize=depth)
    closed = threading.Event()

    def offer(item: Any) -> bool:
        while not closed.is_set():
            try:
                ready.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def work() -> None:
        try:
            for step in range(start, stop):
                if not offer((step, plan.batch(step, rows), plan.stats(step))):
                    return
            offer(None)
        except BaseException as error:  # raised again by the consumer
            offer(error)

    thread = threading.Thread(target=work, name="dsbs-batches", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        closed.set()
        thread.join()


@dataclasses.dataclass(frozen=True)
class EvalBatch:
    """Inputs of one evaluation step.

    Attributes:
      tokens: int32 [batch_size, or this host's rows; length]; 0 is padding.
      indices: int64 [batch_size]; rows of the split.
      valid: bool [batch_size]; False where the last batch is filled up, with repetitions of its last row.
    """

    tokens: np.ndarray
    indices: np.ndarray
    valid: np.ndarray


def eval_batches(
    split: Split, task: str, batch_size: int, *, rows: np.ndarray | None = None, buckets: int = 1
) -> Iterator[EvalBatch]:
    """The inputs of every row of a split, longest first, in batches of a fixed shape.

    Args:
      split: the split.
      task: whose inputs.
      batch_size: rows of a global batch; a multiple of what the mesh divides rows by.
      rows: int [...], ascending: the rows of each global batch that this host builds; None for all.
      buckets: most different lengths of batches. Each is one more compilation, and shorter than the one before.
    """
    tokens, offsets = split.ragged(task, "inputs")
    lengths = split.lengths(task, "inputs")
    order = np.argsort(-lengths, kind="stable")
    count = -(-len(order) // batch_size)
    valid = np.arange(count * batch_size) < len(order)
    batches = np.pad(order, (0, len(valid) - len(order)), mode="edge").reshape(count, batch_size)
    for bucket in np.array_split(np.arange(count), min(buckets, count)):
        longest = int(lengths[batches[bucket[0], 0]])
        length = min(packing.round_up(longest, 16), split.feature_lengths[0])
        for number in bucket:
            local = batches[number] if rows is None else batches[number, rows]
            side = _Side(len(local), length)
            side.put(tokens, offsets, local, np.arange(len(local)), np.ones_like(local), np.zeros_like(local))
            yield EvalBatch(side.tokens, batches[number], valid.reshape(batches.shape)[number])
