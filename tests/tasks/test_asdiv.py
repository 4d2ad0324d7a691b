"""ASDiv: problems from XML, and which answers are a number."""

import pytest

from dsbs_jax.tasks import DATASETS
from dsbs_jax.tasks.asdiv import number


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("9 (apples)", "9"),
        ("14  (seats)", "14"),
        ("3.5 (sq. ft)", "3.5"),
        ("77", "77"),
        ("5/2", "5/2"),
        ("-(1/3)", "-(1/3)"),
        ("5 (years old); 15 (years old)", None),
        ("3:30 p.m.", None),
        ("Mrs. Hilt", None),
        ("", None),
    ],
)
def test_the_number_before_the_unit(answer, expected):
    assert number(answer) == expected


def test_splits_of_the_one_file(shared_data):
    loaded = {split: DATASETS["asdiv"].load(split, shared_data) for split in ("train", "validation", "test")}
    # 2,093 of the 2,305 answers are numbers; 10 % of those, rounded up, is test, as many validation.
    assert [split.counts.kept for split in loaded.values()] == [1673, 210, 210]
    assert sum(loaded["train"].counts.skipped.values()) == 212
    first = next(e for split in loaded.values() for e in split.examples if e.id == "train/0")
    assert first.input == (
        "Seven red apples and two green apples are in the basket.\nHow many apples are in the basket?"
    )
    assert first.label == "9"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("<ProblemSet>", r"ASDiv\.xml is not valid XML"),
        ("<A><ProblemSet><Problem><Body>b</Body></Problem></ProblemSet></A>", "problem 0: Body, Question or Answer"),
        ("<A><ProblemSet></ProblemSet></A>", "has no rows"),
    ],
)
def test_broken_files(tmp_path, content, message):
    (tmp_path / "asdiv").mkdir()
    (tmp_path / "asdiv" / "ASDiv.xml").write_text(content)
    with pytest.raises(ValueError, match=message):
        DATASETS["asdiv"].load("train", tmp_path)


def test_a_missing_file(tmp_path):
    (tmp_path / "asdiv").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no file .*ASDiv\.xml; the folder holds nothing"):
        DATASETS["asdiv"].load("train", tmp_path)
