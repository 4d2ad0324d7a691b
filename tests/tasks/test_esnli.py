"""e-SNLI: premise and hypothesis around `</s>`, three labels, the teacher's accuracy."""

import json

import pytest

from dsbs_jax.tasks import DATASETS
from dsbs_jax.tasks.esnli import to_example


def test_text_and_label():
    row = {"premise": "A dog runs.", "hypothesis": "A pet moves.", "label": 0}
    example = to_example("train/0", row)
    assert (example.input, example.label) == ("A dog runs.</s>A pet moves.", "entailment")
    assert [to_example("x", {**row, "label": label}).label for label in (1, 2)] == ["neutral", "contradiction"]
    assert to_example("x", {**row, "label": "neutral"}).label == "neutral"


def test_a_wrong_label_names_the_row(tmp_path):
    (tmp_path / "esnli").mkdir()
    rows = [{"premise": "p", "hypothesis": "h", "label": label} for label in (0, -1)]
    (tmp_path / "esnli" / "esnli_train.json").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(
        ValueError, match=r"esnli_train\.json, row train/1: the label -1 is not one of 0 \(entailment\)"
    ):
        DATASETS["esnli"].load("train", tmp_path)


@pytest.mark.parametrize(
    ("split", "rows", "correct", "failures"),
    [
        ("train", 10_000, 7014, {"no_marker": 143, "no_label": 27, "label_outside_set": 13}),
        ("validation", 9842, 7201, {"no_marker": 4}),
        ("test", 9824, 7171, {}),
    ],
)
def test_sizes_and_the_teachers_accuracy(shared_data, split, rows, correct, failures):
    loaded = DATASETS["esnli"].load(split, shared_data / "dss")
    assert loaded.counts.kept == rows
    assert loaded.counts.teacher_failures == failures
    assert sum(example.teacher.label == example.label for example in loaded.examples) == correct
