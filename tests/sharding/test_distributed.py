import os
import pathlib
import socket
import subprocess
import sys

import jax
import pytest

from dsbs_jax.sharding import distributed

WORKER = pathlib.Path(__file__).with_name("two_processes.py")
VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "SLURM_STEP_ID", "DSBS_DISTRIBUTED")


@pytest.fixture
def calls(monkeypatch):
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *arguments: calls.append(arguments))
    return calls


def test_a_lone_process_stays_alone(calls):
    assert not distributed.initialize()
    assert calls == []


def test_arguments_win_over_the_environment(calls, monkeypatch):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "there:1")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "4")
    monkeypatch.setenv("JAX_PROCESS_ID", "3")
    assert distributed.initialize("here:2", 2)
    assert calls == [("here:2", 2, 3)]


def test_slurm_step_of_several_tasks(calls, monkeypatch):
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    assert not distributed.initialize()
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    assert distributed.initialize()
    assert calls == [(None, None, None)]


def test_address_without_numbers(calls):
    with pytest.raises(ValueError, match="set JAX_NUM_PROCESSES and JAX_PROCESS_ID too"):
        distributed.initialize("here:2")


def test_number_that_is_none(calls, monkeypatch):
    monkeypatch.setenv("JAX_NUM_PROCESSES", "two")
    with pytest.raises(ValueError, match="JAX_NUM_PROCESSES is 'two'"):
        distributed.initialize("here:2")


def test_two_processes_feed_one_array():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    processes = [
        subprocess.Popen(
            [sys.executable, str(WORKER)],
            env=os.environ
            | {
                "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
                "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
                "JAX_NUM_PROCESSES": "2",
                "JAX_PROCESS_ID": str(index),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for index, (process, output) in enumerate(zip(processes, outputs, strict=True)):
        assert process.returncode == 0, output
        neighbours, torus = ([0, 1, 2, 3], [4, 5, 6, 7])[index], ([0, 1, 4, 5], [2, 3, 6, 7])[index]
        assert f"rows {neighbours}, sum 276" in output
        assert f"rows {torus}, sum 276" in output
