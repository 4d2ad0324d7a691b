"""Worker processes on one machine: each on its own devices and processor cores, told to stop together."""

from __future__ import annotations

import contextlib
import logging
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType

from jax._src.hardware_utils import num_available_tpu_chips_and_device_id

logger = logging.getLogger(__name__)

# What stops the workers, and the exit code of whom it stops.
_STOPS: dict[int, int] = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
# Exit codes of a worker, and of the sweep, that found nothing left to run: all is well, or cells failed. Python itself
# ends with 1 on an error that nobody caught.
FAILED_CELLS = 3
DONE = (0, FAILED_CELLS)
_TELL_EVERY = 2.0  # Seconds.


def worker_command(words: Sequence[str]) -> list[str]:
    """The command of a worker process that runs `dsbs sweep` with these words."""
    return [sys.executable, "-m", "dsbs_jax", "sweep", *words]


def cores() -> list[int]:
    """The processor cores that this process may use; empty where the system does not tell them apart."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def work_in_processes(
    command: Sequence[str], count: int, folder: pathlib.Path, tell: Callable[[], None] = lambda: None
) -> int:
    """Runs `command`, a worker, in `count` processes until all end; returns 0, or the exit code that a signal asks for.

    Each has its share of the processor cores and of the accelerators (`shares`). Their output goes to `folder/logs/`.
    SIGTERM, Ctrl-C and SIGHUP reach them as SIGTERM, on which they save; a second Ctrl-C kills them.

    Args:
      command: of one worker.
      count: of workers.
      folder: the sweep's.
      tell: called every few seconds while they run, and once after: to say how far they are.

    Raises:
      ValueError: as `shares`.
      RuntimeError: a worker ended otherwise than by finding nothing left to do; names its log.
    """
    environments = shares(count, os.environ)
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    logs = [folder / "logs" / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}-{i}.log" for i in range(count)]
    workers: list[subprocess.Popen] = []
    with contextlib.ExitStack() as stack, _passing_on(workers) as received:
        for number, (log, environment) in enumerate(zip(logs, environments, strict=True)):
            if received:
                break
            output = stack.enter_context(log.open("wb"))
            worker = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | environment,
                # A terminal sends Ctrl-C to the whole group of its foreground process: it would end workers unsaved.
                process_group=0,
            )
            workers.append(worker)
            # Whatever arrived while it started did not reach it.
            if received:
                worker.terminate()
            if share := cores()[number::count]:
                with contextlib.suppress(ProcessLookupError):
                    os.sched_setaffinity(worker.pid, share)
        ends = [_end(worker, tell) for worker in workers]
        tell()
    if received:
        return _STOPS[received[0]]
    if bad := [f"{log} ({end})" for log, end in zip(logs, ends, strict=True) if end not in DONE]:
        raise RuntimeError(
            f"Workers ended before all was done: {', '.join(bad)}. Start the sweep again; finished cells are kept."
        )
    return 0


def _end(worker: subprocess.Popen, tell: Callable[[], None]) -> int:
    while True:
        try:
            return worker.wait(_TELL_EVERY)
        except subprocess.TimeoutExpired:
            tell()


def shares(count: int, environment: Mapping[str, str]) -> list[dict[str, str]]:
    """For each of `count` workers, the variables that leave it its share of this machine's accelerators.

    GPUs are those of CUDA_VISIBLE_DEVICES, else all that `nvidia-smi` counts, dealt in turn: with fewer workers than
    GPUs each has several. With more, some share one, and none of those takes its memory ahead, as JAX does otherwise.
    Of a TPU each worker has one chip (TPU_VISIBLE_CHIPS, else all): several chips to a process depend on how they lie.

    Args:
      count: of workers.
      environment: of this process.

    Raises:
      ValueError: more workers than TPU chips, each of which is one process's.
    """
    if gpus := _gpus(environment):
        dealt: list[dict[str, str]] = []
        for number in range(count):
            dealt.append({"CUDA_VISIBLE_DEVICES": ",".join(gpus[number::count] or [gpus[number % len(gpus)]])})
            sharing = len(range(number % len(gpus), count, len(gpus))) > 1
            if sharing and not any(name.startswith("XLA_PYTHON_CLIENT_") for name in environment):
                dealt[-1]["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
        logger.info("%d workers on the GPUs %s.", count, "; ".join(one["CUDA_VISIBLE_DEVICES"] for one in dealt))
        return dealt
    if chips := _tpu_chips(environment):
        if count > len(chips):
            raise ValueError(
                f"--workers is {count}, but there are {len(chips)} TPU chips here, and a chip belongs to one process: "
                f"give at most {len(chips)}."
            )
        logger.info("%d workers on the TPU chips %s of %d.", count, ", ".join(chips[:count]), len(chips))
        one_chip = {"TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1", "TPU_PROCESS_BOUNDS": "1,1,1"}
        return [{"TPU_VISIBLE_CHIPS": chip} | one_chip for chip in chips[:count]]
    return [{} for _ in range(count)]


def _gpus(environment: Mapping[str, str]) -> list[str]:
    """How CUDA calls the GPUs of this process: numbers or UUIDs."""
    given = environment.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name.strip() for name in given.split(",") if name.strip() not in ("", "-1")]
    if not _wanted(environment, "cuda", "gpu") or not shutil.which("nvidia-smi"):
        return []
    told = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout
    return list(map(str, range(sum(line.startswith("GPU ") for line in told.splitlines()))))


def _tpu_chips(environment: Mapping[str, str]) -> list[str]:
    if not _wanted(environment, "tpu"):
        return []
    given = environment.get("TPU_VISIBLE_CHIPS") or environment.get("TPU_VISIBLE_DEVICES")
    if given:
        return [chip.strip() for chip in given.split(",")]
    return list(map(str, range(num_available_tpu_chips_and_device_id()[0])))


def _wanted(environment: Mapping[str, str], *platforms: str) -> bool:
    """Whether JAX may use any of these platforms."""
    given = environment.get("JAX_PLATFORMS", "")
    return not given or bool(set(platforms) & {name.strip() for name in given.split(",")})


@contextlib.contextmanager
def _passing_on(workers: Sequence[subprocess.Popen]) -> Iterator[list[int]]:
    """While the block runs, signals that stop go on to the workers; gives those that came."""
    received: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        again = number == signal.SIGINT and number in received
        received.append(number)
        for worker in workers:
            if again:
                worker.kill()
            else:
                worker.terminate()
        logger.info("%s", "Killed the workers." if again else "Waiting for the workers to save.")

    # What is ignored stays so: `nohup` ignores SIGHUP.
    before = {number: signal.getsignal(number) for number in _STOPS}
    try:
        for number, handler in before.items():
            if handler != signal.SIG_IGN:
                signal.signal(number, stop)
        yield received
    except BaseException:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.wait()
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
