"""Methods as data: the texts a student sees under each of the paper's methods."""

import pytest

from dsbs_jax.schema import METHOD_NAMES, Example, Method, TaskFormat, TeacherOutput, make_method

EXAMPLE = Example("train/0", "2 + 2?", "4", TeacherOutput("Two and two.", "5"))
BARE = Example("train/1", "2 + 2?", "4", TeacherOutput(None, None, "empty"))


@pytest.mark.parametrize(
    ("method", "texts"),
    [
        (make_method("standard"), [("2 + 2?", "4")]),
        (make_method("standard", label_source="teacher"), [("2 + 2?", "5")]),
        (make_method("step_by_step"), [("predict: 2 + 2?", "4"), ("explain: 2 + 2?", "Two and two.")]),
        (
            make_method("step_by_step", label_source="teacher", prefix_style="paper"),
            [("[label] 2 + 2?", "5"), ("[rationale] 2 + 2?", "Two and two.")],
        ),
        (make_method("single_task"), [("2 + 2?", "Two and two. So the answer is 4")]),
        (make_method("rationale_input"), [("2 + 2?\nTwo and two.", "4")]),
    ],
)
def test_texts_of_the_methods(method, texts):
    assert [task.render(EXAMPLE, method.label_source) for task in method.tasks] == texts


def test_lambda_and_alpha_are_weights():
    method = make_method("step_by_step", label_weight=0.3, rationale_weight=0.7)
    assert [task.weight for task in method.tasks] == [0.3, 0.7]


def test_a_pair_without_its_fields_does_not_exist_but_an_input_always_does():
    label, rationale = make_method("step_by_step").tasks
    assert label.render(BARE, "gold") == ("predict: 2 + 2?", "4")
    assert rationale.render(BARE, "gold") is None
    assert label.render(BARE, "teacher") is None
    assert make_method("rationale_input").tasks[0].render_input(BARE) == "2 + 2?"


@pytest.mark.parametrize(
    ("text", "answer"),
    [("Because. So the answer is 4", "4"), ("So the answer is 3. So the answer is 4 ", "4"), ("Because", "")],
)
def test_single_task_answers_follow_the_last_marker(text, answer):
    assert make_method("single_task").read_answer(text) == answer


def test_braces_in_data_are_text():
    task = make_method("single_task").tasks[0]
    example = Example("x", "{label} {0}", "{input}", TeacherOutput("{", None))
    assert task.render(example, "gold") == ("{label} {0}", "{ So the answer is {input}")


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: make_method("other"), ", ".join(METHOD_NAMES)),
        (lambda: make_method("standard", label_source="both"), "must be 'gold' or 'teacher'"),
        (lambda: make_method("standard", prefix_style="loud"), "must be one of code, paper"),
        (lambda: make_method("standard", label_weight=-1.0), "weight is -1.0"),
        (lambda: TaskFormat("label", target="{answer}"), "names the field 'answer'"),
        (lambda: Method("empty", ()), "at least one task"),
    ],
)
def test_nonsense_is_refused(make, sentence):
    with pytest.raises(ValueError, match=sentence.replace("(", r"\(")):
        make()
