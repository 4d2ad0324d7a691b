"""Packing: several (input, target) sequences share one row of fixed length.

The paper's step is a batch of examples, so a step's sequences are packed among themselves and never wait for the next
step's. One vectorised packing serves any number of steps at once: the plan of a whole run, the choice of row lengths
(each candidate is one more "step"), and a few batches.
"""

from __future__ import annotations

import dataclasses

import numpy as np

_LONGEST_ROW = 512
# A side of a row in shares; shares differ by less than 2 * _WHOLE. Both flags are bits above that.
_WHOLE = 4096
_UNOPENED, _NO_ROOM = 4 * _WHOLE, 8 * _WHOLE
_ROW_BITS = 15


@dataclasses.dataclass(frozen=True)
class Packing:
    """Where each sequence of each step lies. Sequences of length 0 are nowhere: row -1.

    Attributes:
      row: int32 [steps, sequences]; -1 also where all the rows allowed are too full.
      segment: int32 [steps, sequences]; 1, 2, ... within a row, in the order of the offsets.
      encoder_offset: int32 [steps, sequences]; first position in the row.
      decoder_offset: the same on the decoder's side.
      rows_used: int32 [steps].
      fits: bool [steps]; whether every sequence of the step has a row.
    """

    row: np.ndarray
    segment: np.ndarray
    encoder_offset: np.ndarray
    decoder_offset: np.ndarray
    rows_used: np.ndarray
    fits: np.ndarray


def pack(
    encoder_lengths: np.ndarray,
    decoder_lengths: np.ndarray,
    row_lengths: tuple[int | np.ndarray, int | np.ndarray],
    rows: int,
) -> Packing:
    """Longest first, each into the open row that it leaves most evenly filled on both sides; else a new row opens.

    On pairs of a short and a long target, as step-by-step's are, this needs 2 to 6 % fewer rows than first-fit.

    Args:
      encoder_lengths: int [steps, sequences]; 0 for no sequence.
      decoder_lengths: the same for the targets.
      row_lengths: (encoder, decoder) length of a row; ints, or int arrays [steps].
      rows: most rows a step may use. Fewer never change where a sequence lies, only whether it fits.
    """
    steps, sequences = encoder_lengths.shape
    rows = min(rows, sequences)
    if rows >= 2**_ROW_BITS:
        raise ValueError(
            f"A step of {sequences} sequences may need {rows} rows; at most {2**_ROW_BITS - 1} are possible."
        )
    encoder_row, decoder_row = (np.broadcast_to(np.asarray(length, np.int32), (steps,)) for length in row_lengths)
    encoder_share = encoder_lengths.astype(np.int32) * _WHOLE // encoder_row[:, None]
    decoder_share = decoder_lengths.astype(np.int32) * _WHOLE // decoder_row[:, None]
    # Inputs weigh more: there is one as long as the other for each example, and they fill rows first.
    order = np.argsort(-(2 * encoder_share + decoder_share), axis=1, kind="stable")
    by_size = [
        np.ascontiguousarray(np.take_along_axis(values, order, 1).T, dtype=np.int32)
        for values in (encoder_lengths, decoder_lengths, encoder_share - decoder_share)
    ]

    # The loop runs over sequences; every operation in it spans all steps. Arrays are int32 [rows, steps].
    encoder_free = np.repeat(encoder_row[None], rows, 0)
    decoder_free = np.repeat(decoder_row[None], rows, 0)
    # How much larger a share of the encoder's side is free than of the decoder's.
    uneven = np.full((rows, steps), _UNOPENED, np.int32)
    segments = np.zeros((rows, steps), np.int32)
    numbers = np.arange(rows, dtype=np.int32)[:, None]
    scores, scratch = np.empty_like(uneven), np.empty_like(uneven)
    placed = np.full((4, sequences, steps), -1, np.int32)
    columns = np.arange(steps)
    opened = 0  # no step has put anything into this row or a later one
    for i, (encoder, decoder, lean) in enumerate(zip(*by_size, strict=True)):
        wanted = (encoder > 0) | (decoder > 0)
        if not wanted.any():
            break  # sorted: only absent sequences follow
        window = slice(0, opened + 1)
        score, other = scores[window], scratch[window]
        # A row without room would have negative space on one side: its sign bit becomes the flag.
        np.subtract(encoder_free[window], encoder, out=score)
        np.subtract(decoder_free[window], decoder, out=other)
        np.bitwise_or(score, other, out=score)
        np.right_shift(score, 31, out=score)
        np.bitwise_and(score, _NO_ROOM, out=score)
        np.subtract(uneven[window], lean, out=other)
        np.abs(other, out=other)
        np.bitwise_or(score, other, out=score)
        # Its number in the low bits makes the least score name its row, the first of equals; much faster than argmin.
        np.left_shift(score, _ROW_BITS, out=score)
        np.bitwise_or(score, numbers[window], out=score)
        least = score.min(axis=0)
        fits = (least < _NO_ROOM << _ROW_BITS) & wanted
        row, step = (least & (2**_ROW_BITS - 1))[fits], columns[fits]
        segments[row, step] += 1
        encoder_start = encoder_row[step] - encoder_free[row, step]
        decoder_start = decoder_row[step] - decoder_free[row, step]
        placed[:, i, step] = row, segments[row, step], encoder_start, decoder_start
        encoder_free[row, step] -= encoder[step]
        decoder_free[row, step] -= decoder[step]
        uneven[row, step] = (
            encoder_free[row, step] * _WHOLE // encoder_row[step]
            - decoder_free[row, step] * _WHOLE // decoder_row[step]
        )
        opened = min(max(opened, int(row.max(initial=-1)) + 1), rows - 1)

    out = np.empty((4, steps, sequences), np.int32)
    for sorted_values, values in zip(placed, out, strict=True):
        np.put_along_axis(values, order, sorted_values.T, 1)
    exists = (encoder_lengths > 0) | (decoder_lengths > 0)
    return Packing(
        row=out[0],
        segment=out[1],
        encoder_offset=out[2],
        decoder_offset=out[3],
        rows_used=out[0].max(axis=1, initial=-1) + 1,
        fits=((out[0] >= 0) | ~exists).all(axis=1),
    )


