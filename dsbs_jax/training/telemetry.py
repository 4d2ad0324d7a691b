"""What a run tells while it runs: JSON lines, TensorBoard, a progress bar or plain lines.

Device values arrive as JAX arrays and are read two steps late, when they are finished: the host never waits for the
step it has just dispatched, and yet never runs further ahead than that.
"""

from __future__ import annotations

import collections
import json
import logging
import math
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import Any, TextIO

import jax
import numpy as np
import tqdm

from dsbs_jax.files import write_whole

LAG = 2  # Steps between dispatching a step and reading its numbers.

logger = logging.getLogger(__name__)


def _import_summary_writer() -> Any:
    """tensorboardX's writer. Where torch is installed, tensorboardX loads it (seconds) only to know its tensors."""
    absent = "torch" not in sys.modules
    if absent:
        sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        from tensorboardX import SummaryWriter
    finally:
        if absent:
            del sys.modules["torch"]
    return SummaryWriter


SummaryWriter = _import_summary_writer()


class NonFiniteLossError(FloatingPointError):
    """The loss or a gradient stopped being a number at `step`."""

    def __init__(self, step: int, values: dict[str, float], more: str = ""):
        numbers = ", ".join(f"{name} {value:g}" for name, value in values.items())
        super().__init__(f"Step {step}: the loss or a gradient is not finite ({numbers}).{more}")
        self.step, self.values = step, values


class Telemetry:
    """Averages a run's numbers over `period` steps and writes them out.

    Args:
      folder: gets `metrics.jsonl` and TensorBoard event files; None writes and tells nothing, as all processes of a run
        but the first, which read the numbers all the same: a loss that is not finite stops them at the same step.
      start_step: steps finished before this process; an interrupted run's later lines are dropped, they come again.
      total_steps: for the progress bar.
      period: steps between lines.
      tasks: the method's task names, which the entries of per-task metrics belong to.
      progress: draw a bar where standard error is a terminal; elsewhere plain lines are logged.
    """

    def __init__(
        self,
        folder: pathlib.Path | None,
        start_step: int,
        total_steps: int,
        period: int,
        tasks: Sequence[str],
        progress: bool,
    ):
        self._file: TextIO | None = None
        self._tensorboard: Any = None
        if folder is not None:
            _drop_lines_after(folder / "metrics.jsonl", start_step)
            self._file = (folder / "metrics.jsonl").open("a")
            self._tensorboard = SummaryWriter(str(folder / "tensorboard"), purge_step=start_step, flush_secs=30)
        self._pending: collections.deque[tuple[int, dict[str, jax.Array], dict[str, float]]] = collections.deque()
        self._window: list[dict[str, float]] = []
        self._period = period
        self._tasks = tuple(tasks)
        self._total_steps = total_steps
        self._started = time.perf_counter()
        self._start_step = start_step
        self._returned = time.perf_counter()
        bar = folder is not None and progress and sys.stderr.isatty()
        self._bar = tqdm.tqdm(total=total_steps, initial=start_step, unit="step", smoothing=0.05) if bar else None

    def __enter__(self) -> Telemetry:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._file is not None:
            self._file.close()
            self._tensorboard.close()
        if self._bar is not None:
            self._bar.close()

    def train_step(self, step: int, metrics: dict[str, jax.Array], host: dict[str, float]) -> None:
        """Notes one dispatched step: `metrics` on the device, `host` known already, `seconds/data` among it.

        Raises:
          NonFiniteLossError: for a step at most `LAG` ago.
        """
        self._pending.append((step, metrics, host))
        if len(self._pending) > LAG:
            self._read_one()
        # Reading waited for an older step: in the steady state, what is left of the time is the device's step.
        now = time.perf_counter()
        host["seconds/compute"] = now - self._returned - host["seconds/data"]
        self._returned = now

    def flush(self) -> None:
        """Reads every step dispatched so far; waits for the device.

        Raises:
          NonFiniteLossError: for any of them.
        """
        while self._pending:
            self._read_one()

    def event(self, step: int, values: dict[str, float]) -> None:
        """Writes numbers of one moment, such as an evaluation."""
        self._write(step, values)
        self._returned = time.perf_counter()

    def _read_one(self) -> None:
        step, metrics, host = self._pending.popleft()
        values = _scalars(jax.device_get(metrics), self._tasks)
        if not values.pop("finite"):
            raise NonFiniteLossError(step, values)
        self._window.append(values | host)
        if self._bar is not None:
            self._bar.update()
        if step % self._period == 0 or step == self._total_steps:
            self._write(step, _summarise(self._window))
            self._window.clear()

    def _write(self, step: int, values: dict[str, float]) -> None:
        if self._file is None:
            return
        values = {name: round(value, 6) if math.isfinite(value) else value for name, value in values.items()}
        self._file.write(json.dumps({"step": step} | values) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._tensorboard.add_scalar(name, value, step)
        if self._bar is not None:
            self._bar.set_postfix({k: v for k, v in values.items() if k in ("loss", "validation/accuracy")})
        else:
            done = step - self._start_step
            left = (time.perf_counter() - self._started) / max(done, 1) * (self._total_steps - step)
            text = " ".join(f"{name}={value:.4g}" for name, value in values.items())
            logger.info("step %d/%d (%.0f s left) %s", step, self._total_steps, left, text)


def _scalars(metrics: dict[str, np.ndarray], tasks: tuple[str, ...]) -> dict[str, float]:
    """The step's metrics by their names in the log."""
    scalars = {name: float(metrics[name]) for name in ("loss", "z_loss", "grad_norm", "learning_rate", "finite")}
    return scalars | {f"loss/{task}": float(value) for task, value in zip(tasks, metrics["task_loss"], strict=True)}


def _summarise(window: list[dict[str, float]]) -> dict[str, float]:
    """Means over the window, but rates as total over total."""
    names = dict.fromkeys(name for values in window for name in values)
    means: dict[str, float] = {name: float(np.mean([values[name] for values in window])) for name in names}
    seconds = sum(values["seconds/data"] + values["seconds/compute"] for values in window)
    tokens = sum(values["tokens"] for values in window)
    return means | {"tokens_per_second": tokens / max(seconds, 1e-9), "seconds/step": seconds / len(window)}


def _drop_lines_after(path: pathlib.Path, step: int) -> None:
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            entry: dict[str, Any] = json.loads(line)
        except json.JSONDecodeError:  # The line a killed process was writing.
            continue
        if entry["step"] <= step:
            kept.append(line + "\n")
    write_whole(path, "".join(kept))
