"""What holds for every dataset: teacher join, hold-out, label sets, and the account of every row."""

import dataclasses
import json

import pytest

from dsbs_jax.data.accounts import NOTHING_TO_LEARN
from dsbs_jax.data.dataset import LABEL_OUTSIDE_SET, Dataset, Rows
from dsbs_jax.schema import Example, TeacherOutput
from dsbs_jax.teacher.filters import Filter
from dsbs_jax.teacher.labelled import write_labelled
from dsbs_jax.teacher.noise import MISSING, WRONG, RationaleNoise
from dsbs_jax.teacher.parsers import MarkerParser


def read(split, data_dir, *, rows: int = 20, fraction: float = 1.0):
    examples = [Example(f"{split}/{i}", f"input {i}", "ab"[i % 2]) for i in range(rows)]
    return Rows(examples, f"{split}.json", data_dir, split)


TOY = Dataset("toy", read, label_set=("a", "b"), parse=MarkerParser("So", label="rest"))


def write_answers(folder, split, answers, teacher="llm", number=0):
    (folder / teacher).mkdir(exist_ok=True)
    (folder / teacher / f"{split}_CoT_{number}.json").write_text(json.dumps(answers))


def test_answers_join_their_rows_and_failures_are_counted(tmp_path):
    write_answers(tmp_path, "train", ["why So A", "no marker", "why So c", "So b"])
    loaded = TOY.with_arguments(rows=4).load("train", tmp_path)
    assert [example.teacher for example in loaded.examples] == [
        TeacherOutput("why", "a"),  # spelled as the label set spells it
        TeacherOutput(None, None, "no_marker"),
        TeacherOutput("why", None, LABEL_OUTSIDE_SET),
        TeacherOutput(None, "b", "no_rationale"),
    ]
    counts = loaded.counts
    assert counts.teacher_failures == {"no_marker": 1, LABEL_OUTSIDE_SET: 1, "no_rationale": 1}
    assert (counts.rows, counts.kept, counts.no_rationale, counts.no_teacher_label) == (4, 4, 2, 2)
    # Gold is a, b, a, b: what could not be read is wrong.
    assert (counts.teacher_judged, counts.teacher_right) == (4, 2)


def test_another_number_of_answers_names_both_numbers_and_the_files(tmp_path):
    write_answers(tmp_path, "train", ["x"] * 3)
    write_answers(tmp_path, "train", ["x"] * 2, number=1)
    with pytest.raises(ValueError, match=r"train\.json has 4 rows.* hold 5 answers .*CoT_0\.json, .*CoT_1\.json"):
        TOY.with_arguments(rows=4).load("train", tmp_path)


def test_the_teacher_can_be_another_or_none(tmp_path):
    write_answers(tmp_path, "train", ["why So a"] * 20)
    write_answers(tmp_path, "train", ["because So b"] * 20, teacher="gpt-neox")
    assert TOY.examples("train", tmp_path, teacher="gpt-neox")[0].teacher == TeacherOutput("because", "b")
    assert TOY.examples("train", tmp_path, teacher=None)[0].teacher is None
    assert TOY.examples("test", tmp_path, teacher="gpt-neox")[0].teacher is None
    with pytest.raises(FileNotFoundError, match=r"no answers of the teacher 'gpt-3' .*; folders there: gpt-neox, llm"):
        TOY.load("train", tmp_path, teacher="gpt-3")


def test_hold_out_is_a_rounded_up_share_by_seed_that_keeps_rows_with_their_answers(tmp_path):
    write_answers(tmp_path, "train", [f"why {i} So {'ab'[i % 2]}" for i in range(31)])
    dataset = dataclasses.replace(TOY, source_splits=("train", "test")).with_arguments(rows=31)
    splits = {split: dataset.examples(split, tmp_path) for split in ("train", "validation")}
    assert (len(splits["train"]), len(splits["validation"])) == (27, 4)
    ids = [[example.id for example in examples] for examples in splits.values()]
    assert sorted(ids[0] + ids[1]) == sorted(f"train/{i}" for i in range(31))
    assert ids[0] == sorted(ids[0], key=lambda name: int(name.split("/")[1]))
    for examples in splits.values():
        for example in examples:
            assert example.rationale == f"why {example.id.split('/')[1]}"
    others = [example.id for example in dataset.examples("validation", tmp_path, holdout_seed=1)]
    assert others != ids[1]
    assert len(dataset.examples("test", tmp_path)) == 31


