"""Runs of several real processes on loopback, through the command line and the launcher, ended in every way."""

import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

LAUNCHER = pathlib.Path(__file__).resolve().parents[2] / "scripts" / "launch_local.py"
STEPS = 80
# Small, and long enough that a signal is heard before the last step: the first evaluation compiles for a while. Without
# dropout: where a row lies in the batch, and so which of its values are dropped, depends on the number of devices.
RUN = (
    *("train", "--gin_file", "datasets/bestiary", "--gin_file", "models/tiny"),
    *(
        f"--gin.{binding}"
        for binding in (
            "T5Config.d_model=16",
            "T5Config.d_ff=16",
            "TASK_FEATURE_LENGTHS={'inputs': 32, 'targets': 32}",
            f"TRAIN_STEPS={STEPS}",
            "BATCH_SIZE=8",
            "LEARNING_RATE=0.001",
            "DROPOUT_RATE=0.0",
            "EVAL_PERIOD=40",
            "LOG_PERIOD=1",
            "EVAL_BATCH_SIZE=120",
            "TrainConfig.max_decode_length=2",
            # A batch is packed into a multiple of as many rows as there are devices: 8 suit all runs here.
            "TrainConfig.pack_lengths=(48, 32)",
        )
    ),
)


@pytest.fixture(scope="module")
def launch(environment, tmp_path_factory) -> Callable[..., contextlib.AbstractContextManager]:
    """Starts processes of `dsbs` with the launcher, ended after the block."""
    cwd = tmp_path_factory.mktemp("somewhere")

    @contextlib.contextmanager
    def start(processes: int, *words: object, devices: int = 2) -> Iterator[subprocess.Popen]:
        flags = ("--processes", processes, "--devices", devices, "--grace", 60, "--")
        command = [sys.executable, str(LAUNCHER), *map(str, (*flags, *words))]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, env=environment, cwd=cwd, stdout=pipe, stderr=pipe, text=True) as launcher:
            try:
                yield launcher
            finally:
                if launcher.poll() is None:
                    launcher.send_signal(signal.SIGTERM)

    return start


def ended(launcher: subprocess.Popen) -> tuple[int, str, str]:
    """(exit code, standard output, standard error)."""
    stdout, stderr = launcher.communicate(timeout=200)
    return launcher.returncode, stdout, stderr


def process_ids(launcher: subprocess.Popen, count: int) -> list[int]:
    """From the launcher's first lines."""
    lines = (launcher.stderr.readline() for _ in range(count))
    return [int(re.search(r"process \d+ is (\d+)", line)[1]) for line in lines]


def wait_for_step(launcher: subprocess.Popen, folder: pathlib.Path, step: int) -> None:
    deadline = time.monotonic() + 200
    path = folder / "metrics.jsonl"
    while not path.exists() or f'"step": {step},' not in path.read_text():
        assert launcher.poll() is None, launcher.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def told(stderr: str) -> list[str]:
    """The sentences of all processes, without the numbers of their processes."""
    return re.findall(r"^\[\d+\] dsbs: (.*)$", stderr, re.MULTILINE)


def losses(folder: pathlib.Path) -> dict[int, float]:
    entries = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return {entry["step"]: entry["loss"] for entry in entries if "loss" in entry}


def assert_same_losses(ours: pathlib.Path, theirs: pathlib.Path) -> None:
    assert list(losses(ours)) == list(range(1, STEPS + 1))
    assert list(losses(theirs)) == list(range(1, STEPS + 1))
    # Sums in another order, in float32: 3e-7 was measured, through 80 steps of Adam. One example exchanged for another
    # changes a step's loss by about 1e-2.
    np.testing.assert_allclose(list(losses(ours).values()), list(losses(theirs).values()), rtol=1e-5)


