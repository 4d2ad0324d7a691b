"""How a labelling goes, told while it goes: a bar on a terminal, a line in the log now and then elsewhere."""

from __future__ import annotations

import datetime
import logging
import sys
from typing import Any

from dsbs_jax.teacher.desk import Asked

logger = logging.getLogger(__name__)

_LINE_SECONDS = 10.0
_BAR_SECONDS = 0.5


class Progress:
    """Takes the account of a run as it grows; use as a context.

    Attributes:
      seconds: how often it wants to be told.
    """

    def __init__(self, total: int, terminal: bool | None = None):
        """Starts telling.

        Args:
          total: the requests of the run, those that are answered already among them.
          terminal: whether to draw a bar; None where the standard error output is a terminal.
        """
        self._total = total
        self._bar: Any = None
        self._last = Asked()
        if sys.stderr.isatty() if terminal is None else terminal:
            from tqdm import tqdm

            self._bar = tqdm(total=total, unit=" requests", smoothing=0.1, dynamic_ncols=True)
        self.seconds = _BAR_SECONDS if self._bar is not None else _LINE_SECONDS

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def __call__(self, asked: Asked) -> None:
        """Tells how far the run is."""
        if self._bar is not None:
            # What was there at the start says nothing about the speed.
            self._bar.initial = asked.already + asked.shared
            self._bar.n = asked.done
            self._bar.set_postfix_str(_state(asked), refresh=True)
        elif asked.seconds - self._last.seconds >= 0.9 * _LINE_SECONDS:
            logger.info(progress_line(asked, self._last, self._total))
            self._last = asked


def progress_line(asked: Asked, before: Asked, total: int) -> str:
    """One line: how far, how fast since `before`, and how long still.

    Args:
      asked: the account now.
      before: the account some seconds ago.
      total: the requests of the run.
    """
    new = asked.answered - before.answered
    speed = new / (asked.seconds - before.seconds)
    line = f"{asked.done} of {total} requests done ({asked.done / max(total, 1):.1%}), {speed:.1f} answers/s"
    if state := _state(asked):
        line += f", {state}"
    if speed:
        left = datetime.timedelta(seconds=round((total - asked.done) / speed))
        line += f", {left} left"
    return line


def _state(asked: Asked) -> str:
    parts = [f"{asked.concurrency} at a time"] if asked.concurrency else []
    if asked.cost is not None:
        parts.append(f"cost {asked.cost:.2f}")
    if asked.retried:
        parts.append(f"{sum(asked.retried.values())} attempts failed")
    return ", ".join(parts)
