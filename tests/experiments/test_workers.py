"""Worker processes: what each is given of the machine, and what becomes of them when the parent is told to stop."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

from dsbs_jax.experiments import results, workers

# A worker that tells what it was given, and saves on SIGTERM.
WORKER = """
import json, os, pathlib, signal, sys, time
path = pathlib.Path(sys.argv[1], str(os.getpid()))
def save(*_):
    time.sleep(0.3)
    path.with_suffix(".saved").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
told = {name: value for name, value in os.environ.items() if name.startswith(("CUDA_", "XLA_PYTHON_"))}
path.write_text(json.dumps(told))
print("ready", flush=True)
time.sleep(float(sys.argv[2]))
"""
PARENT = "import pathlib, sys; from dsbs_jax.experiments import workers; sys.exit(workers.work_in_processes(" + (
    "[sys.executable, '-c', sys.argv[1], sys.argv[2], '60'], 2, pathlib.Path(sys.argv[2])))"
)


def given(tmp_path, monkeypatch, count: int, **variables: str) -> list[dict[str, str]]:
    """The accelerators' variables that real workers find, in their order."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    command = [sys.executable, "-c", WORKER, str(tmp_path), "0"]
    assert workers.work_in_processes(command, count, tmp_path) == 0
    told = [json.loads(path.read_text()) for path in tmp_path.iterdir() if path.name.isdecimal()]
    return sorted(told, key=lambda one: list(one.values()))


def test_gpus_are_dealt_in_turn(tmp_path, monkeypatch):
    names = "GPU-a,GPU-b,GPU-c,GPU-d,GPU-e"
    told = given(tmp_path, monkeypatch, 2, CUDA_VISIBLE_DEVICES=names)
    assert told == [{"CUDA_VISIBLE_DEVICES": "GPU-a,GPU-c,GPU-e"}, {"CUDA_VISIBLE_DEVICES": "GPU-b,GPU-d"}]


def test_workers_that_share_a_gpu_take_its_memory_as_they_need_it(tmp_path, monkeypatch):
    shared = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    told = given(tmp_path, monkeypatch, 3, CUDA_VISIBLE_DEVICES="4,7")
    assert told == [{"CUDA_VISIBLE_DEVICES": "4"} | shared] * 2 + [{"CUDA_VISIBLE_DEVICES": "7"}]
    # Who said how memory is taken knows better.
    own = {"CUDA_VISIBLE_DEVICES": "4", "XLA_PYTHON_CLIENT_MEM_FRACTION": ".4"}
    assert workers.shares(2, own) == [{"CUDA_VISIBLE_DEVICES": "4"}] * 2
    # No GPU at all is what an empty list means, and a run on CPUs has no use for them.
    assert workers.shares(2, {"CUDA_VISIBLE_DEVICES": ""}) == workers.shares(2, {"JAX_PLATFORMS": "cpu"}) == [{}, {}]


def test_gpus_that_nobody_named_are_counted(tmp_path, monkeypatch):
    smi = tmp_path / "bin" / "nvidia-smi"
    smi.parent.mkdir()
    gpus = [f"GPU {number}: NVIDIA H200 (UUID: GPU-0{number})" for number in range(3)]
    smi.write_text(f"#!{sys.executable}\nimport sys\nassert sys.argv[1:] == ['-L']\nprint({chr(10).join(gpus)!r})\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(smi.parent), prepend=os.pathsep)
    assert workers.shares(2, {}) == [{"CUDA_VISIBLE_DEVICES": "0,2"}, {"CUDA_VISIBLE_DEVICES": "1"}]


def test_a_tpu_chip_is_one_workers():
    four = {"TPU_VISIBLE_CHIPS": "0,1,2,3"}
    bounds = {"TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1", "TPU_PROCESS_BOUNDS": "1,1,1"}
    assert workers.shares(2, four) == [{"TPU_VISIBLE_CHIPS": chip} | bounds for chip in "01"]
    with pytest.raises(ValueError, match="give at most 4"):
        workers.shares(5, four)


def test_a_worker_that_dies_is_told_of_with_its_log(tmp_path):
    for dies, code in (("raise SystemExit(7)", 7), ("{}['cell']", 1)):
        with pytest.raises(RuntimeError, match=rf"-1\.log \({code}\).*Start the sweep again"):
            workers.work_in_processes([sys.executable, "-c", dies], 2, tmp_path)
    # That cells failed stands in their folders.
    failed = f"raise SystemExit({workers.FAILED_CELLS})"
    assert workers.work_in_processes([sys.executable, "-c", failed], 2, tmp_path) == 0


@pytest.mark.parametrize(
    ("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)], ids=lambda value: str(value)
)
def test_what_stops_the_parent_lets_the_workers_save_first(tmp_path, sent, code):
    command = [sys.executable, "-c", PARENT, WORKER, str(tmp_path)]
    parent = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        wait_for(lambda: sum("ready" in log.read_text() for log in (tmp_path / "logs").glob("*")) == 2, parent)
        # As a terminal does it: to the whole group, of which the workers are not.
        os.killpg(parent.pid, sent)
        assert parent.wait(timeout=30) == code
    finally:
        parent.kill()
        parent.communicate()
    assert len(list(tmp_path.glob("*.saved"))) == 2


def wait_for(there, parent: subprocess.Popen) -> None:
    deadline = time.monotonic() + 200
    while not there():
        assert parent.poll() is None, f"ended with {parent.returncode}"
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_a_stopped_sweep_saves_its_cells_and_goes_on(dsbs, environment, tmp_path):
    """Two real workers in training, each with a GPU of its own in its environment; SIGTERM to their parent."""
    words = ["recipes/smoke", "--output", str(tmp_path), "--run", "--workers", "2", "--gin.TRAIN_STEPS=100000"]
    words += ["--gin.EVAL_PERIOD=100000", "--gin.SweepConfig.methods=('methods/standard',)", "--gin.LOG_PERIOD=1"]
    parent = subprocess.Popen(
        [sys.executable, "-m", "dsbs_jax", "sweep", *words],
        env=environment | {"CUDA_VISIBLE_DEVICES": "3,5"},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_for(lambda: sum("loss" in path.read_text() for path in tmp_path.glob("runs/*/metrics.jsonl")) == 2, parent)
        children = pathlib.Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
        gpus = [
            re.search(rb"CUDA_VISIBLE_DEVICES=(\d)\0", pathlib.Path(f"/proc/{c}/environ").read_bytes())
            for c in children
        ]
        assert sorted(found[1] for found in gpus) == [b"3", b"5"]
        parent.terminate()
        assert parent.wait(timeout=100) == 143
    finally:
        parent.kill()
        parent.communicate()
    rows = results.read_rows(tmp_path)
    assert [row.status for row in rows] == ["waiting"] * 4
    rows = [row for row in rows if pathlib.Path(row.folder).exists()]
    assert len(rows) == 2
    saved = {
        pathlib.Path(row.folder, "checkpoints", step)
        for row in rows
        for step in os.listdir(f"{row.folder}/checkpoints")
    }
    assert len(saved) == 2
    logs = "".join(log.read_text() for log in (tmp_path / "logs").iterdir())
    assert len(re.findall(r"Stopped by SIGTERM after step \d+", logs)) == 2