@pytest.fixture(scope="module")
def alone(dsbs, tmp_path_factory) -> pathlib.Path:
    """An uninterrupted run of one process on one device."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    process = dsbs(*RUN, "--model_dir", folder)
    assert process.returncode == 0, process.stderr
    return folder


@pytest.fixture(scope="module")
def preempted(launch, tmp_path_factory) -> tuple[pathlib.Path, int, str]:
    """(folder, exit code, standard error) of a run of two processes, the second of which got SIGTERM."""
    folder = tmp_path_factory.mktemp("preempted") / "run"
    with launch(2, *RUN, "--model_dir", folder) as launcher:
        second = process_ids(launcher, 2)[1]
        wait_for_step(launcher, folder, 2)
        os.kill(second, signal.SIGTERM)
        code, stdout, stderr = ended(launcher)
    assert not [line for line in stdout.splitlines() if line.startswith("{")]
    return folder, code, stderr


def test_sigterm_to_one_process_stops_all_after_one_step_with_all_saved(preempted):
    folder, code, stderr = preempted
    assert code == 143, stderr
    assert sorted(re.findall(r"process (\d) ended with 143", stderr)) == ["0", "1"], stderr
    step = max(losses(folder))
    assert told(stderr) == 2 * [
        f"Stopped by SIGTERM after step {step}; start the same command again to go on. ({folder})"
    ]
    assert max(int(path.name) for path in (folder / "checkpoints").glob("[0-9]*")) == step < STEPS


def test_two_processes_then_one_train_as_one_alone(preempted, alone, dsbs, tmp_path):
    folder = shutil.copytree(preempted[0], tmp_path / "run")
    stopped = max(losses(folder))
    process = dsbs(*RUN, "--model_dir", folder)
    assert process.returncode == 0, process.stderr
    assert f"Going on after step {stopped}." in process.stderr
    assert_same_losses(folder, alone)


@pytest.mark.slow
@pytest.mark.lengthy
def test_two_processes_then_four_train_as_one_alone(preempted, alone, launch, tmp_path):
    folder = shutil.copytree(preempted[0], tmp_path / "run")
    with launch(4, *RUN, "--model_dir", folder) as launcher:
        code, stdout, stderr = ended(launcher)
    assert code == 0, stderr
    assert "Going on after step" in stderr
    assert_same_losses(folder, alone)
    # Printed once, and written by one process.
    results = [json.loads(line) for line in stdout.splitlines() if line.startswith("{")]
    assert results == [json.loads((folder / "summary.json").read_text())["result"]]
    # The others say nothing.
    assert not re.search(r"^\[[123]\] ((?!process \d of 4 joined|Process \d of 4 joined).)+$", stderr, re.MULTILINE), (
        stderr
    )
    ours, theirs = ((path / "predictions_test.jsonl").read_text().splitlines() for path in (folder, alone))
    assert [json.loads(line)["id"] for line in ours] == [json.loads(line)["id"] for line in theirs]

    # A finished run is told by every process, and evaluated by all.
    with launch(2, *RUN, "--model_dir", folder) as launcher:
        code, stdout, stderr = ended(launcher)
    assert (code, json.loads(stdout.splitlines()[-1])) == (0, results[0]), stderr
    with launch(2, "eval", "--model_dir", folder, "--step", "last") as launcher:
        code, stdout, stderr = ended(launcher)
    assert code == 0, stderr
    assert json.loads(stdout.splitlines()[-1])["accuracy"] == results[0]["test_accuracy_last"]


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, pytest.param(1, marks=pytest.mark.lengthy)])
def test_a_process_that_is_killed_ends_the_others_in_time_and_the_run_goes_on(killed, alone, launch, tmp_path):
    words = (*RUN, "--model_dir", tmp_path / "run", "--gin.CHECKPOINT_PERIOD=2", "--heartbeat_timeout", 6)
    with launch(2, *words) as launcher:
        processes = process_ids(launcher, 2)
        wait_for_step(launcher, tmp_path / "run", 6)
        os.kill(processes[killed], signal.SIGKILL)
        started = time.monotonic()
        code, _, stderr = ended(launcher)
    # Silence is noticed after 6 s, the coordinator's end at once; the rest is room for a busy machine.
    assert time.monotonic() - started < 30
    assert code == 128 + signal.SIGKILL
    assert f"process {1 - killed} ended with 1\n" in stderr, stderr
    assert f"process {killed} of 2" in told(stderr)[-1]
    assert "is gone" in told(stderr)[-1]
    assert "start the same command again" in told(stderr)[-1]
    with launch(2, *words) as launcher:
        code, _, stderr = ended(launcher)
    assert code == 0, stderr
    assert "Going on after step" in stderr
    assert_same_losses(tmp_path / "run", alone)


def by_hand(environment, folder: pathlib.Path, *each, words: tuple[str, ...] = ()) -> list[tuple[int, str]]:
    """(exit code, standard error) of two processes, each with its (flags, environment), without the launcher."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    processes = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "dsbs_jax", *RUN, "--model_dir", str(folder), *words, *own),
                *("--coordinator_address", address, "--num_processes", "2", "--process_id", str(index)),
            ],
            env=environment | variables,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index, (own, variables) in enumerate(each)
    ]
    try:
        errors = [process.communicate(timeout=200)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, error) for process, error in zip(processes, errors, strict=True)]


