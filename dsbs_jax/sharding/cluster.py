"""Where the other processes of a run are: told by flags and variables, or by the cluster that started this process."""

from __future__ import annotations

import dataclasses
import os
from typing import Any


@dataclasses.dataclass(frozen=True)
class Start:
    """How a process finds the others of its run. None: JAX asks the cluster.

    Attributes:
      address: `host:port` of process 0.
      count: how many processes there are.
      process: which of them this is, from 0.
      devices: the accelerators of this host that are this process's; None leaves it to JAX.
      cluster: which cluster JAX asks, by JAX's name; `deactivate` where nothing is left to ask, None where all may be.
      found: where this was found, for error messages.
    """

    address: str | None
    count: int | None
    process: int | None
    devices: list[int] | None
    cluster: str | None
    found: str


def find(
    coordinator_address: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> Start | None:
    """Where the other processes of this run are, or None for a run of one process. Starts nothing.

    Each of the three, in this order: the argument; the variable JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES or
    JAX_PROCESS_ID; beside an address, the JOB_COMPLETION_INDEX that Kubernetes gives the pods of an indexed Job (and so
    of a JobSet), or Open MPI's OMPI_COMM_WORLD_SIZE and _RANK; then what JAX makes of a SLURM step of several tasks, of
    `mpirun` (Open MPI before 5), or of a TPU slice of several hosts on GKE. `DSBS_DISTRIBUTED=1` lets JAX ask
    everything it knows, which for a TPU VM is its metadata server, and for other pods the API of Kubernetes;
    `DSBS_DISTRIBUTED=0` looks nowhere.

    Raises:
      ValueError: what was found is incomplete, or cannot be.
    """
    environment = os.environ
    switch = environment.get("DSBS_DISTRIBUTED", "")
    if switch not in ("", "0", "1"):
        raise ValueError(
            f"DSBS_DISTRIBUTED is {switch!r}; it must be 1 (let JAX ask the cluster), 0 (one process), or unset."
        )
    given = (coordinator_address, num_processes, process_id) != (None, None, None)
    if switch == "0" and not given:
        return None
    address = coordinator_address or environment.get("JAX_COORDINATOR_ADDRESS")
    count = _number(num_processes, "JAX_NUM_PROCESSES")
    process = _number(process_id, "JAX_PROCESS_ID")
    if address is not None:
        count = _number(count, "OMPI_COMM_WORLD_SIZE")
        process = _number(_number(process, "JOB_COMPLETION_INDEX"), "OMPI_COMM_WORLD_RANK")
    if address is None or count is None or process is None:
        cluster, devices = _cluster()
        if cluster is not None or switch == "1":
            return Start(address, count, process, devices, cluster, cluster or "the cluster")
        if address is None and not given:
            return None
        raise ValueError(
            f"The coordinator's address is {address!r}, the number of processes {count}, and this process's own number "
            f"{process}: all three are needed, as --coordinator_address, --num_processes and --process_id, or as the "
            "variables JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID."
        )
    host_and_port(address)
    if not 0 <= process < count:
        raise ValueError(
            f"This process's number is {process} of {count} processes: it must be one of 0 to {count - 1}."
        )
    return None if count == 1 else Start(address, count, process, None, "deactivate", "what was given")


def refuse_several(what: str) -> None:
    """Raises ValueError where this process was started as one of several, which `what` cannot use."""
    start = find()
    if start is not None:
        raise ValueError(
            f"{what} runs as one process, but this one was started as one of several (by {start.found}): start it "
            "once, or set DSBS_DISTRIBUTED=0."
        )


def host_and_port(address: str) -> tuple[str, int]:
    """The two halves of `host:port`; raises ValueError where they are not."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"The coordinator's address is {address!r}; it must be HOST:PORT, e.g. 10.0.0.1:8476.")
    return host.strip("[]"), int(port)


def _cluster() -> tuple[str | None, list[int] | None]:
    """(JAX's name of the cluster that started this process as one of several, accelerators), or None."""
    # A batch script's own shell has no step; `srun` with one task needs no coordinator.
    if "SLURM_STEP_ID" in os.environ and _environment_number("SLURM_STEP_NUM_TASKS", 1) > 1:
        # JAX gives every task one accelerator. One task on each host gets all that the job has there.
        alone = _environment_number("SLURM_STEP_NUM_TASKS", 1) == _environment_number("SLURM_STEP_NUM_NODES", 0)
        accelerators = _environment_number("SLURM_GPUS_ON_NODE", 0)
        return "slurm", list(range(accelerators)) if alone and accelerators else None
    if "OMPI_MCA_orte_hnp_uri" in os.environ and _environment_number("OMPI_COMM_WORLD_SIZE", 1) > 1:
        return "ompi", None
    hosts = os.environ.get("TPU_PROCESS_ADDRESSES") or os.environ.get("TPU_WORKER_HOSTNAMES") or ""
    if hosts and ("," in hosts or _environment_number("MEGASCALE_NUM_SLICES", 1) > 1):
        return "gketpu", None
    return None, None


def _number(argument: int | None, variable: str) -> int | None:
    return argument if argument is not None else _environment_number(variable)


def _environment_number(variable: str, otherwise: Any = None) -> Any:
    text = os.environ.get(variable)
    if text is None:
        return otherwise
    if not text.isdecimal():
        raise ValueError(f"The environment variable {variable} is {text!r}; it must be a number.")
    return int(text)
