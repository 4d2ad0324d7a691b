"""SIGTERM, the cluster's way to say that a machine is about to go: finish the step, save, exit."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class Preempted(Exception):
    """The run was told to stop; everything up to `step` is saved."""

    def __init__(self, step: int, model_dir: str):
        super().__init__(f"Stopped by SIGTERM after step {step}; start the same command again to go on. ({model_dir})")
        self.step = step


class PreemptionSignal:
    """Context in which SIGTERM only sets `received`. A no-op outside the main thread, where no signal arrives."""

    def __init__(self) -> None:
        self.received = False
        self._previous: Any = None

    def __enter__(self) -> PreemptionSignal:
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._receive)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        self.received = True
