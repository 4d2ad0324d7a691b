"""Starting JAX's multi-controller runtime: one process per host, or per accelerator, all running the same program."""

from __future__ import annotations

import atexit
import contextlib
import functools
import logging
import signal
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils

from dsbs_jax.sharding.agreement import AgreedEnd, client, coordinator_address_in_use, gathered, is_first, place
from dsbs_jax.sharding.cluster import Start, find, host_and_port
from dsbs_jax.sharding.watch import AGAIN, Watch, on_abort

logger = logging.getLogger(__name__)

_watch: Watch | None = None


def initialize(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    initialization_timeout: int = 300,
    heartbeat_timeout: int = 100,
) -> bool:
    """Joins this process to the others of its run, if there are others. Call it before anything asks for a device.

    From then on a process that fails or falls silent ends all of them (`watch`): call `shutdown` when all is done.

    Args:
      coordinator_address: `host:port` of process 0; where it and the next two are not given, `find` looks.
      num_processes: how many processes there are.
      process_id: which of them this is, from 0.
      initialization_timeout: seconds to wait for the other processes to join.
      heartbeat_timeout: seconds of silence after which a process is held to be gone.

    Returns:
      Whether this process is part of a run of several.

    Raises:
      ValueError: what was found is incomplete, or cannot be.
      OSError: the coordinator cannot be reached.
    """
    global _watch
    for name, seconds in (("initialization", initialization_timeout), ("heartbeat", heartbeat_timeout)):
        if seconds < 1:
            raise ValueError(f"{name}_timeout is {seconds}; it must be at least 1 second.")
    if not jax.distributed.is_initialized():
        start = find(coordinator_address, num_processes, process_id)
        if start is None:
            return False
        _join(start, initialization_timeout, heartbeat_timeout)
    index, count = place()
    if count == 1:
        return False
    if _watch is None:
        _watch = Watch(client(), index, count, coordinator_address_in_use(), heartbeat_timeout)
        _watch.start()
        # Before JAX's own, which disconnects.
        atexit.register(_watch.stop)
        # Every process waits, minutes at most, for what devices the others have: let that be now, while all are here.
        here, all_devices = jax.local_device_count(), jax.device_count()
        logger.info("Process %d of %d joined the run: %d of its %d devices.", index, count, here, all_devices)
    return True


def _join(start: Start, initialization_timeout: int, heartbeat_timeout: int) -> None:
    if start.address is not None and start.process:
        _await_coordinator(start.address, initialization_timeout)
    # JAX would take SIGTERM from here on, and tell only who asks at every step: see `hear_preemption`.
    jax.config.update("jax_enable_preemption_service", False)
    on_abort(lambda: _last_words(start, initialization_timeout))
    try:
        jax.distributed.initialize(
            start.address,
            start.count,
            start.process,
            local_device_ids=start.devices,
            cluster_detection_method=start.cluster,
            initialization_timeout=initialization_timeout,
            # JAX's own watch aborts with a call stack: it comes only where ours has not seen anything.
            heartbeat_timeout_seconds=heartbeat_timeout + max(5, heartbeat_timeout // 4),
        )
    except (RuntimeError, ValueError, OSError, KeyError) as error:
        raise ValueError(
            f"JAX could not start the run's processes from {start.found} ({_line(error)}): give --coordinator_address, "
            "--num_processes and --process_id, or set DSBS_DISTRIBUTED=0 for a run of one process."
        ) from error


def process_name() -> str:
    """This process among the others, as messages name it."""
    index, count = place()
    return f"process {index} of {count}"


@contextlib.contextmanager
def shared_fate() -> Iterator[None]:
    """An exception that leaves the block in one process ends the others, too, but for an `AgreedEnd`.

    Innermost around what processes do in step, so that none of them waits for others while it closes its files.
    """
    try:
        yield
    except AgreedEnd:
        raise
    except BaseException as error:
        if _watch is not None:
            _watch.failed(error)
        raise


def hear_preemption() -> None:
    """From here on SIGTERM only lets `preempted` be true, after the same step in every process."""
    from jax._src import distributed

    jax.config.update("jax_enable_preemption_service", True)
    if distributed.global_state.preemption_sync_manager is not None:
        # Made anew, it takes the signal again from whoever has it now.
        distributed.global_state.preemption_sync_manager.shutdown()
        distributed.global_state.preemption_sync_manager = None
    distributed.global_state.initialize_preemption_sync_manager()


def preempted(step: int) -> bool:
    """Whether a process of the run was told to stop, and all are to stop after `step`. Ask it after every step.

    Costs a look at a number: JAX's threads agree on the step in the background, once there is a signal.
    """
    return multihost_utils.reached_preemption_sync_point(step)


@contextlib.contextmanager
def joined(tell: Callable[[BaseException], object], **how: Any) -> Iterator[bool]:
    """`initialize`, a block, and `shutdown`; gives whether this is the process that prints.

    An error in one of several processes ends all of them. It does not leave the block then: `tell` prints it.

    Args:
      tell: prints an error, in the process that raised it.
      how: the arguments of `initialize`.
    """
    try:
        several = initialize(**how)
    except BaseException as error:
        if _watch is not None:
            _watch.leave(error, functools.partial(tell, error))
        raise
    if not several:
        yield True
        return
    assert _watch is not None
    name = process_name()
    if not is_first():
        for handler in logging.getLogger().handlers:
            handler.setFormatter(logging.Formatter(f"{name}: %(message)s"))
        logging.getLogger("dsbs_jax").setLevel(logging.WARNING)
    # Until the first step there is nothing to save: SIGTERM ends all of them at once.
    signal.signal(signal.SIGTERM, _exit_on_signal)
    try:
        yield is_first()
    except AgreedEnd:
        shutdown()
        raise
    except BaseException as error:
        _watch.leave(error, functools.partial(tell, error))
    shutdown()


def _exit_on_signal(*_: object) -> None:
    raise SystemExit(143)


def shutdown() -> None:
    """Waits for the other processes to be done, however long that takes, and leaves the run."""
    global _watch
    if _watch is not None:
        gathered("done", lambda: None)
        _watch.stop()
        jax.distributed.shutdown()
        _watch = None


def _last_words(start: Start, timeout: int) -> str:
    if _watch is not None:
        return _watch.last_words()
    number = "This process" if start.process is None else f"Process {start.process}"
    return (
        f"{number} waited {timeout} s for all {start.count or ''} processes of the run to join: look which of them was "
        f"not started, or ended early, and {AGAIN} (--initialization_timeout waits longer)."
    )


def _await_coordinator(address: str, timeout: float) -> None:
    """Returns when process 0 listens. JAX itself would abort where it never does."""
    host, port = host_and_port(address)
    deadline = time.monotonic() + timeout
    while True:
        try:
            with socket.create_connection((host, port), timeout=5):
                return
        except OSError as error:
            if time.monotonic() > deadline:
                raise OSError(
                    f"The coordinator, process 0 at {address}, cannot be reached within {timeout} s "
                    f"({error.strerror or error}): start process 0 too, and give every process the address and port "
                    "at which this host reaches it (--initialization_timeout waits longer)."
                ) from None
        time.sleep(min(0.2, timeout / 10))


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
