"""The command line as a person meets it first: help, typing errors, datasets to look at."""

import json
import pathlib
import subprocess
import sys
import time

import pytest

VERBS = ("demo", "data", "prepare", "label", "parse", "import", "train", "eval", "predict", "sweep", "report", "bench")


def test_help_answers_within_a_second_and_lists_the_verbs(dsbs):
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        process = dsbs("--help")
        seconds.append(time.perf_counter() - started)
    assert process.returncode == 0
    lines = process.stdout.splitlines()
    for verb in VERBS:
        assert any(line.split()[:1] == [verb] and len(line.split()) > 3 for line in lines), verb
    # The best of three: the machine may be busy with other tests.
    assert min(seconds) < 1


def test_every_verb_has_help_with_an_example(dsbs):
    for verb in VERBS:
        process = dsbs(verb, "--help")
        assert process.returncode == 0
        assert f"example: dsbs {verb}" in process.stdout


def test_the_installed_script_is_the_module():
    module = subprocess.run([sys.executable, "-m", "dsbs_jax", "--help"], capture_output=True, text=True, timeout=60)
    code = "import sys; from importlib.metadata import entry_points; sys.argv = ['dsbs', '--help']; "
    code += "next(iter(entry_points(group='console_scripts', name='dsbs'))).load()()"
    script = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert script.stdout == module.stdout


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("train", "--gin_file", "datasets/cqaa"), "Did you mean datasets/cqa.gin?"),
        (("train", "--modeldir", "x"), "unrecognized arguments: --modeldir x"),
        (("train", "--gin_file", "datasets/bestiary"), "give --gin.MODEL=... and --gin.MODEL_DIR=..."),
        (("data", "show"), "Name a dataset"),
        (("data", "stats"), "Name a dataset"),
        (("data", "show", "bestiari"), "Did you mean"),
        (("data", "check", "cqa", "--data_dir", "/nowhere", "--gin.VOCABULARY='bestiary'"), "/nowhere"),
        (("eval", "--model_dir", "/nowhere"), "/nowhere"),
        (("predict", "--model_dir", "/nowhere", "--input", "/nowhere/in.txt"), "/nowhere/in.txt"),
        (("report", "/nowhere"), "There is nothing to report in /nowhere"),
    ],
)
def test_mistakes_end_in_one_sentence(dsbs, words, sentence):
    process = dsbs(*words, input="")
    assert process.returncode in (1, 2)
    assert sentence in process.stderr.splitlines()[-1]
    assert "Traceback" not in process.stderr


def test_data_list_names_every_dataset(dsbs):
    process = dsbs("data", "list")
    assert [line.split()[0] for line in process.stdout.splitlines()] == [
        *("anli1", "asdiv", "bestiary", "cqa", "esnli", "svamp")
    ]


@pytest.mark.slow
def test_bring_your_own_needs_a_gin_file_and_nothing_else(dsbs, tmp_path):
    rows = [
        {"body": f"My {w} fails", "team": t, "why": f"{w} is {t}."} for w, t in (("card", "billing"), ("dns", "net"))
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows * 20))
    (tmp_path / "tickets.gin").write_text(
        "include 'datasets/custom.gin'\n"
        "CustomDataset.name = 'tickets'\n"
        "CustomDataset.train = 'rows.jsonl'\n"
        "CustomDataset.input = '{body}'\n"
        "CustomDataset.label = '{team}'\n"
        "CustomDataset.rationale = '{why}'\n"
        "CustomDataset.label_set = ('billing', 'net')\n"
    )
    words = ("--data_dir", tmp_path, "--gin.VOCABULARY='bestiary'", "--gin.EXTRA_IDS=0")
    process = dsbs("data", "check", tmp_path / "tickets.gin", "--json", *words)
    assert process.returncode == 0, process.stderr
    report = json.loads(process.stdout)
    assert [report[split]["kept"] for split in ("train", "validation", "test")] == [32, 4, 4]
    assert report["train"]["labels"].keys() == {"billing", "net"}

    process = dsbs(
        *(
            "train",
            "--gin_file",
            tmp_path / "tickets.gin",
            "--gin_file",
            "models/tiny",
            "--gin.T5Config.vocab_size=868",
        ),
        *(
            "--gin.TRAIN_STEPS=4",
            "--gin.BATCH_SIZE=4",
            "--gin.EVAL_BATCH_SIZE=4",
            "--model_dir",
            tmp_path / "run",
            *words,
        ),
    )
    assert process.returncode == 0, process.stderr
    assert json.loads(process.stdout)["dataset"] == "tickets"

    (tmp_path / "rows.jsonl").write_text('{"body": "x", "team": "billing", "why": "y"}\n{"body": broken\n')
    process = dsbs("data", "check", tmp_path / "tickets.gin", *words)
    assert process.returncode == 1
    assert "rows.jsonl" in process.stderr
    assert "line 2" in process.stderr


def test_prepare_makes_the_store_that_a_run_then_finds(dsbs, tmp_path):
    words = ("--gin_file", "datasets/bestiary", "--gin.DATASET_ARGUMENTS={'seed': 3}")
    stores = {"DSBS_STORE_DIR": str(tmp_path / "stores")}
    process = dsbs("prepare", *words, env=stores)
    assert process.returncode == 0, process.stderr
    store = pathlib.Path(process.stdout.strip())
    meta = json.loads((store / "meta.json").read_text())
    assert (store.parent, meta["name"]) == (tmp_path / "stores", "bestiary")
    before = sorted((path, path.stat().st_mtime_ns) for path in store.rglob("*"))
    again = dsbs("prepare", *words, env=stores)
    assert pathlib.Path(again.stdout.strip()) == store
    assert sorted((path, path.stat().st_mtime_ns) for path in store.rglob("*")) == before
    assert "Preparing" not in again.stderr
