"""The process that fills token stores, for our datasets and for anybody's SeqIO tasks."""

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from dsbs_jax.data import prepare_worker
from dsbs_jax.data.custom import CustomDataset
from dsbs_jax.data.prepare import StoreRequest
from dsbs_jax.data.store import TokenStore
from dsbs_jax.data.vocabulary import Vocabulary
from dsbs_jax.schema import make_method
from dsbs_jax.tasks.bestiary import VOCABULARY_PATH

VOCABULARY = Vocabulary(VOCABULARY_PATH, extra_ids=0)
STEP_BY_STEP = make_method("step_by_step").tasks
BESTIARY = StoreRequest("bestiary", VOCABULARY, STEP_BY_STEP, feature_lengths=(24, 10))

# A module as other people write them: text tasks with another vocabulary class of the same file, and a mixture.
FOREIGN = f"""
import functools, seqio, tensorflow as tf
VOCABULARY = seqio.SentencePieceVocabulary({VOCABULARY_PATH!r}, extra_ids=0)
FEATURES = {{k: seqio.Feature(VOCABULARY, add_eos=True) for k in ("inputs", "targets")}}
def rows(split, shuffle_files=False, seed=None, *, word, count):
    n = count if split == "train" else 2
    return tf.data.Dataset.from_tensor_slices(
        {{"inputs": tf.constant([f"{{word}} what does a wisp eat " * 3] * n, tf.string),
          "targets": tf.constant([word + " moss"] * n, tf.string)}})
def add(name, word, count, splits, features=FEATURES):
    seqio.TaskRegistry.add(
        name, source=seqio.FunctionDataSource(functools.partial(rows, word=word, count=count), splits=splits),
        preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos_after_trim],
        output_features=features)
add("their_owls", "owl", 3, ("train", "validation"))
add("their_bees", "bee", 5, ("train", "validation", "test"))
seqio.MixtureRegistry.add("their_animals", [("their_owls", 3.0), ("their_bees", 1.0)])
add("their_empty", "ant", 0, ("train",))
add("their_tests", "ant", 2, ("test",))
seqio.TaskRegistry.add("their_words", source=seqio.FunctionDataSource(
    functools.partial(rows, word="x", count=1), splits=("train",)), preprocessors=[],
    output_features={{"targets": FEATURES["targets"]}})
"""


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    folder = tmp_path_factory.mktemp("their_code")
    (folder / "foreign_registry.py").write_text(FOREIGN)
    sys.path.insert(0, str(folder))
    yield StoreRequest("their_animals", VOCABULARY, module="foreign_registry", feature_lengths=(8, 6))
    sys.path.remove(str(folder))


def prepare(request, root):
    return TokenStore.open(prepare_worker.prepare(request, root, "key"))


def test_rows_of_all_tasks_belong_to_one_example(tmp_path):
    store = prepare(BESTIARY, tmp_path)
    assert store.meta.tasks == ("label", "rationale")
    assert store.meta.splits == {"train": 960, "validation": 240, "test": 240}
    assert store.meta.streams == ()
    split = store.split("train")
    for index in (0, 500, 959):
        (example,) = split.examples([index])
        pairs = {
            ("label", "inputs"): "predict: " + example["input"],
            ("label", "targets"): example["label"],
            ("rationale", "inputs"): "explain: " + example["input"],
            ("rationale", "targets"): example["rationale"],
        }
        for (task, feature), text in pairs.items():
            limit = 24 if feature == "inputs" else 10
            ids = [*VOCABULARY.encode(text), 1]
            ids = ids if len(ids) <= limit else [*ids[: limit - 1], 1]
            assert split.tokens(task, feature, index).tolist() == ids
    cut = int((split.lengths("rationale", "targets") == 10).sum())
    assert 0 < store.meta.counts["train"]["rationale targets truncated to 10 tokens"] <= cut


def rows_file(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_missing_targets_leave_the_example_and_its_input(tmp_path):
    rows = [{"input": f"wisp {i}", "label": "moss", "why": "so" if i % 4 else None} for i in range(8)]
    for split in ("train", "test"):
        rows_file(tmp_path / f"{split}.jsonl", rows)
    custom = CustomDataset("x", "train.jsonl", "test.jsonl", "test.jsonl", rationale="{why}")
    request = StoreRequest("x", VOCABULARY, STEP_BY_STEP, custom=custom, data_dir=str(tmp_path))
    store = prepare(request, tmp_path / "stores")
    train, test = store.split("train"), store.split("test")
    assert train.lengths("rationale", "inputs")[4] == 0
    assert (train.lengths("label", "targets") > 0).all()
    # An evaluation split keeps every input; where the target is missing it has no tokens.
    assert test.lengths("rationale", "inputs")[4] > 0
    assert test.lengths("rationale", "targets")[4] == 0
    assert store.meta.counts["train"] == {"teacher's answer: no_rationale": 2, "without a rationale target": 2}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "bestiaryy"}, "no dataset, SeqIO task or mixture 'bestiaryy'; did you mean .*bestiary"),
        ({"module": "no_such_module"}, "The module 'no_such_module' of 'bestiary' cannot be imported"),
        ({"tasks": ()}, "names no tasks"),
        ({"dataset_arguments": (("rowz", 3),)}, "no argument 'rowz'; its arguments are: attributes"),
        ({"name": "cqa"}, "needs a data folder: give --data_dir"),
        ({"name": "cqa", "data_dir": "/no/such"}, "There is no folder /no/such/cqa"),
        ({"teacher": None}, "none of the 960 train rows has a rationale, which the task 'rationale' needs"),
    ],
)
def test_what_a_user_can_mend_is_one_sentence(tmp_path, change, message):
    with pytest.raises((ValueError, OSError), match=message):
        prepare_worker.prepare(dataclasses.replace(BESTIARY, **change), tmp_path, "key")
    assert not list(tmp_path.glob("*/meta.json"))


