"""Weights to start from, whatever wrote them: a Hugging Face folder, an imported one, or a checkpoint of T5X."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dsbs_jax.models import hf, imported, t5x
from dsbs_jax.models.config import T5Config
from dsbs_jax.models.streaming import Weights, load


def open_weights(folder: str | Path) -> Weights:
    """The weights in a folder, none of them read, told apart by what lies there.

    Args:
      folder: with `model.json` (`dsbs import` wrote it), with `config.json` and safetensors (Hugging Face), or a
        `checkpoint_STEP` of T5X.

    Raises:
      ValueError: where it is none of these, or is partial; says what was looked for.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(
            f"There is no folder {folder}: INITIAL_CHECKPOINT_PATH and `dsbs import` name one with weights."
        )
    if imported.is_imported(folder):
        return imported.open_imported(folder)
    if hf.is_huggingface(folder):
        described = imported.architecture(hf.config_from_huggingface(folder))
        return dataclasses.replace(hf.open_huggingface(folder), architecture=described)
    if t5x.is_t5x(folder):
        return t5x.open_t5x(folder)
    if steps := t5x.steps_of_t5x(folder):
        raise ValueError(f"{folder} is the folder of a T5X run: name one of its checkpoints, {', '.join(steps)}.")
    raise ValueError(
        f"{folder} holds no weights: neither model.json (dsbs import), nor config.json and model.safetensors (Hugging "
        "Face), nor checkpoint or state/_METADATA (T5X), nor checkpoints (a run of dsbs train)."
    )


def check_architecture(described: Mapping[str, Any] | None, config: T5Config, folder: str | Path) -> None:
    """Refuses weights of another architecture than the model's, before any is read.

    Args:
      described: what the folder says of its model; None where it says nothing.
      config: of the model.
      folder: for the message.

    Raises:
      ValueError: lists every field that differs.
    """
    ours = imported.architecture(config)
    differ = [
        f"{name} is {described.get(name)!r} there and {value!r} here"
        for name, value in ours.items()
        if described is not None and described.get(name) != value
    ]
    if differ:
        raise ValueError(
            f"The weights in {folder} are those of another model: {'; '.join(differ)}. Name theirs with --gin_file "
            "models/... or the fields of T5Config, or name other weights."
        )


def load_weights(folder: str | Path, config: T5Config, shardings: Any = None) -> dict[str, Any]:
    """The parameters of a model from a folder of weights; result as in `streaming.load`.

    Args:
      folder: see `open_weights`.
      config: of the model to fill: the architecture must be the weights', type and stacking of its layers need not.
      shardings: where to put the parameters; None: the default device.

    Raises:
      ValueError: where the folder's model is another one, or tensors are missing, unknown or of another shape; lists
        all that differ.
    """
    weights = open_weights(folder)
    check_architecture(weights.architecture, config, folder)
    return load(weights, config, shardings)
