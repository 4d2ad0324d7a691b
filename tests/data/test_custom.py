"""Bring your own dataset: files, columns and templates, no Python."""

import dataclasses
import json

import pytest

from dsbs_jax.data.custom import CustomDataset
from dsbs_jax.schema import Example, TeacherOutput
from dsbs_jax.teacher.parsers import MarkerParser, RegexParser

ROWS = [
    {"text": f"Is {i} even?", "hint": "{think}", "answer": i % 2, "why": f"{i} by 2" if i else "", "guess": 1}
    for i in range(10)
]
CUSTOM = CustomDataset(
    name="parity",
    train="parity/rows.jsonl",
    input="Q: {text}\n{hint} {{now}}",
    label="{answer}",
    rationale="{why}",
    teacher_label="{guess}",
    label_mapping={"0": "yes", "1": "no"},
    label_set=("yes", "no"),
)


@pytest.fixture
def data_dir(tmp_path):
    (tmp_path / "parity").mkdir()
    (tmp_path / "parity" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return tmp_path


def test_columns_become_examples(data_dir):
    dataset = CUSTOM.to_dataset()
    examples = [example for split in ("train", "validation", "test") for example in dataset.examples(split, data_dir)]
    examples.sort(key=lambda example: example.id)
    assert len(examples) == 10
    assert examples[3] == Example("train/3", "Q: Is 3 even?\n{think} {now}", "no", TeacherOutput("3 by 2", "no"))
    assert examples[0].teacher == TeacherOutput(None, "no", "no_rationale")


def test_input_files_hold_the_answers_too(data_dir):
    assert CUSTOM.input_files(data_dir) == [data_dir / "parity" / "rows.jsonl"]
    (data_dir / "parity" / "llm").mkdir()
    (data_dir / "parity" / "llm" / "test_CoT_0.json").write_text("[]")
    answers = data_dir / "parity" / "llm" / "test_CoT_0.json"
    assert CUSTOM.input_files(data_dir) == [answers, data_dir / "parity" / "rows.jsonl"]
    assert CUSTOM.input_files(data_dir, teacher=None) == [data_dir / "parity" / "rows.jsonl"]


def test_it_survives_json():
    custom = dataclasses.replace(CUSTOM, parser=MarkerParser("####"))
    again = CustomDataset.from_json(json.loads(json.dumps(dataclasses.asdict(custom))))
    assert again == custom
    assert hash(again) == hash(custom)


def test_raw_answers_from_a_column_or_from_files(data_dir):
    rows = [{"input": "a", "label": "1", "answer": "why #### 1"}, {"input": "b", "label": "2", "answer": None}]
    (data_dir / "train.json").write_text(json.dumps(rows * 5))
    (data_dir / "llm").mkdir()
    (data_dir / "llm" / "train_CoT_0.json").write_text(json.dumps(["because #### 1", ""] * 5))
    by_files = CustomDataset(name="x", train="train.json", parser=MarkerParser("####"))
    by_column = dataclasses.replace(by_files, teacher_answer="{answer}")
    for custom, rationale in ((by_files, "because"), (by_column, "why")):
        loaded = custom.to_dataset().load("train", data_dir)
        assert {example.rationale for example in loaded.examples} == {rationale, None}
        assert set(loaded.counts.teacher_failures) == {"empty_answer"}


def test_missing_labels_are_unlabelled_rows(data_dir):
    (data_dir / "train.jsonl").write_text(
        "".join(json.dumps({"input": f"{i}", "label": "x" if i else None, "why": "w"}) + "\n" for i in range(20))
    )
    custom = CustomDataset(name="x", train="train.jsonl", rationale="{why}")
    assert custom.to_dataset().load("train", data_dir).counts.unlabelled == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": "{anser}"}, r"rows\.jsonl, row train/0: there is no column 'anser'; columns there: text, hint"),
        ({"label_mapping": {"0": "yes"}}, r"row train/1: the label '1' is not in label_mapping, which has 0"),
        ({"label_set": ("no",)}, r"row train/0: the label 'yes' is not one of 'no'"),
        ({"input": "{why}"}, r"row train/0: the input template '\{why\}' gives no text"),
    ],
)
def test_rows_that_do_not_fit_are_named(data_dir, change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CUSTOM, **change).to_dataset().load("train", data_dir)


def test_missing_files_are_named(data_dir):
    with pytest.raises(FileNotFoundError, match=r"no file .*other\.jsonl; the folder holds rows\.jsonl"):
        dataclasses.replace(CUSTOM, train="parity/other.jsonl").to_dataset().load("train", data_dir)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "a/b"}, "the name 'a/b'"),
        ({"train": ""}, "train is empty"),
        ({"metric": "bleu"}, "metric is 'bleu'; it must be one of exact, equation"),
        ({"input": "{text"}, "the template input '{text' is broken"),
        ({"teacher_answer": "{a}"}, "teacher_answer needs a parser"),
        ({"teacher_answer": "{a}", "parser": MarkerParser("x")}, "not both"),
    ],
)
def test_settings_that_make_no_sense(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CUSTOM, **change)


def test_a_regular_expression_reads_the_teachers_answers(tmp_path):
    pytest.importorskip("re2", reason="RegexParser needs google-re2")
    (tmp_path / "rows.jsonl").write_text('{"input": "2 + 2", "label": "4", "said": "Two twos. Final answer: 4"}\n')
    parser = RegexParser(r"^(?P<rationale>.*)Final answer: (?P<label>\d+)")
    custom = CustomDataset("sums", str(tmp_path / "rows.jsonl"), teacher_answer="{said}", parser=parser)
    assert CustomDataset.from_json(json.loads(json.dumps(dataclasses.asdict(custom)))) == custom
    teacher = custom.to_dataset().read("train", None).examples[0].teacher
    assert (teacher.rationale, teacher.label) == ("Two twos.", "4")