def test_the_process_ends_with_one_sentence_on_standard_error(tmp_path):
    rows_file(tmp_path / "train.jsonl", [{"input": "a", "label": "b"}])
    (tmp_path / "train.jsonl").open("a").write("{broken\n")
    custom = CustomDataset("x", "train.jsonl")
    request = StoreRequest("x", VOCABULARY, make_method("standard").tasks, custom=custom, data_dir=str(tmp_path))
    job = {"request": request.to_json(), "root": str(tmp_path / "stores"), "key": "key"}
    done = subprocess.run(
        [sys.executable, "-m", "dsbs_jax.data.prepare_worker"],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        check=False,
        env=dict(os.environ),
    )
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"{tmp_path}/train.jsonl, line 2: this is not valid JSON (Expecting property name enclosed in double quotes, "
        "column 2); every line must hold one JSON object."
    ]


def test_sub_tasks_of_a_foreign_mixture_are_streams_with_rates(tmp_path, foreign):
    store = prepare(foreign, tmp_path)
    assert store.meta.tasks == ("label",)
    assert store.meta.splits == {"train": 8, "validation": 4, "test": 2}
    assert [(stream.name, stream.rate, stream.sizes) for stream in store.meta.streams] == [
        ("their_bees", 1.0, {"train": 5, "validation": 2, "test": 2}),
        ("their_owls", 3.0, {"train": 3, "validation": 2, "test": 0}),
    ]
    train = store.split("train")
    assert train.lengths("label", "inputs").tolist() == [8] * 8
    assert train.tokens("label", "inputs", 0)[-1] == 1
    targets = [VOCABULARY.decode(train.tokens("label", "targets", row)) for row in (4, 5)]
    assert [example["label"] for example in train.examples([4, 5])] == ["bee moss", "owl moss"]
    assert targets == [VOCABULARY.decode(VOCABULARY.encode(text)[:5]) for text in ("bee moss", "owl moss")]
    assert train.examples([5])[0]["id"] == "their_owls/train/0"


def test_a_single_foreign_task_is_one_stream(tmp_path, foreign):
    store = prepare(dataclasses.replace(foreign, name="their_bees"), tmp_path)
    assert [(stream.name, stream.rate) for stream in store.meta.streams] == [("their_bees", 1.0)]
    assert store.meta.splits["train"] == 5


def test_our_own_registered_tasks_count_as_foreign_ones(tmp_path):
    store = prepare(dataclasses.replace(BESTIARY, name="dsbs_bestiary_label"), tmp_path)
    assert store.meta.splits == {"train": 960, "validation": 240, "test": 240}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "their_empty"}, "The split 'train' of 'their_empty' is empty"),
        ({"name": "their_tests"}, "'their_tests' has no split 'train'; its splits are test"),
        ({"name": "their_words"}, "'their_words' has no feature 'inputs'; it has targets"),
        ({"name": "their_animal"}, "did you mean their_animals or"),
    ],
)
def test_foreign_tasks_that_cannot_be_used(tmp_path, foreign, change, message):
    with pytest.raises(ValueError, match=message):
        prepare_worker.prepare(dataclasses.replace(foreign, **change), tmp_path, "key")


def test_a_foreign_task_with_another_vocabulary_is_refused(tmp_path, foreign, shared_data):
    other = Vocabulary(str(shared_data / "vocab" / "spiece.model"))
    with pytest.raises(ValueError, match=r"The vocabulary of the SeqIO task 'their_bees' has .* as id \d+"):
        prepare_worker.prepare(dataclasses.replace(foreign, vocabulary=other), tmp_path, "key")


def test_trimming_keeps_the_end_of_sequence():
    rows = prepare_worker.Ragged(np.array([5, 6, 7, 1, 8, 1]), np.array([0, 4, 6]))
    assert [ids.tolist() for ids, _ in (rows.trimmed(0, 3), rows.trimmed(1, 3))] == [[5, 6, 1], [8, 1]]
    assert [cut for _, cut in (rows.trimmed(0, 3), rows.trimmed(0, 4))] == [True, False]


def test_answers_in_a_folder_beside_the_datasets_are_part_of_the_key(tmp_path):
    request = dataclasses.replace(BESTIARY, name="cqa", data_dir=str(tmp_path), teacher="gpt-neox")
    keys = [request.key()]
    (tmp_path / "gpt-neox" / "cqa").mkdir(parents=True)
    for answers in ('["a"]', '["b"]'):
        (tmp_path / "gpt-neox" / "cqa" / "train.json").write_text(answers)
        keys.append(request.key())
    assert len(set(keys)) == 3
