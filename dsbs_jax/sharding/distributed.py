"""Starting JAX's multi-controller runtime: one process per host, all running the same program."""

from __future__ import annotations

import logging
import os

import jax

logger = logging.getLogger(__name__)


def initialize(
    coordinator_address: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> bool:
    """Joins this process to the others of its run, if there are others. Call it before anything asks for a device.

    The arguments win; then the variables JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID; then SLURM's,
    for a step of several tasks. `DSBS_DISTRIBUTED=1` lets JAX find the cluster by itself (TPU pods, GKE, Open MPI).

    Args:
      coordinator_address: `host:port` of process 0.
      num_processes: how many processes there are.
      process_id: which of them this is, from 0.

    Returns:
      Whether this process is part of a distributed run.

    Raises:
      ValueError: where an address is given without the number of processes or the process's own.
    """
    if jax.distributed.is_initialized():
        return True
    address = coordinator_address or os.environ.get("JAX_COORDINATOR_ADDRESS")
    count = _number(num_processes, "JAX_NUM_PROCESSES")
    index = _number(process_id, "JAX_PROCESS_ID")
    if _in_slurm_step() or os.environ.get("DSBS_DISTRIBUTED") == "1":
        jax.distributed.initialize(address, count, index)
    elif address is None:
        return False
    elif count is None or index is None:
        raise ValueError(
            f"The coordinator's address is {address!r}, but the number of processes is {count} and this process's own "
            f"number is {index}: set JAX_NUM_PROCESSES and JAX_PROCESS_ID too."
        )
    else:
        jax.distributed.initialize(address, count, index)
    logger.info("Process %d of %d joined the run.", jax.process_index(), jax.process_count())
    return True


def _number(argument: int | None, variable: str) -> int | None:
    text = os.environ.get(variable)
    if argument is not None or text is None:
        return argument
    if not text.isdecimal():
        raise ValueError(f"The environment variable {variable} is {text!r}; it must be a number.")
    return int(text)


def _in_slurm_step() -> bool:
    # A batch script's own shell has no step; `srun` with one task needs no coordinator.
    return "SLURM_STEP_ID" in os.environ and int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1
