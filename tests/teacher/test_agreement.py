"""Self-consistency: majority, ties, values, and rationales that lead to the label."""

import collections

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsbs_jax.schema import TeacherOutput
from dsbs_jax.teacher.agreement import Agreement, agree, same_label

EXACT, EQUATION = same_label("exact"), same_label("equation")


def sample(label, rationale="why", failure=None):
    return TeacherOutput(rationale, label, failure)


def test_the_majority_wins_with_its_own_rationale():
    outputs = [sample("no", "n1"), sample("yes", None, "no_rationale"), sample("Yes", "y2"), sample("yes", "y3")]
    assert agree(outputs, EXACT) == Agreement(TeacherOutput("y2", "yes"), 3, 4)


def test_a_tie_goes_to_the_label_seen_first():
    assert agree([sample("b"), sample("a"), sample("a"), sample("b")], EXACT).output.label == "b"


def test_equations_agree_by_value():
    outputs = [sample("(3 + 4)"), sample("(84 / 2)", "a"), sample("( 84.0 / 2.0 )", "b")]
    assert agree(outputs, EQUATION) == Agreement(TeacherOutput("a", "(84 / 2)"), 2, 3)
    assert agree(outputs, EXACT).agreement == 1


def test_samples_without_a_label_have_no_vote():
    nothing = TeacherOutput(None, None, "no_marker")
    assert agree([nothing, nothing, sample("yes")], EXACT) == Agreement(TeacherOutput("why", "yes"), 1, 3)
    outside = TeacherOutput("r", None, "label_outside_set")
    assert agree([outside, nothing, nothing], EXACT) == Agreement(TeacherOutput("r", None, "no_marker"), 0, 3)


def test_a_majority_without_a_rationale_says_so():
    bare = TeacherOutput(None, "yes", "no_rationale")
    assert agree([bare, bare, sample("no")], EXACT) == Agreement(bare, 2, 3)


def test_what_cannot_be_agreed_on():
    with pytest.raises(ValueError, match="no samples"):
        agree([], EXACT)
    with pytest.raises(ValueError, match="no metric 'f1'"):
        same_label("f1")


LABELS = st.sampled_from(["a", "b", "c", None])


@given(st.lists(st.tuples(LABELS, st.sampled_from(["r1", "r2", None])), min_size=1, max_size=9))
def test_no_label_has_more_votes_and_the_rationale_is_one_of_its_own(pairs):
    outputs = [TeacherOutput(rationale, label, None if label and rationale else "x") for label, rationale in pairs]
    result = agree(outputs, EXACT)
    votes = collections.Counter(label for label, _ in pairs if label)
    assert result.samples == len(pairs)
    assert result.agreement == max(votes.values(), default=0) == (votes[result.output.label] if votes else 0)
    if votes and result.output.rationale:
        assert (result.output.label, result.output.rationale) in pairs
    assert (result.output.failure is None) == bool(result.output.label and result.output.rationale)
