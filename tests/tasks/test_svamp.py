"""SVAMP: the reference's split of the original problems, equations by value, ASDiv's questions as extra inputs."""

import json

import datasets
import pytest

from dsbs_jax.tasks import DATASETS

SVAMP = DATASETS["svamp"]


@pytest.fixture
def with_asdiv(shared_data, tmp_path):
    """One data folder with svamp and asdiv, where the reference's layout has them."""
    (tmp_path / "svamp").symlink_to(shared_data / "dss" / "svamp")
    (tmp_path / "asdiv").mkdir()
    (tmp_path / "asdiv" / "ASDiv.xml").symlink_to(shared_data / "asdiv" / "ASDiv.xml")
    return tmp_path


def test_table_3_and_the_teachers_accuracy(shared_data):
    loaded = {split: SVAMP.load(split, shared_data / "dss") for split in ("train", "validation", "test")}
    assert [split.counts.kept for split in loaded.values()] == [720, 80, 200]
    from dsbs_jax.metrics.accuracy import score

    test = loaded["test"].examples
    correct = score("equation", [example.teacher.label or "" for example in test], [example.label for example in test])
    assert correct.sum() == 148
    assert loaded["test"].counts.teacher_failures == {"label_outside_set": 5, "no_marker": 2}


def test_the_original_file_and_the_hub_give_the_references_split(shared_data, tmp_path):
    original = shared_data / "dss" / "svamp" / "SVAMP.json"
    (tmp_path / "svamp").mkdir()
    (tmp_path / "svamp" / "SVAMP.json").symlink_to(original)
    problems = json.loads(original.read_text())
    # The hub's dataset holds the same problems in another order, and another split.
    hub = datasets.DatasetDict(
        train=datasets.Dataset.from_list(problems[300:]), test=datasets.Dataset.from_list(problems[:300])
    )
    hub.save_to_disk(tmp_path / "saved")
    from_hub = SVAMP.with_arguments(source=f"disk:{tmp_path / 'saved'}")
    for split in ("train", "validation", "test"):
        expected = SVAMP.examples(split, shared_data / "dss", teacher=None)
        assert SVAMP.examples(split, tmp_path, teacher=None) == expected
        assert from_hub.examples(split, None) == expected


def test_asdiv_adds_unlabelled_inputs_that_only_a_teacher_makes_useful(with_asdiv):
    extended = SVAMP.with_arguments(extra_inputs="asdiv")
    without_answers = extended.load("train", with_asdiv)
    assert without_answers.counts.kept == 720
    assert sum(without_answers.counts.skipped.values()) == 2305

    (with_asdiv / "asdiv" / "llm").mkdir()
    answers = ["There are 7 + 2 = 9. The answer is (7 + 2)."] * 2304 + ["no idea"]
    (with_asdiv / "asdiv" / "llm" / "train_CoT_0.json").write_text(json.dumps(answers))
    train = extended.load("train", with_asdiv)
    assert (train.counts.kept, train.counts.unlabelled) == (720 + 2304, 2304)
    extra = train.examples[720]
    assert (extra.id, extra.label, extra.target_label("teacher")) == ("asdiv/0", None, "(7 + 2)")
    assert extra.input.startswith("Seven red apples and two green apples are in the basket.\nHow many apples")
    assert len(extended.examples("validation", with_asdiv)) == 80


def test_what_can_be_wrong(tmp_path):
    with pytest.raises(ValueError, match="extra_inputs is 'gsm8k'; it must be 'asdiv' or empty"):
        SVAMP.with_arguments(extra_inputs="gsm8k").load("train", tmp_path)
    (tmp_path / "svamp").mkdir()
    with pytest.raises(FileNotFoundError, match="has no split 'train'"):
        SVAMP.load("train", tmp_path)
    (tmp_path / "svamp" / "SVAMP.json").write_text('[{"Body": "b", "Question": "q", "Equation": "1"}]')
    with pytest.raises(ValueError, match="no column ID with values like 'chal-17'"):
        SVAMP.load("train", tmp_path)
