"""Processes that really start, on loopback."""

import pathlib
import socket
import subprocess
import sys

import jax
import pytest

from dsbs_jax.sharding import distributed

WORKER = pathlib.Path(__file__).with_name("two_processes.py")


@pytest.fixture
def outputs_of_two(two_processes):
    """As `two_processes`, of the worker beside this file, which says so when it is done."""

    def run(variables) -> list[str]:
        outputs = two_processes(lambda number: [WORKER], variables)
        assert all(output.endswith("done\n") for output in outputs), outputs
        return outputs

    return run


def test_two_processes_feed_one_array_and_agree(outputs_of_two, free_port):
    port = free_port()
    outputs = outputs_of_two(
        lambda index: {
            "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
            "JAX_NUM_PROCESSES": "2",
            "JAX_PROCESS_ID": str(index),
        }
    )
    for index, output in enumerate(outputs):
        neighbours, torus = ([0, 1, 2, 3], [4, 5, 6, 7])[index], ([0, 1, 4, 5], [2, 3, 6, 7])[index]
        assert f"rows {neighbours}, sum 276" in output
        assert f"rows {torus}, sum 276" in output
    # Each is told in the process where it happened, and with that process's number in the other.
    assert [line for line in outputs[0].splitlines() if line.startswith("error")] == [
        "error: no such file on 0",
        "error: process 1 of 2: no such file on 1",
    ]
    assert [line for line in outputs[1].splitlines() if line.startswith("error")] == [
        "error: no such file on 0",
        "error: no such file on 1",
    ]


@pytest.mark.slow
def test_two_tasks_of_a_slurm_step(outputs_of_two):
    # JAX takes the port from the job's number.
    job = next(number for number in range(4096) if _is_free(65536 - 4096 + number))
    step = {"SLURM_JOB_ID": job, "SLURM_STEP_ID": 0, "SLURM_STEP_NODELIST": "localhost", "SLURM_STEP_NUM_NODES": 1}
    tasks = {"SLURM_STEP_NUM_TASKS": 2, "SLURM_NTASKS": 2}
    outputs = outputs_of_two(
        lambda index: {
            name: str(value) for name, value in (step | tasks | {"SLURM_PROCID": index, "SLURM_LOCALID": index}).items()
        }
    )
    assert all("sum 276" in output for output in outputs)


def _is_free(port: int) -> bool:
    with socket.socket() as listener:
        try:
            listener.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def test_a_coordinator_that_does_not_answer_is_told_in_time(monkeypatch, free_port):
    def never(*_, **__):
        pytest.fail("JAX would abort")

    monkeypatch.setattr(jax.distributed, "initialize", never)
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(OSError, match=f"process 0 at {address}, cannot be reached within 1 s .Connection refused"):
        distributed.initialize(address, 2, 1, initialization_timeout=1)


def test_what_jax_cannot_find_is_told(monkeypatch):
    monkeypatch.setattr(distributed, "on_abort", lambda sentence: None)
    monkeypatch.setenv("DSBS_DISTRIBUTED", "1")
    for variable in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
        monkeypatch.delenv(variable, raising=False)

    def nothing_found(*_, **__):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", nothing_found)
    with pytest.raises(ValueError, match=r"from the cluster \(coordinator_address should be defined"):
        distributed.initialize()


@pytest.mark.slow
def test_processes_that_never_come_are_told_after_the_runtimes_own_words(free_port):
    script = (
        "from dsbs_jax.sharding.distributed import initialize; "
        f"initialize('127.0.0.1:{free_port()}', 2, 0, initialization_timeout=1)"
    )
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert process.returncode == 1
    last = process.stderr.splitlines()[-1]
    assert last.startswith("dsbs: Process 0 waited 1 s for all 2 processes of the run to join"), process.stderr
