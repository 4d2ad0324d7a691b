"""Somebody else's SeqIO task trains by module and name."""

import json

import pytest

MODULE = """
import functools
import seqio
import tensorflow as tf
from dsbs_jax.tasks.bestiary import VOCABULARY_PATH

vocabulary = seqio.SentencePieceVocabulary(VOCABULARY_PATH, extra_ids=0)
feature = seqio.Feature(vocabulary, add_eos=True)


def rows(split, shuffle_files=False, seed=None):
    count = {"train": 24, "validation": 6}[split]
    return tf.data.Dataset.from_tensor_slices(
        {"inputs": [f"is {i} even?" for i in range(count)], "targets": [["yes", "no"][i % 2] for i in range(count)]}
    )


for name in ("theirs_one", "theirs_two"):
    seqio.TaskRegistry.add(
        name,
        source=seqio.FunctionDataSource(rows, splits=("train", "validation")),
        preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
        output_features={"inputs": feature, "targets": feature},
        metric_fns=[],
    )
seqio.MixtureRegistry.add("theirs", [("theirs_one", 3.0), ("theirs_two", 1.0)])
"""


@pytest.mark.slow
def test_a_foreign_mixture_without_a_test_split_trains(dsbs, tmp_path):
    (tmp_path / "their_tasks.py").write_text(MODULE)
    words = (
        *("train", "--gin_file", "datasets/bestiary", "--gin_file", "models/tiny", "--model_dir", tmp_path / "run"),
        *("--gin.MIXTURE_OR_TASK_MODULE='their_tasks'", "--gin.MIXTURE_OR_TASK_NAME='theirs'"),
        *("--gin.TRAIN_STEPS=4", "--gin.BATCH_SIZE=4", "--gin.EVAL_BATCH_SIZE=4"),
        "--gin.TASK_FEATURE_LENGTHS={'inputs': 32, 'targets': 8}",
    )
    refused = dsbs(*words, env={"PYTHONPATH": str(tmp_path)})
    assert refused.returncode == 1
    assert "give --gin_file methods/standard" in refused.stderr.splitlines()[-1]

    process = dsbs(*words, "--gin_file", "methods/standard", env={"PYTHONPATH": str(tmp_path)})
    assert process.returncode == 0, process.stderr
    result = json.loads(process.stdout)
    assert (result["dataset"], result["test_accuracy"]) == ("theirs", None)
    assert 0 <= result["validation_accuracy"] <= 1
    assert not (tmp_path / "run" / "predictions_test.jsonl").exists()
