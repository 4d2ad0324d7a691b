"""Teachers' answer files: found, ordered, joined, and refused where they are broken."""

import json

import pytest

from dsbs_jax.teacher.answers import answer_files, read_answers


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def test_files_are_joined_in_numeric_order(tmp_path):
    for number in range(12):
        write(tmp_path / "llm" / f"train_CoT_{number}.json", [f"answer {number}"])
    write(tmp_path / "llm" / "valid_CoT_0.json", ["of validation"])
    assert read_answers(tmp_path, "llm", "train") == [f"answer {number}" for number in range(12)]
    assert read_answers(tmp_path, "llm", "validation") == ["of validation"]
    assert answer_files(tmp_path, "llm", "test") == []


def test_a_teacher_may_have_a_folder_beside_the_datasets(tmp_path):
    write(tmp_path / "gpt-neox" / "cqa" / "train.json", ["a", "b"])
    assert read_answers(tmp_path / "cqa", "gpt-neox", "train") == ["a", "b"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"train_CoT_0.json": {"a": 1}}, "train_CoT_0.json holds a JSON dict"),
        ({"train_CoT_0.json": ["a", 3]}, "train_CoT_0.json, answer 1: 3 is not a string"),
        ({"train_CoT_0.json": [], "train_CoT_2.json": []}, "train_CoT_1.json is missing"),
    ],
)
def test_broken_files_are_named(tmp_path, files, message):
    for name, content in files.items():
        write(tmp_path / "llm" / name, content)
    with pytest.raises(ValueError, match=message):
        read_answers(tmp_path, "llm", "train")


def test_a_file_that_is_not_json_is_named(tmp_path):
    (tmp_path / "llm").mkdir()
    (tmp_path / "llm" / "train_CoT_0.json").write_text('["cut off', encoding="utf-8")
    with pytest.raises(ValueError, match=r"train_CoT_0\.json is not valid JSON"):
        read_answers(tmp_path, "llm", "train")
