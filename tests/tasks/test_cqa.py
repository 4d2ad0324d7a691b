"""CommonsenseQA: the reference's text, labels among the row's own choices, Table 3's sizes."""

import datasets
import pytest

from dsbs_jax.tasks import DATASETS
from dsbs_jax.tasks.cqa import to_example

ROW = {"question": "Where do fish live?", "choices": ["sea", "tree", "car", "sky", "bed"], "answer": "sea"}
TEXT = "Where do fish live?\nAnswer Choices:\n(a) sea\n(b) tree\n(c) car\n(d) sky\n(e) bed"


def test_text_label_and_choices():
    example = to_example("train/0", ROW)
    assert (example.input, example.label) == (TEXT, "sea")
    assert example.choices == ("sea", "tree", "car", "sky", "bed")


def test_the_other_hub_dataset_gives_the_same():
    choices = {"label": ["A", "B", "C", "D", "E"], "text": ROW["choices"]}
    row = {"question": ROW["question"], "choices": choices, "answerKey": "A"}
    assert to_example("train/0", row) == to_example("train/0", ROW)
    assert to_example("test/0", {**row, "answerKey": ""}).label is None


def test_hub_rows_and_their_test_split(tmp_path):
    split = datasets.Dataset.from_list([ROW])
    datasets.DatasetDict(train=split, validation=split).save_to_disk(tmp_path / "saved")
    dataset = DATASETS["cqa"].with_arguments(source=f"disk:{tmp_path / 'saved'}")
    assert dataset.examples("test")[0].input == TEXT


def test_table_3_and_the_teachers_accuracy(shared_data):
    loaded = {split: DATASETS["cqa"].load(split, shared_data / "dss") for split in ("train", "validation", "test")}
    assert [split.counts.kept for split in loaded.values()] == [8766, 975, 1221]
    assert all(split.counts.no_rationale == 0 for split in loaded.values())
    test = loaded["test"].examples
    # Letter case apart: the teacher writes `(e) Istanbul` for the choice `istanbul`.
    assert sum(example.teacher.label == example.label for example in test) == 955
    assert loaded["train"].counts.teacher_failures == {"label_outside_set": 286, "no_label": 3}
    one = next(example for example in loaded["train"].examples if example.id == "train/0")
    assert one.label == one.teacher.label == "math problem"
    assert one.rationale.endswith("only math problem has to do with the above problem.")


def test_a_wrong_label_names_the_row(tmp_path):
    (tmp_path / "cqa").mkdir()
    datasets.Dataset.from_list([{**ROW, "answer": "pond"}]).to_parquet(tmp_path / "cqa" / "cqa_train.parquet")
    with pytest.raises(ValueError, match=r"cqa_train\.parquet, row train/0: the label 'pond' is not one of 'sea'"):
        DATASETS["cqa"].load("train", tmp_path)
