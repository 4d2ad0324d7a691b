"""ANLI round 1: its own folder, its own hub splits, its own rule for the teacher's answers."""

import json

import datasets

from dsbs_jax.schema import TeacherOutput
from dsbs_jax.tasks import DATASETS

ROW = {"uid": "u", "premise": "p", "hypothesis": "h", "label": 2, "reason": "r"}


def test_files_of_the_reference_layout(tmp_path):
    folder = tmp_path / "anli1"
    (folder / "llm").mkdir(parents=True)
    for split in ("train", "valid", "test"):
        (folder / f"anli1_{split}.json").write_text(json.dumps(ROW))
    (folder / "llm" / "train_CoT_0.json").write_text(
        json.dumps(["It differs. So the answer is contradiction.\n\nPremise: next"])
    )
    train = DATASETS["anli1"].examples("train", tmp_path)[0]
    assert (train.input, train.label) == ("p</s>h", "contradiction")
    assert train.teacher == TeacherOutput("It differs.", "contradiction")
    assert DATASETS["anli1"].examples("validation", tmp_path)[0].id == "validation/0"


def test_the_hub_names_round_1_in_its_splits(tmp_path):
    rows = datasets.Dataset.from_list([ROW])
    datasets.DatasetDict(train_r1=rows, dev_r1=rows, test_r1=rows, train_r2=rows).save_to_disk(tmp_path / "saved")
    dataset = DATASETS["anli1"].with_arguments(source=f"disk:{tmp_path / 'saved'}")
    for split in ("train", "validation", "test"):
        assert dataset.examples(split)[0].label == "contradiction"