def test_a_missing_test_split_is_held_out_the_same_for_every_seed():
    dataset = dataclasses.replace(TOY, source_splits=("train",)).with_arguments(rows=100)
    tests = [dataset.examples("test", None, holdout_seed=seed) for seed in (0, 1)]
    assert tests[0] == tests[1]
    parts = [{example.id for example in dataset.examples(split)} for split in ("train", "validation", "test")]
    assert [len(part) for part in parts] == [80, 10, 10]
    assert len(set.union(*parts)) == 100


@pytest.mark.parametrize(
    ("change", "example", "message"),
    [
        ({}, Example("train/17", "x", "c"), r"f\.json, row train/17: the label 'c' is not one of 'a', 'b'"),
        ({}, Example("train/2", "x", "A"), "the label 'A' is not"),
        ({"label_set": ()}, Example("train/3", "x", "c", choices=("d", "e")), "is not one of 'd', 'e'"),
        ({"metric": "equation"}, Example("train/4", "x", "3 apples"), "not an expression that has a value"),
    ],
)
def test_gold_labels_outside_the_set_name_file_and_row(change, example, message):
    dataset = dataclasses.replace(TOY, read=lambda split, data_dir: Rows([example], "f.json"), **change)
    with pytest.raises(ValueError, match=message):
        dataset.load("train")


def test_labels_compared_by_value_need_a_value():
    output = TeacherOutput("why", "(3 + x)")
    rows = Rows([Example("train/0", "x", "( 3.0 + 4.0 )", output)], "f.json")
    dataset = Dataset("toy", lambda split, data_dir: rows, metric="equation")
    assert dataset.examples("train")[0].teacher == TeacherOutput("why", None, LABEL_OUTSIDE_SET)


def test_rows_that_serve_nothing_are_counted_not_silently_dropped():
    teacher = TeacherOutput("why", "a")
    examples = [Example("train/0", "x", "a"), Example("train/1", "x", None), Example("train/2", "x", None, teacher)]
    dataset = Dataset("toy", lambda split, data_dir: Rows(examples, "f.json", skipped={"too old": 3}))
    train = dataset.load("train")
    assert [example.id for example in train.examples] == ["train/0", "train/2"]
    assert train.counts.skipped == {"too old": 3, NOTHING_TO_LEARN: 1}
    assert (train.counts.rows, train.counts.unlabelled) == (6, 1)
    assert [example.id for example in dataset.examples("test")] == ["train/0"]


def test_extra_inputs_join_train_alone_and_lose_their_labels(tmp_path):
    write_answers(tmp_path, "train", ["why So a"] * 10)
    (tmp_path / "more").mkdir()
    write_answers(tmp_path / "more", "train", ["why So a", "nothing", "why So b"])
    extra = Rows([Example(f"more/{i}", "x", "a") for i in range(3)], "more.json", tmp_path / "more")
    dataset = dataclasses.replace(
        TOY,
        read=lambda split, data_dir: dataclasses.replace(read(split, data_dir, rows=10), extra=extra),
        source_splits=("train", "test"),
    )
    train = dataset.load("train", tmp_path)
    assert [(e.id, e.label, e.teacher.label) for e in train.examples[9:]] == [
        ("more/0", None, "a"),
        ("more/2", None, "b"),
    ]
    assert train.counts.skipped == {NOTHING_TO_LEARN: 1}
    assert len(dataset.examples("validation", tmp_path)) == 1


def test_empty_and_unknown_splits():
    with pytest.raises(ValueError, match=r"the split 'train' in train\.json has no rows"):
        TOY.with_arguments(rows=0).load("train")
    with pytest.raises(ValueError, match="There is no split 'dev'; the splits are train, validation, test"):
        TOY.load("dev")
    with pytest.raises(ValueError, match="must hold 'train'"):
        dataclasses.replace(TOY, source_splits=("test",))


def test_arguments_are_those_of_read():
    assert TOY.argument_defaults() == {"rows": 20, "fraction": 1.0}
    assert len(TOY.with_arguments((("rows", 3),), fraction=1).examples("train")) == 3
    with pytest.raises(ValueError, match="no argument 'row'; its arguments are: fraction, rows"):
        TOY.with_arguments(row=3)
    with pytest.raises(ValueError, match="rows is '3'; it must be of type int"):
        TOY.with_arguments(rows="3")


