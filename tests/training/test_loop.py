"""The training job as a user runs it: through the command line, in its own process, killed and started again."""

import json
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from dsbs_jax import cli
from dsbs_jax.data.folders import held
from dsbs_jax.experiments import results
from dsbs_jax.files import write_whole

# A student so small that compiling it is what takes the time.
RUN = (
    "train",
    *("--gin_file", "datasets/bestiary", "--gin_file", "models/tiny"),
    *(
        f"--gin.{binding}"
        for binding in (
            "T5Config.d_model=16",
            "T5Config.d_ff=16",
            "TASK_FEATURE_LENGTHS={'inputs': 32, 'targets': 32}",
            "TRAIN_STEPS=24",
            "BATCH_SIZE=8",
            "LEARNING_RATE=0.01",
            "EVAL_PERIOD=8",
            "LOG_PERIOD=2",
            "EVAL_BATCH_SIZE=120",
            "TrainConfig.max_decode_length=4",
        )
    ),
)


def weights(folder: pathlib.Path, step: int) -> dict[str, np.ndarray]:
    """Every array of a checkpoint, weights and optimiser state, by name."""
    import jax
    from orbax.checkpoint import v1 as ocp

    loaded = ocp.load_checkpointables(folder / "checkpoints" / str(step))
    leaves = jax.tree_util.tree_leaves_with_path({name: loaded[name] for name in ("params", "optimizer")})
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def lines(path: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(dsbs, tmp_path_factory) -> pathlib.Path:
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    process = dsbs(*RUN, "--model_dir", folder)
    assert process.returncode == 0, process.stderr
    (folder / "stdout").write_text(process.stdout)
    (folder / "stderr").write_text(process.stderr)
    return folder


def test_a_run_leaves_its_result_metrics_predictions_and_configuration(finished):
    result = json.loads((finished / "stdout").read_text())
    assert result == json.loads((finished / "summary.json").read_text())["result"]
    assert list(result) == [
        *("dataset", "method", "label_source", "fraction", "seed", "validation_accuracy", "test_accuracy"),
        *("test_accuracy_last", "selected_step", "steps", "seconds"),
    ]
    assert (result["dataset"], result["method"], result["steps"]) == ("bestiary", "step_by_step", 24)

    metrics = lines(finished / "metrics.jsonl")
    evaluations = {line["step"]: line["validation/accuracy"] for line in metrics if "validation/accuracy" in line}
    assert sorted(evaluations) == [8, 16, 24]
    best = max(evaluations, key=lambda step: (evaluations[step], -step))
    assert (result["selected_step"], result["validation_accuracy"]) == (
        best,
        pytest.approx(evaluations[best], abs=1e-6),
    )
    training = [line for line in metrics if "loss" in line]
    assert [line["step"] for line in training] == list(range(2, 25, 2))
    wanted = {"loss/label", "loss/rationale", "tokens_per_second", "padding/encoder", "padding/decoder"}
    wanted |= {"learning_rate", "grad_norm", "seconds/step", "seconds/data", "seconds/compute"}
    assert wanted <= training[0].keys()
    assert training[-1]["loss"] < training[0]["loss"]
    assert list((finished / "tensorboard").glob("events.*"))

    for split, accuracy in (("validation", "validation_accuracy"), ("test", "test_accuracy")):
        rows = lines(finished / f"predictions_{split}.jsonl")
        assert np.mean([row["correct"] for row in rows]) == pytest.approx(result[accuracy])
        assert all(row["correct"] == (row["prediction"] == row["label"]) for row in rows)
    assert "TRAIN_STEPS = 24" in (finished / "config.gin").read_text()
    assert "TRAIN_STEPS = 24" in (finished / "stderr").read_text()


def test_training_imports_no_tensorflow(environment, finished, tmp_path):
    script = (
        "import sys; from dsbs_jax.cli import main; code = main(sys.argv[1:]); "
        "heavy = {'tensorflow', 'seqio', 'tensorflow_text', 'torch', 'transformers', 'pandas', 'pyarrow', 'datasets'}; "
        "print(sorted(heavy"
        " & {name.partition('.')[0] for name in sys.modules})); sys.exit(code)"
    )
    process = subprocess.run(
        [sys.executable, "-c", script, *RUN, "--model_dir", str(tmp_path / "run"), "--gin.TRAIN_STEPS=2"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.splitlines()[-1] == "[]"


def start_and_stop(environment, folder: pathlib.Path, after_step: int, with_signal: int, *words: str) -> int:
    """Starts a run, sends a signal once `after_step` is logged, returns the exit code."""
    process = subprocess.Popen(
        [sys.executable, "-m", "dsbs_jax", *RUN, "--model_dir", str(folder), "--gin.CHECKPOINT_PERIOD=2", *words],
        env=environment,
        cwd=folder.parent,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 200
        path = folder / "metrics.jsonl"
        while not path.exists() or f'"step": {after_step},' not in path.read_text():
            assert process.poll() is None, f"ended with {process.returncode} before step {after_step}"
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(with_signal)
        return process.wait(timeout=100)
    finally:
        process.kill()
        process.wait()


def assert_same_run(dsbs, folder: pathlib.Path, finished: pathlib.Path) -> None:
    """Lets an interrupted run finish, and compares it with the uninterrupted one."""
    process = dsbs(*RUN, "--model_dir", folder, "--gin.CHECKPOINT_PERIOD=2")
    assert process.returncode == 0, process.stderr
    assert "Going on after step" in process.stderr
    ours, theirs = weights(folder, 24), weights(finished, 24)
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name], err_msg=name)
    steps = [line["step"] for line in lines(folder / "metrics.jsonl") if "loss" in line]
    assert steps == sorted(set(steps))
    assert steps[-1] == 24


# Step 8 is evaluated and saved as soon as it is logged: killed there, a run dies in either.
@pytest.mark.slow
@pytest.mark.parametrize("after_step", [6, *(pytest.param(step, marks=pytest.mark.lengthy) for step in (8, 14))])
def test_a_run_killed_at_any_moment_ends_with_the_same_weights_bit_for_bit(
    dsbs, environment, finished, tmp_path, after_step
):
    assert start_and_stop(environment, tmp_path / "run", after_step, signal.SIGKILL) == -signal.SIGKILL
    if (tmp_path / "run" / "checkpoints").exists() and any((tmp_path / "run" / "checkpoints").glob("[0-9]")):
        assert_same_run(dsbs, tmp_path / "run", finished)
    else:
        pytest.fail("killed before the first checkpoint: nothing was tested")


def test_sigterm_saves_then_exits_and_the_run_goes_on(dsbs, environment, finished, tmp_path):
    assert start_and_stop(environment, tmp_path / "run", 4, signal.SIGTERM) == 143
    steps = sorted(int(path.name) for path in (tmp_path / "run" / "checkpoints").glob("[0-9]*"))
    assert steps
    assert steps[-1] >= 4
    assert_same_run(dsbs, tmp_path / "run", finished)


def test_a_run_killed_between_its_last_evaluation_and_its_summary_ends_as_it_would_have(dsbs, finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    for name in ("summary.json", "predictions_test.jsonl", "predictions_validation.jsonl"):
        (folder / name).unlink()
    process = dsbs(*RUN, "--model_dir", folder)
    assert process.returncode == 0, process.stderr
    ours, theirs = (json.loads((f / "summary.json").read_text())["result"] for f in (folder, finished))
    assert ours | {"seconds": 0} == theirs | {"seconds": 0}
    for name in ("predictions_test.jsonl", "predictions_validation.jsonl"):
        assert (folder / name).read_bytes() == (finished / name).read_bytes()


@pytest.mark.slow
def test_early_stop_ends_a_run_that_gets_no_better_and_stays_ended(dsbs, tmp_path):
    # A student that does not learn: the first evaluation is the best, two more end the run.
    still = ("--gin.LEARNING_RATE=0.0", "--gin.EARLY_STOP=2", "--gin.EVAL_PERIOD=4", "--gin.DROPOUT_RATE=0.0")
    process = dsbs(*RUN, "--model_dir", tmp_path / "run", *still)
    assert process.returncode == 0, process.stderr
    result = json.loads(process.stdout)
    assert (result["selected_step"], result["steps"]) == (4, 12)
    assert "No better validation accuracy for 2 evaluations" in process.stderr
    # Killed before its summary, it has no step left to do either.
    (tmp_path / "run" / "summary.json").unlink()
    again = json.loads(dsbs(*RUN, "--model_dir", tmp_path / "run", *still).stdout)
    assert again | {"seconds": 0} == result | {"seconds": 0}
    assert max(line["step"] for line in lines(tmp_path / "run" / "metrics.jsonl")) == 12


@pytest.mark.slow
def test_a_run_on_a_sharded_mesh_goes_on_on_one_device_with_the_same_losses(dsbs, environment, tmp_path):
    still = "--gin.DROPOUT_RATE=0.0"
    process = dsbs(*RUN, "--model_dir", tmp_path / "one", still)
    assert process.returncode == 0, process.stderr
    eight = environment | {"XLA_FLAGS": environment["XLA_FLAGS"] + " --xla_force_host_platform_device_count=8"}
    mesh = ("--gin.MeshConfig.data=2", "--gin.MeshConfig.fsdp=2", "--gin.MeshConfig.model=2")
    assert start_and_stop(eight, tmp_path / "run", 6, signal.SIGTERM, still, *mesh) == 143
    process = dsbs(*RUN, "--model_dir", tmp_path / "run", still)
    assert process.returncode == 0, process.stderr
    assert "Going on after step" in process.stderr
    ours, theirs = (
        {line["step"]: line["loss"] for line in lines(tmp_path / name / "metrics.jsonl") if "loss" in line}
        for name in ("run", "one")
    )
    assert ours.keys() == theirs.keys()
    # Sums in another order, through 24 steps of Adam at a high learning rate.
    np.testing.assert_allclose([ours[step] for step in theirs], list(theirs.values()), rtol=2e-2)


def test_a_finished_run_is_not_run_again(dsbs, finished):
    before = (finished / "metrics.jsonl").read_bytes()
    process = dsbs(*RUN, "--model_dir", finished)
    assert json.loads(process.stdout) == json.loads((finished / "stdout").read_text())
    assert (finished / "metrics.jsonl").read_bytes() == before


def test_a_resume_that_would_change_the_result_is_refused_by_field(dsbs, finished):
    process = dsbs(*RUN, "--model_dir", finished, "--gin.LEARNING_RATE=0.02", "--gin.LOG_PERIOD=3")
    assert process.returncode == 1
    assert "optimizer.learning_rate (0.01 before, 0.02 now)" in process.stderr
    assert "log_period (" not in process.stderr


@pytest.mark.parametrize(
    ("steps", "sentence"), [(40, "copy it elsewhere, under another name"), (23, "steps (24 before, 23 now)")]
)
def test_a_cell_of_a_sweep_gets_no_more_steps_and_no_run_fewer(finished, tmp_path, capsys, steps, sentence):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    write_whole(folder / results.CELL, json.dumps({"cell": "run"}))
    assert cli.main([*RUN, "--model_dir", str(folder), f"--gin.TRAIN_STEPS={steps}"]) == 1
    assert sentence in capsys.readouterr().err.splitlines()[-1]
    assert (folder / "summary.json").read_bytes() == (finished / "summary.json").read_bytes()


@pytest.mark.slow
def test_a_finished_run_goes_on_to_more_steps_and_keeps_its_result_until_it_has_another(
    dsbs, environment, finished, tmp_path
):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    # The copy of a cell is none.
    write_whole(folder / results.CELL, json.dumps({"cell": "whole"}))
    longer = "--gin.TRAIN_STEPS=40"
    assert start_and_stop(environment, folder, 28, signal.SIGKILL, longer) == -signal.SIGKILL
    for name in ("summary.json", "predictions_test.jsonl"):
        assert (folder / name).read_bytes() == (finished / name).read_bytes()
    process = dsbs(*RUN, "--model_dir", folder, longer)
    assert process.returncode == 0, process.stderr
    result, summary = json.loads(process.stdout), json.loads((folder / "summary.json").read_text())
    assert summary["result"] == result
    assert (result["steps"], summary["config"]["steps"], summary["continued_from"]) == (40, 40, [24])
    assert json.loads((finished / "summary.json").read_text())["continued_from"] == []
    assert not (folder / results.CELL).exists()

    metrics = lines(folder / "metrics.jsonl")
    evaluations = {line["step"]: line["validation/accuracy"] for line in metrics if "validation/accuracy" in line}
    assert sorted(evaluations) == [8, 16, 24, 32, 40]
    assert result["validation_accuracy"] == pytest.approx(max(evaluations.values()), abs=1e-6)
    rates = {line["step"]: line["learning_rate"] for line in metrics if "loss" in line}
    assert sorted(rates) == list(range(2, 41, 2))
    # Linear to 0 at the number of steps that was the run's then; a line has the mean of two steps.
    assert rates[24] == pytest.approx(0.01 * (1 - 22.5 / 24), rel=1e-3)
    assert rates[26] == pytest.approx(0.01 * (1 - 24.5 / 40), rel=1e-3)
    for split, accuracy in (("validation", "validation_accuracy"), ("test", "test_accuracy")):
        rows = lines(folder / f"predictions_{split}.jsonl")
        assert np.mean([row["correct"] for row in rows]) == pytest.approx(result[accuracy])


def test_eval_and_predict_use_the_selected_weights(dsbs, finished, tmp_path):
    result = json.loads((finished / "summary.json").read_text())["result"]
    process = dsbs("eval", "--model_dir", finished, "--split", "test", "--output", tmp_path / "out.jsonl")
    assert process.returncode == 0, process.stderr
    told = json.loads(process.stdout)
    assert (told["accuracy"], told["step"]) == (result["test_accuracy"], result["selected_step"])
    rows = lines(finished / "predictions_test.jsonl")
    assert lines(tmp_path / "out.jsonl") == rows
    # What the teacher said of a row stands beside the student's answer; this one is always right.
    assert all(row["teacher_label"] == row["label"] and row["label"] in row["rationale"] for row in rows)

    (tmp_path / "in.txt").write_text("".join(row["input"] + "\n" for row in rows[:5]))
    process = dsbs("predict", "--model_dir", finished, "--input", tmp_path / "in.txt")
    assert process.returncode == 0, process.stderr
    predictions = [json.loads(line) for line in process.stdout.splitlines()]
    assert predictions == [{"input": row["input"], "prediction": row["prediction"]} for row in rows[:5]]


def test_eval_asks_another_dataset_or_by_another_metric(dsbs, environment, finished, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("DSBS_STORE_DIR", environment["DSBS_STORE_DIR"])
    rows = lines(finished / "predictions_test.jsonl")[:30]
    # A right label under another name: the teacher of the run's own dataset has no answers to these rows.
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps({"q": row["input"], "a": row["label"]}) + "\n" for row in rows)
    )
    (tmp_path / "other.gin").write_text(
        "include 'datasets/custom.gin'\nCustomDataset.name = 'other'\nCustomDataset.train = 'rows.jsonl'\n"
        "CustomDataset.test = 'rows.jsonl'\nCustomDataset.input = '{q}'\nCustomDataset.label = '{a}'\n"
    )
    words = ("eval", "--model_dir", finished, "--gin_file", tmp_path / "other.gin", "--data_dir", tmp_path)
    process = dsbs(*words, "--metric", "equation", "--output", tmp_path / "out.jsonl")
    assert process.returncode == 0, process.stderr
    told = json.loads(process.stdout)
    assert (told["dataset"], told["metric"], told["rows"]) == ("other", "equation", 30)
    ours = lines(tmp_path / "out.jsonl")
    assert [row["prediction"] for row in ours] == [row["prediction"] for row in rows]
    assert told["accuracy"] == np.mean([row["correct"] for row in rows])
    for wrong, sentence in (
        ("--metric", "no metric 'wrong'; the metrics are exact"),
        ("--split", "other has no split"),
    ):
        assert cli.main([*map(str, words), wrong, "wrong"]) == 1
        assert sentence in capsys.readouterr().err.splitlines()[-1]


def test_a_loss_that_is_not_finite_stops_with_step_examples_and_a_saved_state(dsbs, tmp_path):
    process = dsbs(*RUN, "--model_dir", tmp_path / "run", "--gin.LEARNING_RATE=1e38")
    assert process.returncode == 1
    message = process.stderr.splitlines()[-1]
    assert "Step 2: the loss or a gradient is not finite" in message
    assert "train/" in message
    saved = weights(tmp_path / "run", 1)
    assert all(np.isfinite(array).all() for array in saved.values())
    assert next(array for name, array in saved.items() if name.endswith("['step']")) == 1


@pytest.mark.parametrize(
    ("bindings", "sentence"),
    [
        (["T5Config.vocab_size=50"], "set T5Config.vocab_size"),
        (["METHOD='nonsense'"], "There is no method 'nonsense'"),
        (["VOCABULARY='/nowhere/spiece.model'"], "/nowhere/spiece.model"),
        (["MIXTURE_OR_TASK_NAME='dsbs_bestiarry'"], "bestiary"),
        (["INITIAL_CHECKPOINT_PATH='/nowhere'"], "/nowhere"),
        (["DATASET_ARGUMENTS={'creature': 5}"], "has no argument 'creature'"),
        (["TrainConfig.pack_lengths=(8, 8)"], "pack_lengths"),
    ],
)
def test_what_cannot_work_is_refused_in_a_sentence_before_training(dsbs, tmp_path, bindings, sentence):
    process = dsbs(*RUN, "--model_dir", tmp_path / "run", *(f"--gin.{binding}" for binding in bindings))
    assert process.returncode == 1
    assert sentence in process.stderr.splitlines()[-1]
    assert "Traceback" not in process.stderr
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_two_runs_in_one_folder_are_refused(dsbs, finished, tmp_path):
    # As a training process holds it; a lock does not let in another process, of whichever user.
    (tmp_path / "run").mkdir()
    with held(tmp_path / "run" / ".lock"):
        process = dsbs(*RUN, "--model_dir", tmp_path / "run")
    assert process.returncode == 1
    assert "Another process trains in" in process.stderr.splitlines()[-1]


@pytest.mark.slow
def test_published_weights_are_where_a_run_starts(dsbs, finished, save_torch_t5, tmp_path):
    """`INITIAL_CHECKPOINT_PATH` with real safetensors from transformers, imported or not; the wrong size is refused."""
    ours = json.loads((finished / "summary.json").read_text())["config"]["model"]
    names = ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_decoder_layers", "num_heads")
    theirs = save_torch_t5("v1_1", tmp_path / "weights", **{name: ours[name] for name in names})
    path = f"--gin.INITIAL_CHECKPOINT_PATH='{theirs.folder}'"
    start = (path, "--gin.LEARNING_RATE=0.0", "--gin.TRAIN_STEPS=1")
    process = dsbs(*RUN, "--model_dir", tmp_path / "run", *start)
    assert process.returncode == 0, process.stderr
    embedding = weights(tmp_path / "run", 1)["['params']['embedding']"]
    np.testing.assert_array_equal(embedding, theirs.model.shared.weight.detach().numpy())

    # The same weights by way of an import, and of the run that started from them.
    process = dsbs("import", theirs.folder, "--output", tmp_path / "imported")
    assert process.returncode == 0, process.stderr
    for number, source in enumerate((tmp_path / "imported", tmp_path / "run")):
        folder = tmp_path / f"from-{number}"
        process = dsbs(*RUN, "--model_dir", folder, *start, f"--gin.INITIAL_CHECKPOINT_PATH='{source}'")
        assert process.returncode == 0, process.stderr
        np.testing.assert_array_equal(weights(folder, 1)["['params']['embedding']"], embedding)

    process = dsbs(*RUN, "--model_dir", tmp_path / "other", *start, "--gin.T5Config.d_ff=32")
    assert process.returncode == 1
    assert "d_ff is 16 there and 32 here" in process.stderr.splitlines()[-1]
    assert str(theirs.folder) in process.stderr.splitlines()[-1]


@pytest.mark.slow
def test_over_long_inputs_are_cut_and_counted(dsbs, tmp_path):
    process = dsbs(*RUN, "--model_dir", tmp_path / "run", "--gin.TASK_FEATURE_LENGTHS={'inputs': 8, 'targets': 32}")
    assert process.returncode == 0, process.stderr
    counts = json.loads((tmp_path / "run" / "summary.json").read_text())["data"]["rows"]
    assert any("truncated" in name and count > 0 for name, count in counts["train"].items()), counts


def test_an_output_folder_that_cannot_be_written_is_refused(dsbs, tmp_path):
    (tmp_path / "file").write_text("")
    process = dsbs(*RUN, "--model_dir", tmp_path / "file" / "run")
    assert process.returncode == 1
    assert "Cannot write to the output folder" in process.stderr.splitlines()[-1]


def test_an_output_folder_without_room_is_refused(dsbs, finished, tmp_path):
    def no_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    process = dsbs(*RUN, "--model_dir", tmp_path / "run", preexec_fn=no_room)
    assert process.returncode == 1
    assert "Cannot write to the output folder" in process.stderr.splitlines()[-1]


def test_a_batch_that_the_mesh_cannot_divide_is_refused(dsbs, finished, tmp_path):
    process = dsbs(
        *(*RUN, "--model_dir", tmp_path / "run", "--gin.EVAL_BATCH_SIZE=7"),
        env={"XLA_FLAGS": "--xla_force_host_platform_device_count=8"},
    )
    assert process.returncode == 1
    assert "eval_batch_size is 7" in process.stderr.splitlines()[-1]
