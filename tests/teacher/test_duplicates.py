"""Repeated texts: equal ones exactly, nearly equal ones as the Jaccard similarity says, in time that stays linear."""

import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsbs_jax.teacher.duplicates import DuplicateFinder, shingles, words_of


def found(texts):
    finder = DuplicateFinder()
    for text in texts:
        words = words_of(text)
        finder.add(text, words, shingles(words))
    return finder.result()


def sentence(seed, words=40):
    rng = random.Random(seed)
    return [f"w{rng.randrange(10**6)}" for _ in range(words)]


def test_case_punctuation_and_white_space_do_not_tell_texts_apart():
    result = found(["A dog runs.", "a dog  RUNS!", "A cat sits.", "“A dog”, runs"])
    assert (result.texts, result.exact, result.near) == (4, 2, 0)
    assert [(group.rows, group.wordings, group.text) for group in result.groups] == [(3, 1, "A dog runs.")]


def test_nearly_equal_texts_are_found_and_others_are_not():
    texts = [" ".join(sentence(seed)) for seed in range(300)]
    # One word of 40 changed at an end: 37 of 39 sequences are shared.
    alike = [" ".join([*sentence(seed)[:-1], "other"]) for seed in range(100)]
    # Every fourth word changed: next to none is.
    different = [" ".join(w if i % 4 else f"x{i}" for i, w in enumerate(sentence(seed))) for seed in range(100, 200)]
    result = found(texts + alike + different)
    assert (result.exact, result.near) == (0, 100)
    assert {(group.rows, group.wordings) for group in result.groups} == {(2, 2)}


@given(st.lists(st.text(max_size=30), max_size=30))
def test_every_text_is_new_or_counted_once(texts):
    result = found(texts)
    distinct = len({" ".join(words_of(text)) for text in texts})
    assert result.texts == len(texts)
    assert result.exact == len(texts) - distinct
    assert 0 <= result.near < max(1, distinct)
    assert all(group.rows >= 2 and group.wordings <= group.rows for group in result.groups)
    # Chunks do not matter, nor asking twice.
    assert found(texts) == result


def test_asking_does_not_end_the_counting():
    finder = DuplicateFinder()
    for expected in (0, 1, 2):
        finder.add("the same text", ["the", "same", "text"], shingles(["the", "same", "text"]))
        assert finder.result().exact == expected


@pytest.mark.parametrize("kind", ["different", "alike", "equal"])
def test_twice_the_texts_take_about_twice_the_time(kind):
    def seconds(count):
        base = sentence(0)
        make = {
            "different": lambda i: sentence(i),
            "alike": lambda i: [*base[:-1], str(i)],
            "equal": lambda i: base,
        }[kind]
        texts = [" ".join(make(i)) for i in range(count)]
        start = time.perf_counter()
        found(texts)
        return time.perf_counter() - start

    seconds(100)  # SciPy is imported.
    # Quadratic work would take 16 times as long; the factor leaves room for a busy machine.
    assert seconds(12_000) < 10 * max(seconds(3_000), 0.05)