def one_per_row(encoder_lengths: np.ndarray, decoder_lengths: np.ndarray) -> Packing:
    """No packing: sequence j lies alone in row j. Arguments and result as in `pack`."""
    exists = (encoder_lengths > 0) | (decoder_lengths > 0)
    row = np.where(exists, np.arange(encoder_lengths.shape[1], dtype=np.int32), np.int32(-1))
    start = np.where(exists, np.int32(0), np.int32(-1))
    segment = np.where(exists, np.int32(1), np.int32(-1))
    steps, sequences = encoder_lengths.shape
    return Packing(row, segment, start, start, np.full(steps, sequences, np.int32), np.ones(steps, bool))


def rows_needed(encoder_lengths: np.ndarray, decoder_lengths: np.ndarray, row_lengths: tuple) -> np.ndarray:
    """Rows that each step needs: int32 [steps]. Arguments as in `pack`; every sequence must fit into an empty row."""
    encoder_total = encoder_lengths.sum(1) / row_lengths[0]
    decoder_total = decoder_lengths.sum(1) / row_lengths[1]
    # Usually enough, and a third of the work of allowing every sequence its own row.
    rows = int(1.3 * np.maximum(encoder_total, decoder_total).max(initial=0)) + 2
    packing = pack(encoder_lengths, decoder_lengths, row_lengths, min(rows, encoder_lengths.shape[1]))
    if packing.fits.all():
        return packing.rows_used
    return pack(encoder_lengths, decoder_lengths, row_lengths, encoder_lengths.shape[1]).rows_used


@dataclasses.dataclass(frozen=True)
class RowCost:
    """What a row of some length costs, in encoder tokens; only ratios matter.

    Attributes:
      decoder: a decoder token's cost in encoder tokens: it has cross-attention and the logits on top. 1.6 for T5-base.
      attention: the cost of attending to one position, in tokens: 1 / (6 d_model) by operations, more by memory.
    """

    decoder: float = 1.6
    attention: float = 1 / 2048

    def __call__(self, encoder: np.ndarray, decoder: np.ndarray) -> np.ndarray:
        """The cost of one row with these lengths."""
        return encoder * (1 + self.attention * encoder) + self.decoder * decoder * (
            1 + self.attention * (decoder + encoder)
        )


DEFAULT_COST = RowCost()


def candidate_row_lengths(longest: tuple[int, int], decoder_share: float) -> np.ndarray:
    """Row lengths worth trying: int64 [candidates, (encoder, decoder)].

    Args:
      longest: (encoder, decoder) lengths that must fit into a row.
      decoder_share: target tokens for each input token.
    """
    encoder_least, decoder_least = round_up(longest[0], 16), round_up(longest[1], 8)
    candidates = set()
    for encoder in range(encoder_least, max(_LONGEST_ROW, encoder_least) + 1, 16):
        # Rows of the data's own ratio are full on both sides; a longer decoder leaves the packing more freedom.
        for slack in (0.8, 0.9, 1.0, 1.1, 1.2, 1.35, 1.5):
            candidates.add((encoder, max(round_up(int(slack * decoder_share * encoder), 8), decoder_least)))
    return np.array(sorted(candidates))


def round_up(value, multiple: int):
    """The least multiple that is not below `value`, an int or an array of ints."""
    return -(-value // multiple) * multiple
