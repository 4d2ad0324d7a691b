"""`dsbs data list | show | check | stats`."""

import json

import pytest

from dsbs_jax.data import inspect
from dsbs_jax.data.custom import CustomDataset
from dsbs_jax.data.prepare import StoreRequest
from dsbs_jax.data.vocabulary import Vocabulary
from dsbs_jax.schema import make_method
from dsbs_jax.tasks.bestiary import VOCABULARY_PATH

VOCABULARY = Vocabulary(VOCABULARY_PATH, extra_ids=0)


@pytest.fixture
def request_for(tmp_path):
    """A request for three e-SNLI rows in each split, one of them with an answer that cannot be read."""
    (tmp_path / "esnli" / "llm").mkdir(parents=True)
    rows = [{"premise": "a wisp", "hypothesis": "eats moss", "label": i} for i in range(3)]
    answers = ["it eats.\nAnswer: entailment", "it may.\nAnswer: entailment", "cut off"]
    for split in ("train", "valid", "test"):
        (tmp_path / "esnli" / f"esnli_{split}.json").write_text("\n".join(map(json.dumps, rows)))
        (tmp_path / "esnli" / "llm" / f"{split}_CoT_0.json").write_text(json.dumps(answers))
    return StoreRequest("esnli", VOCABULARY, make_method("step_by_step").tasks, data_dir=str(tmp_path))


def test_list_names_every_dataset():
    lines = inspect.list_datasets().splitlines()
    assert [line.split()[0] for line in lines] == ["anli1", "asdiv", "bestiary", "cqa", "esnli", "svamp"]


def test_show_prints_texts_and_token_ids_of_every_task(request_for):
    text = inspect.show(request_for, "train", 3)
    ids = [*VOCABULARY.encode("predict: a wisp</s>eats moss"), 1]
    assert f"[label] inputs, {len(ids)} tokens: {ids}" in text
    assert "'predict: a wisp</s>eats moss</s>'" in text
    assert "'it may.</s>'" in text
    assert "teacher's answer: 'not read in full: no_marker'" in text
    assert "[rationale] has no pair" in text
    assert text.index("train/0") < text.index("train/1") < text.index("train/2")
    with pytest.raises(ValueError, match="n is 0"):
        inspect.show(request_for, "train", 0)


def test_check_accounts_for_every_row(request_for):
    report = json.loads(inspect.check(request_for, as_json=True))
    train = report["train"]
    assert (train["rows"], train["kept"], train["no_rationale"]) == (3, 3, 1)
    assert train["labels"] == {"entailment": 1, "neutral": 1, "contradiction": 1}
    assert train["teacher_failures"] == {"no_marker": 1}
    assert train["teacher_accuracy"] == pytest.approx(1 / 3)
    longest = len(VOCABULARY.encode("a wisp</s>eats moss")) + 1
    assert train["tokens"]["inputs"] == {"p50": longest, "p90": longest, "p99": longest, "max": longest}
    text = inspect.check(request_for)
    assert "train: 3 of 3 rows" in text
    assert "teacher's answer not read in full: 1 (no_marker)" in text
    assert "teacher's accuracy: 0.3333" in text


def test_stats_are_a_table_and_name_what_is_not_there(request_for):
    elsewhere = StoreRequest("cqa", VOCABULARY, data_dir=request_for.data_dir)
    table = inspect.statistics([request_for, StoreRequest("bestiary", VOCABULARY), elsewhere]).splitlines()
    assert table[2] == "| esnli | 3 | 3 | 3 | 0.3333 | 0.3333 | 0.3333 |"
    assert table[3] == "| bestiary | 960 | 240 | 240 | 1.0000 | 1.0000 | 1.0000 |"
    assert table[4].startswith("cqa: There is no folder")


def test_rationales_without_labels_have_no_accuracy(tmp_path):
    rows = [{"text": "x", "label": "a", "why": "because"}] * 20
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    custom = CustomDataset("own", "rows.jsonl", input="{text}", label="{label}", rationale="{why}")
    request = StoreRequest("own", VOCABULARY, data_dir=str(tmp_path), custom=custom)
    assert json.loads(inspect.check(request, as_json=True))["train"]["teacher_accuracy"] is None
    assert "accuracy" not in inspect.check(request)


def test_check_refuses_what_is_no_dataset(request_for):
    with pytest.raises(ValueError, match="no dataset 'esnli_label'; datasets are anli1"):
        inspect.check(StoreRequest("dsbs_esnli_label", VOCABULARY))


def test_lengths_of_the_real_data(shared_data):
    vocabulary = Vocabulary(str(shared_data / "vocab" / "spiece.model"))
    request = StoreRequest("svamp", vocabulary, data_dir=str(shared_data / "dss"))
    report = json.loads(inspect.check(request, as_json=True))
    assert max(split["tokens"]["inputs"]["max"] for split in report.values()) == 81
    assert max(split["tokens"]["rationales"]["max"] for split in report.values()) == 99
    assert report["test"]["teacher_accuracy"] == 0.74
