"""A sweep's workers as jobs of a cluster: an array of `dsbs sweep FILE --run`, through submitit.

The jobs share nothing but the sweep's folder, as workers do anywhere. A job that the cluster takes back tells its
worker to save, and goes into the queue again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import pathlib
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from dsbs_jax.experiments.workers import DONE

logger = logging.getLogger(__name__)

Cluster = Literal["slurm", "local"]

# What a worker's process ends with when it saved on SIGTERM.
_SAVED = (143, -signal.SIGTERM)
# As long as a cluster may take from its SIGTERM to taking the machine away.
_GRACE_SECONDS = 900


@dataclasses.dataclass(frozen=True)
class SubmitConfig:
    """What each worker's job asks the cluster for.

    Attributes:
      partition: of the cluster; None leaves the choice to it.
      account: who pays.
      qos: quality of service.
      timeout_min: the job's time limit, in minutes. It is told before that, saves, and is queued again.
      gpus_per_worker: GPUs of a job; its runs use them together. Not read by `local`, whose workers have none.
      cpus_per_worker: processor cores of a job.
      mem_gb: memory of a job in GB; None leaves it to the cluster.
      signal_delay_s: how long before the time limit a job is told, in seconds: its time to save.
      requeues: how often a job may reach its time limit.
      setup: shell commands before the worker, such as `module load cuda`. Not read by `local`.
      extra: further flags of sbatch, such as {'constraint': 'h100'}. Not read by `local`.
    """

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    timeout_min: int = 240
    gpus_per_worker: int = 1
    cpus_per_worker: int = 4
    mem_gb: float | None = None
    signal_delay_s: int = 300
    requeues: int = 100
    setup: tuple[str, ...] = ()
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        least = {"timeout_min": 1, "gpus_per_worker": 0, "cpus_per_worker": 1, "signal_delay_s": 1, "requeues": 0}
        for name, lowest in least.items():
            value = getattr(self, name)
            if not isinstance(value, int) or value < lowest:
                raise ValueError(f"SubmitConfig.{name} is {value!r}; it must be a whole number of at least {lowest}.")
        if self.signal_delay_s >= 60 * self.timeout_min:
            raise ValueError(
                f"SubmitConfig.signal_delay_s is {self.signal_delay_s} seconds, and the time limit is "
                f"{self.timeout_min} minutes: a job would be told to stop when it starts."
            )


class Worker:
    """A worker's process inside a job; submitit calls it there, and `checkpoint` when the job is about to end.

    Args:
      command: of the process.
      folder: where it runs.
    """

    def __init__(self, command: Sequence[str], folder: str):
        self._command = list(command)
        self._folder = folder
        self._process: subprocess.Popen | None = None

    def __call__(self) -> int:
        """Runs the worker until nothing is left to do; returns its exit code.

        Raises:
          RuntimeError: it ended otherwise.
        """
        from submitit.core.job_environment import JobEnvironment

        told = getattr(signal, f"SIG{JobEnvironment.USR_SIG}")

        def ignore() -> None:
            # The cluster signals every process of a job. This one is told by its parent, with SIGTERM.
            signal.signal(told, signal.SIG_IGN)

        self._process = subprocess.Popen(self._command, cwd=self._folder, preexec_fn=ignore)
        try:
            end = self._process.wait()
        except BaseException:
            # Whatever ends the job's own process, the worker saves.
            self._process.terminate()
            raise
        if end in _SAVED:
            # A job that ended by itself would not be queued again by who sent the SIGTERM.
            logger.warning("The worker has saved: waiting for the cluster, which sent SIGTERM, to take the job.")
            time.sleep(_GRACE_SECONDS)
        elif end not in DONE:
            raise RuntimeError(f"The worker ended with {end}. Start the sweep again; finished cells are kept.")
        return end

    def checkpoint(self) -> Any:
        """Lets the worker save and end; returns what is to be queued again. Called by submitit's signal handler."""
        from submitit.helpers import DelayedSubmission

        if self._process is not None:
            self._process.terminate()
            # `wait` is under way below this handler, and holds its lock.
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        return DelayedSubmission(Worker(self._command, self._folder))


def submit(command: Sequence[str], count: int, folder: pathlib.Path, cluster: Cluster, config: SubmitConfig) -> str:
    """Submits `count` jobs that each run `command`, a worker, in this process's folder; returns what to tell the user.

    Args:
      command: with absolute paths.
      count: of workers.
      folder: the sweep's; logs and the jobs' scripts go to `folder/logs/`.
      cluster: `slurm`; or `local`, processes of this machine that outlive this one, without GPUs.
      config: what each job asks for.

    Raises:
      ImportError: submitit is not installed.
      ValueError: this is no machine of the cluster.
      RuntimeError: the cluster refuses the jobs, with its reason.
    """
    try:
        import submitit
    except ImportError:
        raise ImportError("--submit needs submitit: pip install 'dsbs_jax[slurm]' (or submitit).") from None
    if cluster == "slurm" and not (shutil.which("sbatch") and shutil.which("srun")):
        raise ValueError(
            "--submit slurm needs sbatch and srun, which are not here: start it on a login node of the cluster, or use "
            "--submit local."
        )
    logs = folder.absolute() / "logs"
    executor = submitit.AutoExecutor(
        logs, cluster, slurm_max_num_timeout=config.requeues, local_max_num_timeout=config.requeues
    )
    executor.update_parameters(
        name=f"dsbs-{folder.name}",
        timeout_min=config.timeout_min,
        gpus_per_node=config.gpus_per_worker if cluster == "slurm" else 0,
        cpus_per_task=config.cpus_per_worker,
        mem_gb=config.mem_gb,
        nodes=1,
        tasks_per_node=1,
        stderr_to_stdout=True,
        slurm_partition=config.partition,
        slurm_account=config.account,
        slurm_qos=config.qos,
        slurm_signal_delay_s=config.signal_delay_s,
        slurm_array_parallelism=count,
        slurm_setup=list(config.setup) or None,
        slurm_additional_parameters=dict(config.extra) or None,
    )
    try:
        with _silent() if cluster == "local" else contextlib.nullcontext(), executor.batch():
            jobs = [executor.submit(Worker(command, os.getcwd())) for _ in range(count)]
    except (submitit.core.utils.FailedSubmissionError, submitit.core.utils.FailedJobError) as error:
        raise RuntimeError(f"{cluster} refuses the jobs: {' '.join(str(error).split())}") from None
    names = [str(job.job_id) for job in jobs]
    stop = f"scancel {names[0].split('_')[0]}" if cluster == "slurm" else f"kill -INT {' '.join(names)}"
    return f"Submitted {count} workers to {cluster}: {', '.join(names)}. Logs: {logs}. Stop them: {stop}"


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Processes that start in the block have no standard streams: whoever reads this one's must not wait for them."""
    kept = [os.dup(number) for number in range(3)]
    nowhere = os.open(os.devnull, os.O_RDWR)
    try:
        for number in range(3):
            os.dup2(nowhere, number)
        yield
    finally:
        for number, stream in enumerate(kept):
            os.dup2(stream, number)
        for stream in (*kept, nowhere):
            os.close(stream)
