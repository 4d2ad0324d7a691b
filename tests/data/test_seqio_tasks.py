"""The registered tasks in stock SeqIO, and tokens equal to those of the vocabulary without TensorFlow."""

import json
import os
import pathlib
import subprocess
import sys
import textwrap

import pytest

from dsbs_jax.tasks.bestiary import VOCABULARY_PATH

# Follows `import dsbs_jax.tasks`, and uses nothing else of this package.
STOCK = """
    import seqio
    lengths = {"inputs": 64, "targets": 32}
    for name in seqio.MixtureRegistry.names():
        assert name.startswith("dsbs_"), name
    assert len(seqio.MixtureRegistry.names()) == 6 and len(seqio.TaskRegistry.names()) == 12

    def packed(name, split="train"):
        task = seqio.get_mixture_or_task(name)
        dataset = task.get_dataset(lengths, split, shuffle=True, seed=1, num_epochs=1)
        return list(seqio.EncDecFeatureConverter(pack=True)(dataset, lengths).as_numpy_iterator())

    for name in ("dsbs_esnli", "dsbs_esnli_label", "dsbs_esnli_rationale", "dsbs_bestiary"):
        rows = packed(name)
        assert rows[0]["encoder_input_tokens"].shape == (64,)
        assert rows[0]["decoder_target_tokens"].shape == (32,)
        assert max(row["encoder_segment_ids"].max() for row in rows) > 1, name

    def evaluate(name, predict):
        evaluator = seqio.Evaluator(
            mixture_or_task_name=name, feature_converter=seqio.EncDecFeatureConverter(pack=False),
            eval_split="test", sequence_length=lengths)
        metrics, _ = evaluator.evaluate(
            compute_metrics=True, step=0, predict_fn=predict, score_fn=lambda dataset, **_: [])
        return metrics.result()

    def oracle(dataset, *_, **__):
        return [(int(i), row["decoder_target_tokens"].tolist()) for i, row in dataset.as_numpy_iterator()]

    def mute(dataset, *_, **__):
        return [(int(i), [1]) for i, _ in dataset.as_numpy_iterator()]

    assert evaluate("dsbs_esnli", oracle) == {
        "dsbs_esnli_label": {"accuracy": 1.0}, "dsbs_esnli_rationale": {"word_f1": 1.0}}
    assert evaluate("dsbs_esnli_label", mute)["dsbs_esnli_label"] == {"accuracy": 0.0}
    print("fine")
"""


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """A folder with a tiny e-SNLI in the reference's layout."""
    root = tmp_path_factory.mktemp("data")
    (root / "esnli" / "llm").mkdir(parents=True)
    for split, count in (("train", 40), ("valid", 5), ("test", 7)):
        rows = [{"premise": f"What does a {i}?", "hypothesis": "It eats moss.", "label": i % 3} for i in range(count)]
        answers = [f"It is {i}.\nAnswer: {('entailment', 'neutral')[i % 2]}\n\nPremise" for i in range(count)]
        answers[1] = "cut off"
        (root / "esnli" / f"esnli_{split}.json").write_text("\n".join(map(json.dumps, rows)))
        (root / "esnli" / "llm" / f"{split}_CoT_0.json").write_text(json.dumps(answers))
    return root


