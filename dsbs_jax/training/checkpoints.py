"""The only module that speaks to Orbax: a run's checkpoints, newest and best, saved in the background.

A checkpoint is one folder `{folder}/{step}` with two Orbax items, `params` and `optimizer` (so that evaluation reads
the weights alone), and a JSON record of everything else a resume needs: data position, seed, configuration, vocabulary.
Orbax commits a folder by renaming it, so a process killed mid-save leaves no checkpoint that could be mistaken for one.
"""

from __future__ import annotations

import dataclasses
import logging
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

_METRIC = "validation_accuracy"
# Orbax reports every phase of every save at INFO and above; a run's own log says what was saved.
logging.getLogger("absl").setLevel(logging.ERROR)


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


class Checkpoints:
    """The checkpoints of one run, in one folder. Use as a context manager: leaving it waits for the last save.

    Args:
      folder: the folder.
      writer: whether this process trains the run, and so may remove what a killed one left behind. Others only read: a
        save that looks unfinished may be another process's, under way.
    """

    def __init__(self, folder: str | pathlib.Path, writer: bool = True):
        self._checkpointer = ocp.training.Checkpointer(
            pathlib.Path(folder).absolute(),
            # Every save the loop asks for is wanted; when to save is the loop's decision.
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=_KeepLatestAndBest(),
            cleanup_tmp_directories=writer,
        )
        self._saving: Any = None

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *exception: object) -> None:
        self._checkpointer.close()

    @property
    def steps(self) -> list[int]:
        """The steps that can be restored, ascending."""
        return sorted(checkpoint.step for checkpoint in self._checkpointer.checkpoints)

    def best_step(self) -> int | None:
        """The step selected on validation among the checkpoints kept, or None before the first evaluation."""
        best = best_of(_scored(self._checkpointer.checkpoints))
        return best[0] if best else None

    def save(self, step: int, params: Any, optimizer: Any, record: dict[str, Any], accuracy: float | None) -> None:
        """Starts saving; returns once the arrays are copied off the devices.

        Args:
          step: the number of finished optimiser steps.
          params: the weights.
          optimizer: the optimiser's state.
          record: JSON, returned by `restore`.
          accuracy: validation accuracy at this step, or None if it was not measured.
        """
        if step in self.steps:
            return
        self._saving = self._checkpointer.save_checkpointables_async(
            step,
            {"params": params, "optimizer": optimizer},
            force=True,
            metrics=None if accuracy is None else {_METRIC: accuracy},
            custom_metadata=record,
        )

    def wait(self) -> None:
        """Returns when the last save is on disk; raises what went wrong with it."""
        if self._saving is not None:
            self._saving.result()
            self._saving = None

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
