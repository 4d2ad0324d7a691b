"""Spoiled rationales: exactly the share that was asked for, nested, another row's and never its own."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsbs_jax.schema import Example, TeacherOutput
from dsbs_jax.teacher.noise import MISSING, WRONG, RationaleNoise


def rows(rationales: list[str | None]) -> list[Example]:
    return [Example(f"train/{i}", f"q{i}", "a", TeacherOutput(text, "a")) for i, text in enumerate(rationales)]


@given(
    # Some rows share a rationale, some have none.
    st.lists(st.sampled_from(["r0", "r1", "r2", "r3", None]), max_size=30).map(lambda extra: [*extra, "x", "y"]),
    st.floats(0, 0.5),
    st.floats(0, 0.5),
    st.integers(0, 5),
)
def test_shares_are_exact_and_nested_and_labels_stay(rationales, wrong, missing, seed):
    examples = rows(rationales)
    having = [i for i, text in enumerate(rationales) if text]
    spoiled, counts = RationaleNoise(wrong, missing, seed).apply(examples)
    changed = {i for i in having if spoiled[i].rationale not in (rationales[i], None)}
    removed = {i for i in having if spoiled[i].rationale is None}
    assert len(changed) == math.floor(round(wrong * len(having), 6)) == counts.get(WRONG, 0)
    assert len(removed) == math.floor(round(missing * len(having), 6)) == counts.get(MISSING, 0)
    assert all(spoiled[i].rationale in rationales for i in changed)
    assert [(e.id, e.input, e.label, e.teacher.label) for e in spoiled] == [
        (e.id, e.input, e.label, e.teacher.label) for e in examples
    ]
    more, _ = RationaleNoise(0.5, 0.5, seed).apply(examples)
    assert all(more[i].rationale == spoiled[i].rationale for i in changed | removed)


def test_nothing_is_done_by_default_and_what_cannot_be_done_is_refused():
    examples = rows(["same", "same", None])
    assert RationaleNoise().apply(examples) == (examples, {})
    assert RationaleNoise(wrong=1).apply([]) == ([], {})
    with pytest.raises(ValueError, match="all rows have the same one"):
        RationaleNoise(wrong=0.5).apply(examples)
    for wrong, missing in ((0.6, 0.5), (-0.1, 0), (0, 1.1)):
        with pytest.raises(ValueError, match="together at most 1"):
            RationaleNoise(wrong, missing)
