"""Filters: each rule keeps what it should, and every row is either kept or counted."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsbs_jax.teacher.agreement import same_label
from dsbs_jax.teacher.filters import Filter

EXACT, EQUATION = same_label("exact"), same_label("equation")


def row(label="yes", teacher_label="yes", rationale="one two three", agreement=1):
    return {"label": label, "teacher_label": teacher_label, "rationale": rationale, "agreement": agreement}


@pytest.mark.parametrize(
    ("filter", "of_row", "reason"),
    [
        (Filter(), row(None, None, None, 0), None),
        (Filter(teacher_label_equals_gold=True), row(), None),
        (Filter(teacher_label_equals_gold=True), row(teacher_label="YES"), None),
        (Filter(teacher_label_equals_gold=True), row(teacher_label="no"), "teacher_label_differs_from_gold"),
        (Filter(teacher_label_equals_gold=True), row(teacher_label=None), "no_teacher_label"),
        (Filter(teacher_label_equals_gold=True), row(label=None), "no_gold_label"),
        (Filter(min_rationale_words=3), row(), None),
        (Filter(min_rationale_words=4), row(), "rationale_too_short"),
        (Filter(min_rationale_words=1), row(rationale=None), "rationale_too_short"),
        (Filter(max_rationale_words=3), row(), None),
        (Filter(max_rationale_words=2), row(), "rationale_too_long"),
        (Filter(max_rationale_words=0), row(), "rationale_too_long"),
        (Filter(min_agreement=2), row(agreement=2), None),
        (Filter(min_agreement=2), row(agreement=1), "too_little_agreement"),
        (Filter(True, 9, None, 9), row(teacher_label="no"), "teacher_label_differs_from_gold"),
    ],
)
def test_one_rule_at_a_time(filter, of_row, reason):
    assert filter.reason(of_row, EXACT) == reason


def test_equations_are_compared_by_value():
    of_row = row("( 84.0 / 2.0 )", "(84 / 2)")
    assert Filter(teacher_label_equals_gold=True).reason(of_row, EQUATION) is None
    assert Filter(teacher_label_equals_gold=True).reason(of_row, EXACT) == "teacher_label_differs_from_gold"


@given(
    st.tuples(*(st.sampled_from([None, "yes", "no"]) for _ in range(3)), st.integers(0, 3)),
    st.builds(Filter, st.booleans(), st.integers(0, 1), st.sampled_from([None, 1, 2]), st.integers(0, 3)),
)
def test_a_row_that_stays_breaks_no_rule(fields, filter):
    of_row = row(*fields)
    words = len((of_row["rationale"] or "").split())
    obeys = (
        (not filter.teacher_label_equals_gold or (of_row["label"] and of_row["label"] == of_row["teacher_label"]))
        and words >= filter.min_rationale_words
        and (filter.max_rationale_words is None or words <= filter.max_rationale_words)
        and of_row["agreement"] >= filter.min_agreement
    )
    assert (filter.reason(of_row, EXACT) is None) == bool(obeys)


def test_bounds_that_no_row_can_meet():
    with pytest.raises(ValueError, match="max_rationale_words is 2, which is less than min_rationale_words, 3"):
        Filter(min_rationale_words=3, max_rationale_words=2)
    with pytest.raises(ValueError, match="min_agreement is -1"):
        Filter(min_agreement=-1)
