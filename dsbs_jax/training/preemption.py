"""SIGTERM, the cluster's way to say that a machine is about to go: finish the step, save, exit."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

import jax

from dsbs_jax.sharding import distributed
from dsbs_jax.sharding.agreement import AgreedEnd


class Preempted(AgreedEnd):
    """The run was told to stop; everything up to `step` is saved."""

    def __init__(self, step: int, model_dir: str):
        super().__init__(f"Stopped by SIGTERM after step {step}; start the same command again to go on. ({model_dir})")
        self.step = step


class PreemptionSignal:
    """Context in which SIGTERM only makes `stops_after` true: in one process at once; in a run of several after a step
    that all agree on, whichever of them got the signal. A no-op outside the main thread, where no signal arrives."""

    def __init__(self) -> None:
        self._received = False
        self._previous: Any = None

    def __enter__(self) -> PreemptionSignal:
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._receive)
        if jax.process_count() > 1:
            # JAX's own handler takes the place of ours.
            distributed.hear_preemption()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)

    def stops_after(self, step: int) -> bool:
        """Whether the run is to stop after `step` steps. Ask it after every step: all processes must."""
        return self._received if jax.process_count() == 1 else distributed.preempted(step)

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        self._received = True