def labelled(number: int, split: str = "train", **fields) -> dict:
    about = {"id": f"{split}/{number}", "input": f"input {number}", "rationale": f"why {number}", "teacher_label": "a"}
    return about | {"failure": None, "agreement": 2, "answers": []} | fields


@pytest.mark.parametrize("inside", [True, False])
def test_labelled_folders_join_by_id(tmp_path, inside):
    folder = tmp_path / "palm" if inside else tmp_path / "elsewhere" / "palm-0123456789"
    folder.mkdir(parents=True)
    # In another order, with a row missing.
    write_labelled(
        folder / "train.jsonl", [labelled(3, teacher_label="A"), labelled(0, teacher_label="z"), labelled(1)]
    )
    loaded = TOY.with_arguments(rows=4).load("train", tmp_path, teacher="palm" if inside else str(folder))
    assert [example.teacher for example in loaded.examples] == [
        TeacherOutput("why 0", None, LABEL_OUTSIDE_SET, 2),
        TeacherOutput("why 1", "a", None, 2),
        None,
        TeacherOutput("why 3", "a", None, 2),
    ]


def test_a_labelled_folder_of_another_dataset_is_refused(tmp_path):
    (tmp_path / "palm").mkdir()
    write_labelled(tmp_path / "palm" / "train.jsonl", [labelled(1, input="another question")])
    with pytest.raises(ValueError, match=r"train\.jsonl, row train/1: the input 'another question' is not that of"):
        TOY.load("train", tmp_path, teacher="palm")
    write_labelled(tmp_path / "palm" / "train.jsonl", [labelled(1, split="other")])
    with pytest.raises(ValueError, match="holds none of the rows"):
        TOY.load("train", tmp_path, teacher="palm")
    # One folder too high: nothing else may stand in for the teacher that was asked for.
    with pytest.raises(FileNotFoundError, match="holds no labelled rows of the split 'train'"):
        TOY.load("train", None, teacher=str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere/palm of a teacher"):
        TOY.load("train", tmp_path, teacher=str(tmp_path / "nowhere" / "palm"))


def test_a_filter_drops_training_rows_alone_and_counts_them(tmp_path):
    write_answers(tmp_path, "train", [f"why {i} So a" for i in range(20)])
    dataset = dataclasses.replace(TOY, source_splits=("train", "test"))
    equal = Filter(teacher_label_equals_gold=True)
    before = {split: dataset.load(split, tmp_path) for split in ("train", "validation")}
    after = {split: dataset.load(split, tmp_path, teacher_filter=equal) for split in ("train", "validation")}
    assert after["validation"] == before["validation"]
    assert after["train"].examples == [e for e in before["train"].examples if e.label == "a"]
    dropped = len(before["train"].examples) - len(after["train"].examples)
    assert dropped > 0
    assert after["train"].counts.skipped == {"teacher filter: teacher_label_differs_from_gold": dropped}
    assert after["train"].counts.rows == before["train"].counts.rows


def test_noise_spoils_rationales_of_train_alone_and_is_counted(tmp_path):
    for split in ("train", "test"):
        write_answers(tmp_path, split, [f"because {i} So a" for i in range(20)])
    noise = RationaleNoise(wrong=0.25, missing=0.1)
    clean, spoiled = TOY.load("train", tmp_path), TOY.load("train", tmp_path, rationale_noise=noise)
    pairs = list(zip(clean.examples, spoiled.examples, strict=True))
    assert sum(a.rationale != b.rationale for a, b in pairs) == 7
    assert all(a.teacher.label == b.teacher.label for a, b in pairs)
    assert spoiled.counts.noise == {WRONG: 5, MISSING: 2}
    assert (clean.counts.noise, spoiled.counts.no_rationale) == ({}, 2)
    assert TOY.examples("test", tmp_path, rationale_noise=noise) == TOY.examples("test", tmp_path)


def test_source_rows_are_what_a_teacher_is_asked(tmp_path):
    rows = TOY.source_rows("train", tmp_path)
    assert (len(rows), rows[0]) == (20, Example("train/0", "input 0", "a"))
    held_out = dataclasses.replace(TOY, source_splits=("train", "test"))
    with pytest.raises(ValueError, match=r"no split 'validation' of its own .*label train"):
        held_out.source_rows("validation", tmp_path)
