"""Labelled files: both formats give back what was written, whole or not at all."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsbs_jax.schema import TeacherOutput
from dsbs_jax.teacher.labelled import FORMATS, labelled_file, output_of, read_labelled, write_labelled


def row(number: int, **fields) -> dict:
    return {
        "id": f"train/{number}",
        "input": f"What is {number}?",
        "label": "a",
        "answers": ["because. The answer is a", ""],
        "rationale": "because.",
        "teacher_label": "a",
        "failure": None,
        "agreement": 1,
        "samples": 2,
        "prompt_tokens": 12,
        "completion_tokens": 7,
    } | fields


@pytest.mark.parametrize("suffix", FORMATS)
def test_round_trip(tmp_path, suffix):
    rows = [row(0), row(1, label=None, rationale=None, teacher_label=None, failure="no_marker", answers=[])]
    path = tmp_path / f"train.{suffix}"
    assert write_labelled(path, iter(rows)) == 2
    assert list(read_labelled(path)) == rows
    assert labelled_file(tmp_path, "train") == path
    assert labelled_file(tmp_path, "test") is None
    assert [output_of(r) for r in rows] == [
        TeacherOutput("because.", "a", None),
        TeacherOutput(None, None, "no_marker"),
    ]


@given(text=st.text(st.characters(codec=None), max_size=20))
def test_any_text_survives_json_lines(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("rows") / "train.jsonl"
    write_labelled(path, [row(0, answers=[text], rationale=text)])
    assert next(read_labelled(path))["answers"] == [text]


def test_half_a_surrogate_pair_does_not_stop_parquet(tmp_path):
    write_labelled(tmp_path / "train.parquet", [row(0, rationale="\ud83d", answers=["\ud83d"])])
    assert next(read_labelled(tmp_path / "train.parquet"))["rationale"] == "?"


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_file_that_could_not_be_finished_leaves_the_old_one(tmp_path, suffix):
    path = tmp_path / f"train.{suffix}"
    write_labelled(path, [row(0)])

    def broken():
        yield row(1)
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError, match="the source broke"):
        write_labelled(path, broken())
    assert list(read_labelled(path)) == [row(0)]
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_line_that_is_no_row_is_named(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps(row(0)) + "\n" + json.dumps({"id": "train/1"}) + "\n")
    with pytest.raises(ValueError, match=r"train\.jsonl, line 2: this is no row of a labelled dataset"):
        list(read_labelled(path))


def test_a_parquet_file_that_is_something_else_is_named(tmp_path):
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "train.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"question": ["x"], "input": ["y"]}), path)
    with pytest.raises(ValueError, match=r"train\.parquet is no labelled dataset: it has no column id, rationale"):
        next(read_labelled(path))
