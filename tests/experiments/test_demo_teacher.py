"""The demo's teacher: right about as often as it says, in the layout that the parser reads, the same each time."""

import pytest

from dsbs_jax.experiments.demo_teacher import Expert
from dsbs_jax.tasks import bestiary

WORLD = bestiary.World(bestiary.Parameters())


def read(expert: Expert, questions):
    return [bestiary.DATASET.parse(expert.answer(f"Q: {question.input}\nA:")) for question in questions]


def test_about_four_answers_in_five_are_right_and_some_cannot_be_read():
    questions = list(WORLD.questions("train"))
    outputs = read(Expert(WORLD), questions)
    right = sum(output.label == question.label for output, question in zip(outputs, questions, strict=True))
    assert 0.77 < right / len(questions) < 0.83
    failures = {output.failure for output in outputs}
    assert failures == {None, "no_marker"}
    assert outputs == read(Expert(WORLD), questions)


def test_a_wrong_answer_is_what_another_kind_would_do():
    question = next(iter(WORLD.questions("train")))
    always_wrong, never_wrong = Expert(WORLD, wrong_kind=1, rambling=0), Expert(WORLD, wrong_kind=0, rambling=0)
    right, wrong = (read(expert, [question])[0] for expert in (never_wrong, always_wrong))
    assert (right.rationale, right.label) == (question.teacher.rationale, question.label)
    assert wrong.rationale.partition(" is a ")[0] == right.rationale.partition(" is a ")[0]
    assert wrong.rationale != right.rationale
    assert wrong.rationale.endswith(f"{wrong.label}.")


@pytest.mark.parametrize("asked", ["Q: What is the capital of France?", "", "no question"])
def test_what_it_does_not_know_it_does_not_answer(asked):
    assert bestiary.DATASET.parse(Expert(WORLD).answer(asked)).label is None