@pytest.mark.slow
def test_what_is_wrong_in_one_process_ends_both_with_its_sentence(environment, tmp_path):
    results = by_hand(environment, tmp_path / "run", ((), {}), (("--gin.VOCABULARY='/nowhere/spiece.model'",), {}))
    for code, stderr in results:
        assert code == 1, stderr
        assert "/nowhere/spiece.model" in stderr.splitlines()[-1]
        assert "process 1 of 2" in stderr.splitlines()[-1]
        assert "Traceback" not in stderr


@pytest.mark.slow
def test_a_store_that_cannot_be_made_ends_all_with_the_same_sentence(launch, tmp_path):
    with launch(2, *RUN, "--model_dir", tmp_path / "run", "--gin.DATASET_ARGUMENTS={'creature': 5}") as launcher:
        code, _, stderr = ended(launcher)
    assert code == 1
    assert len(told(stderr)) == 2, stderr
    assert all("has no argument 'creature'" in sentence for sentence in told(stderr))
    assert "Traceback" not in stderr


@pytest.mark.slow
@pytest.mark.lengthy
def test_processes_that_were_started_differently_are_refused(environment, tmp_path):
    results = by_hand(environment, tmp_path / "run", ((), {}), (("--gin.LEARNING_RATE=0.5",), {}))
    for code, stderr in results:
        assert code == 1, stderr
        assert "optimizer.learning_rate (0.001 in process 0, 0.5 in process 1)" in stderr.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.lengthy
def test_a_folder_that_the_hosts_do_not_share_is_refused(environment, tmp_path):
    elsewhere = f"--gin.MODEL_DIR='{tmp_path / 'another'}'"
    results = by_hand(environment, tmp_path / "run", ((), {}), ((elsewhere,), {}))
    for code, stderr in results:
        assert code == 1, stderr
        assert "is not the folder that process 0 writes" in stderr.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.lengthy
def test_hosts_without_a_common_file_system_make_a_store_each(environment, tmp_path):
    # As on two hosts: another name, and another folder of stores.
    hosts = [((), {"DSBS_STORE_DIR": str(tmp_path / name), "DSBS_TEST_HOST": name}) for name in ("one", "two")]
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(
        "import os, socket\nsocket.gethostname = lambda: os.environ['DSBS_TEST_HOST']\n"
    )
    path = {"PYTHONPATH": str(tmp_path / "site")}
    short = ("--gin.TRAIN_STEPS=2", "--gin.EVAL_PERIOD=2")
    results = by_hand(environment | path, tmp_path / "run", *hosts, words=short)
    for code, stderr in results:
        assert code == 0, stderr
    ours, theirs = (sorted(path.name for path in (tmp_path / name).glob("bestiary-*")) for name in ("one", "two"))
    assert ours == theirs
    assert len(ours) == 1


@pytest.mark.slow
def test_sigterm_before_the_first_step_ends_all_at_once(launch, environment, tmp_path):
    with launch(2, *RUN, "--model_dir", tmp_path / "run", f"--gin.STORE_DIR='{tmp_path / 'stores'}'") as launcher:
        second = process_ids(launcher, 2)[1]
        # Process 0 prepares a store, which the other waits for.
        while "Preparing the token store" not in launcher.stderr.readline():
            assert launcher.poll() is None
        os.kill(second, signal.SIGTERM)
        code, _, stderr = ended(launcher)
    assert code == 143, stderr
    assert len(re.findall("ended with 143", stderr)) == 2


def test_predict_is_for_one_process(dsbs, tmp_path):
    (tmp_path / "in.txt").write_text("a question\n")
    variables = {"JAX_COORDINATOR_ADDRESS": "127.0.0.1:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"}
    process = dsbs("predict", "--model_dir", tmp_path, "--input", tmp_path / "in.txt", env=variables)
    assert process.returncode == 1
    assert "dsbs predict runs as one process" in process.stderr.splitlines()[-1]


def test_help_shows_how_hosts_are_named(dsbs):
    for verb in ("train", "eval"):
        text = dsbs(verb, "--help").stdout
        for flag in (
            "coordinator_address",
            "num_processes",
            "process_id",
            "initialization_timeout",
            "heartbeat_timeout",
        ):
            assert f"--{flag} " in text
