"""Packing: every sequence once, nothing overlaps, nothing sticks out, and steps do not influence each other."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsbs_jax.data import packing


@st.composite
def problems(draw):
    steps, sequences = draw(st.integers(1, 4)), draw(st.integers(1, 12))
    encoder_row, decoder_row = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    encoder = rng.integers(1, encoder_row + 1, (steps, sequences))
    decoder = rng.integers(1, decoder_row + 1, (steps, sequences))
    absent = rng.random((steps, sequences)) < draw(st.sampled_from([0.0, 0.3, 1.0]))
    return np.where(absent, 0, encoder), np.where(absent, 0, decoder), (encoder_row, decoder_row)


def check(packed, encoder, decoder, row_lengths):
    """Counts how often each position is taken, sequence by sequence."""
    steps, sequences = encoder.shape
    sides = (
        (encoder, packed.encoder_offset, row_lengths[0]),
        (decoder, packed.decoder_offset, row_lengths[1]),
    )
    for step in range(steps):
        for lengths, offsets, length in sides:
            taken = np.zeros((sequences, length), int)
            for i in range(sequences):
                if encoder[step, i] == 0 and decoder[step, i] == 0:
                    assert packed.row[step, i] == -1
                    continue
                offset = offsets[step, i]
                assert 0 <= packed.row[step, i] < packed.rows_used[step]
                assert 0 <= offset <= length - lengths[step, i]
                taken[packed.row[step, i], offset : offset + lengths[step, i]] += 1
            assert taken.max(initial=0) <= 1
            assert taken.sum() == lengths[step].sum()
        for row in range(packed.rows_used[step]):
            here = packed.row[step] == row
            segments = packed.segment[step][here]
            assert sorted(segments) == list(range(1, here.sum() + 1))
            assert (np.diff(packed.encoder_offset[step][here][np.argsort(segments)]) > 0).all()


@settings(max_examples=150, deadline=None)
@given(problem=problems())
def test_every_sequence_once_without_overlap_or_overflow(problem):
    encoder, decoder, row_lengths = problem
    packed = packing.pack(encoder, decoder, row_lengths, rows=encoder.shape[1])
    assert packed.fits.all()
    check(packed, encoder, decoder, row_lengths)
    assert (packing.rows_needed(encoder, decoder, row_lengths) == packed.rows_used).all()


@settings(max_examples=75, deadline=None)
@given(problem=problems(), rows=st.integers(1, 6))
def test_a_limit_on_rows_is_reported_and_moves_nothing(problem, rows):
    encoder, decoder, row_lengths = problem
    free = packing.pack(encoder, decoder, row_lengths, rows=encoder.shape[1])
    limited = packing.pack(encoder, decoder, row_lengths, rows=rows)
    assert (limited.fits == (free.rows_used <= rows)).all()
    for name in ("row", "segment", "encoder_offset", "decoder_offset"):
        assert (getattr(limited, name)[limited.fits] == getattr(free, name)[limited.fits]).all()


@settings(max_examples=50, deadline=None)
@given(problem=problems())
def test_a_step_is_packed_as_if_alone_and_row_lengths_may_differ(problem):
    encoder, decoder, row_lengths = problem
    steps = len(encoder)
    lengths = tuple(np.arange(steps) + length for length in row_lengths)
    together = packing.pack(encoder, decoder, lengths, rows=encoder.shape[1])
    for step in range(steps):
        alone = packing.pack(
            encoder[step : step + 1],
            decoder[step : step + 1],
            (row_lengths[0] + step, row_lengths[1] + step),
            rows=encoder.shape[1],
        )
        for name in ("row", "segment", "encoder_offset", "decoder_offset", "rows_used", "fits"):
            assert (getattr(together, name)[step] == getattr(alone, name)[0]).all()


@settings(max_examples=50, deadline=None)
@given(problem=problems())
def test_one_per_row(problem):
    encoder, decoder, row_lengths = problem
    packed = packing.one_per_row(encoder, decoder)
    check(packed, encoder, decoder, row_lengths)
    exists = encoder + decoder > 0
    assert (packed.row == np.where(exists, np.arange(encoder.shape[1]), -1)).all()


def test_fills_rows_of_easy_sequences_completely():
    encoder, decoder = np.full((3, 40), 25), np.full((3, 40), 10)
    assert packing.rows_needed(encoder, decoder, (100, 40)).tolist() == [10, 10, 10]


def test_too_many_rows_are_refused():
    lengths = np.ones((1, 2**15), int)
    with pytest.raises(ValueError, match="at most 32767 are possible"):
        packing.pack(lengths, lengths, (1, 1), rows=2**15)


def test_candidates_hold_the_longest():
    candidates = packing.candidate_row_lengths((105, 71), 0.35)
    assert candidates.min(axis=0).tolist() == [112, 72]
    assert candidates[:, 0].max() == 512
    assert packing.candidate_row_lengths((1000, 3), 0.1)[:, 0].tolist() == [1008] * len(
        packing.candidate_row_lengths((1000, 3), 0.1)
    )