def run_python(code: str, data_dir: pathlib.Path, tmp_path: pathlib.Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=tmp_path,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "DSBS_DATA_DIR": str(data_dir), **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def test_stock_seqio_after_nothing_but_the_import(data_dir, tmp_path):
    code = "import dsbs_jax.tasks\n" + textwrap.dedent(STOCK)
    assert "fine" in run_python(code, data_dir, tmp_path, DSBS_VOCABULARY=VOCABULARY_PATH)


@pytest.mark.slow
def test_seqio_may_come_first(data_dir, tmp_path):
    code = """
        import seqio
        import dsbs_jax.tasks
        print(len(seqio.MixtureRegistry.names()))
    """
    assert run_python(code, data_dir, tmp_path) == "6\n"


def test_importing_the_tasks_loads_neither_seqio_nor_tensorflow(data_dir, tmp_path):
    code = """
        import sys
        from dsbs_jax.tasks import DATASETS
        assert len(DATASETS["bestiary"].examples("test")) > 10
        print(sorted({"seqio", "tensorflow"} & set(sys.modules)))
    """
    assert run_python(code, data_dir, tmp_path) == "[]\n"


# What a parser, a teacher or a user may put into a text.
TEXTS = [
    "A dog runs.</s>A pet moves.",
    "</s>",
    "",
    "a</s></s>b",
    "</s>what does a grolbek eat?",
    "two  spaces\nand\ta tab ",
    "Schrödinger's ∑ 猫 \u2028 e\u0301",
    "1/2 (3.0 + 4.0)",
]


def test_tokens_equal_those_made_without_tensorflow():
    import seqio
    import tensorflow as tf

    from dsbs_jax.data import seqio_tasks
    from dsbs_jax.data.vocabulary import Vocabulary

    ours = Vocabulary(VOCABULARY_PATH, extra_ids=100)
    theirs = seqio.SentencePieceVocabulary(VOCABULARY_PATH, extra_ids=100)
    assert theirs.vocab_size == ours.size
    expected = [ours.encode(text) for text in TEXTS]
    assert [seqio_tasks.encode(tf.constant(text), theirs).numpy().tolist() for text in TEXTS] == expected
    assert seqio_tasks.encode(tf.constant(TEXTS), theirs).to_list() == expected


def test_tokens_equal_on_real_rows(shared_data):
    import seqio
    import tensorflow as tf

    from dsbs_jax.data import seqio_tasks
    from dsbs_jax.data.vocabulary import Vocabulary
    from dsbs_jax.tasks import DATASETS

    path = str(shared_data / "vocab" / "spiece.model")
    ours, theirs = Vocabulary(path), seqio.SentencePieceVocabulary(path, extra_ids=100)
    texts = []
    for name in ("cqa", "svamp", "esnli"):
        examples = DATASETS[name].examples("test", shared_data / "dss")[:1000]
        texts += [text for e in examples for text in (e.input, e.label, e.rationale) if text]
    assert seqio_tasks.encode(tf.constant(texts), theirs).to_list() == [ours.encode(text) for text in texts]


def test_rows_of_a_task():
    from dsbs_jax.data import seqio_tasks
    from dsbs_jax.schema import Example, TaskFormat, TeacherOutput

    examples = [
        Example("train/0", "one", "a", TeacherOutput("why", "b")),
        Example("train/1", "two", "a", TeacherOutput(None, "b", "no_rationale")),
        Example("train/2", "three", "a"),
    ]
    label = TaskFormat("label", "predict: ")
    rationale = TaskFormat("rationale", "explain: ", target="{rationale}")
    train = seqio_tasks.render_rows(examples, label, "teacher", train=True)
    assert (train["row"], train["targets"]) == ([0, 1], ["b", "b"])
    # Students are judged by the gold labels, whoever labelled their training rows.
    assert seqio_tasks.render_rows(examples, label, "teacher", train=False)["targets"] == ["a", "a", "a"]
    assert seqio_tasks.render_rows(examples, rationale, "gold", train=False) == {
        "inputs": ["explain: one", "explain: two", "explain: three"],
        "targets": ["why", "", ""],
        "row": [0, 1, 2],
        "has_target": [True, False, False],
    }


def test_words_shared():
    from dsbs_jax.data import seqio_tasks

    assert seqio_tasks.word_f1(["a b c d", ""], ["a b x y", ""]) == {"word_f1": 0.75}
    assert seqio_tasks.word_f1(["a a"], ["a b"]) == {"word_f1": 0.5}


def test_settings_come_from_gin_or_the_environment(monkeypatch, tmp_path):
    import gin

    from dsbs_jax.data import seqio_tasks

    monkeypatch.setenv("DSBS_DATA_DIR", str(tmp_path))
    monkeypatch.delenv("DSBS_VOCABULARY", raising=False)
    assert seqio_tasks.seqio_settings() == (str(tmp_path), seqio_tasks.PUBLIC_T5_VOCABULARY)
    with gin.unlock_config():
        gin.bind_parameter("dsbs.seqio_settings.data_dir", "/elsewhere")
        gin.bind_parameter("dsbs.seqio_settings.vocabulary", "my.model")
    try:
        assert seqio_tasks.seqio_settings() == ("/elsewhere", "my.model")
    finally:
        gin.clear_config()
