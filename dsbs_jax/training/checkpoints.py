"""A run's checkpoints in Orbax's format: newest and best, saved in the background.

A checkpoint is one folder `{folder}/{step}` with two Orbax items, `params` and `optimizer` (so that evaluation reads
the weights alone), and a JSON record of everything else a resume needs: data position, seed, configuration, vocabulary.
Orbax commits a folder by renaming it, so a process killed mid-save leaves no checkpoint that could be mistaken for one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

_METRIC = "validation_accuracy"
# Orbax reports every phase of every save, and a failure several times before it is raised; a run tells it once.
logging.getLogger("absl").setLevel(logging.CRITICAL)


def best_of(accuracies: Sequence[tuple[int, float]]) -> tuple[int, float] | None:
    """The (step, accuracy) selected on validation: the highest accuracy, the earliest step among equals."""
    return max(accuracies, key=lambda entry: (entry[1], -entry[0]), default=None)


def _scored(checkpoints: Sequence[Any]) -> list[tuple[int, float]]:
    """(step, accuracy) of the checkpoints whose accuracy was measured."""
    return [(c.step, c.metrics[_METRIC]) for c in checkpoints if c.metrics and _METRIC in c.metrics]


class _KeepLatestAndBest:
    """Orbax preservation policy: the newest checkpoint, to resume from, and the one `best_of` selects."""

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        del context
        best = best_of(_scored(checkpoints))
        newest = max(c.step for c in checkpoints)
        return [c.step == newest or (best is not None and c.step == best[0]) for c in checkpoints]


@dataclasses.dataclass(frozen=True)
class Restored:
    """Weights, optimiser state (None if not asked for) and the JSON record of one checkpoint."""

    step: int
    params: Any
    optimizer: Any
    record: dict[str, Any]


def abstract(tree: Any) -> Any:
    """The tree's shapes, dtypes and shardings, without its values."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


class SaveError(OSError):
    """A checkpoint could not be written."""


class Checkpoints:
    """The checkpoints of one run, in one folder. Use as a context manager: leaving it waits for the last save.

    A save that fails in the background is told by the next `save`, by `wait`, or on leaving, as a `SaveError`.

    Args:
      folder: the folder.
      writer: whether this process trains the run, and so may remove what a killed one left behind. Others only read: a
        save that looks unfinished may be another process's, under way.
    """

    def __init__(self, folder: str | pathlib.Path, writer: bool = True):
        self._folder = pathlib.Path(folder).absolute()
        self._checkpointer = ocp.training.Checkpointer(
            self._folder,
            # Every save the loop asks for is wanted; when to save is the loop's decision.
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=_KeepLatestAndBest(),
            cleanup_tmp_directories=writer,
        )
        self._saving: tuple[int, Any] | None = None

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            self.wait()
        except SaveError:
            # Orbax would tell the same failure again; and what stopped the run matters more than a save it spoilt.
            with contextlib.suppress(Exception):
                self._checkpointer.close()
            if error is None:
                raise
        else:
            self._checkpointer.close()

    @property
    def steps(self) -> list[int]:
        """The steps that can be restored, ascending."""
        return sorted(checkpoint.step for checkpoint in self._checkpointer.checkpoints)

    def best_step(self) -> int | None:
        """The step selected on validation among the checkpoints kept, or None before the first evaluation."""
        best = best_of(_scored(self._checkpointer.checkpoints))
        return best[0] if best else None

    def best_or_last(self) -> int | None:
        """The best step, before the first evaluation the last one; None where there is no checkpoint."""
        best = self.best_step()
        return best if best is not None else max(self.steps, default=None)

    def save(self, step: int, params: Any, optimizer: Any, record: dict[str, Any], accuracy: float | None) -> None:
        """Starts saving; returns once the arrays are copied off the devices.

        Args:
          step: the number of finished optimiser steps.
          params: the weights.
          optimizer: the optimiser's state.
          record: JSON, returned by `restore`.
          accuracy: validation accuracy at this step, or None if it was not measured.

        Raises:
          SaveError: this save could not start, or the one before it failed.
        """
        self.wait()
        if step in self.steps:
            return
        with self._told(step):
            response = self._checkpointer.save_checkpointables_async(
                step,
                {"params": params, "optimizer": optimizer},
                force=True,
                metrics=None if accuracy is None else {_METRIC: accuracy},
                custom_metadata=record,
            )
        self._saving = (step, response)

    def wait(self) -> None:
        """Returns when the last save is on disk.

        Raises:
          SaveError: it is not.
        """
        if self._saving is not None:
            (step, response), self._saving = self._saving, None
            with self._told(step):
                response.result()

    @contextlib.contextmanager
    def _told(self, step: int) -> Iterator[None]:
        try:
            yield
        # Orbax and TensorStore raise many classes, ValueError for a full disk among them.
        except Exception as error:
            # A failure in a thread comes back with the thread's call stack before it.
            lines = str(error).strip().splitlines() or [type(error).__name__]
            reason = lines[-1] if "Traceback" in str(error) else lines[0]
            raise SaveError(
                f"The checkpoint of step {step} could not be written to {self._folder} ({reason[:300]}): make room, or "
                "mend the folder, and start the same command again; it goes on at the last checkpoint that was saved."
            ) from error

    def record(self, step: int) -> dict[str, Any]:
        """The JSON record saved with a step."""
        self.wait()
        return dict(self._checkpointer.checkpointables_metadata(step).custom_metadata or {})

    def restore(self, step: int, params: Any, optimizer: Any = None) -> Restored:
        """Reads one step into the given abstract trees (shapes, dtypes, shardings); optimiser state only if asked.

        Raises:
          ValueError: where the saved weights have other names or shapes; lists them.
        """
        self.wait()
        saved = self._checkpointer.checkpointables_metadata(step).metadata["params"]
        _check_shapes(saved, params, f"{self._checkpointer.directory}/{step}")
        wanted = {"params": params} | ({} if optimizer is None else {"optimizer": optimizer})
        loaded = self._checkpointer.load_checkpointables(step, wanted)
        return Restored(step, loaded["params"], loaded.get("optimizer"), self.record(step))


def _check_shapes(saved: Any, wanted: Any, where: str) -> None:
    def shapes(tree: Any) -> dict[str, tuple[int, ...]]:
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape) for path, leaf in leaves}

    have, want = shapes(saved), shapes(wanted)
    differ = [
        f"{name} (saved {have.get(name, 'not')}, the model has {want.get(name, 'none')})"
        for name in sorted(have.keys() | want.keys())
        if have.get(name) != want.get(name)
    ]
    if differ:
        raise ValueError(f"The checkpoint {where} holds another model's weights: {', '.join(differ)}.")
