"""`dsbs import`: weights from a folder or the Hugging Face hub into a folder that every mesh reads in slices."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import re
from collections import Counter
from pathlib import Path

from dsbs_jax.models.config import Precision, T5Config
from dsbs_jax.models.imported import GIN, Record, architecture, gin_lines, is_finished, write
from dsbs_jax.models.parameters import abstract_params
from dsbs_jax.models.streaming import Weights, load
from dsbs_jax.models.t5 import T5
from dsbs_jax.models.weights import check_architecture, open_weights
from dsbs_jax.sharding.agreement import from_first, together
from dsbs_jax.sharding.mesh import MeshConfig, make_mesh
from dsbs_jax.sharding.rules import param_shardings

logger = logging.getLogger(__name__)

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_FETCHED = ("config.json", "*.safetensors", "*.safetensors.index.json")
# What changes whenever the weights are written again.
_OWN_FILES = (*_FETCHED, "model.json", "checkpoint", "_METADATA", "state/checkpoint", "state/_METADATA")


@dataclasses.dataclass(frozen=True)
class ImportConfig:
    """How weights are imported.

    Attributes:
      mesh: over which devices they pass.
      model: their architecture, where the source does not say it; where it does, they must agree.
    """

    mesh: MeshConfig = MeshConfig(preset="fsdp")
    model: T5Config | None = None


def import_weights(source: str, output: str | Path, config: ImportConfig, dtype: Precision = "float32") -> str:
    """Imports weights; every process of the run calls it.

    Args:
      source: a folder (Hugging Face, a T5X checkpoint, an imported one), or a name on the Hugging Face hub.
      output: the folder to make, where all processes see it.
      config: mesh and, for T5X, the architecture.
      dtype: of the parameters written.

    Returns:
      What was read, and how to train from it, for people.

    Raises:
      ValueError: whatever is wrong with source or output, before anything is written.
      OSError: the output cannot be written.
    """
    mesh = make_mesh(config.mesh)
    # An error in one process is an error in all.
    folder, name, fingerprint = together("import: find", lambda: _find(source))
    weights = together("import: open", lambda: open_weights(folder))
    model = dataclasses.replace(_model(weights, config.model), param_dtype=dtype, scan_layers=True)
    described = architecture(model)
    record = Record(described, name, fingerprint, weights.kind, dtype, model.num_parameters())
    if from_first("import: finished", lambda: is_finished(output, record)):
        return f"{output} holds {name} in {dtype} already; nothing was read.\n{_usage(output)}"
    logger.info("Reading %s.", folder)
    params = load(weights, model, param_shardings(abstract_params(T5(model)), mesh))
    write(output, params, record)
    lines = f"The model, as in {Path(output) / GIN}:\n\n{gin_lines(described)}"
    return f"{_summary(weights, record)}\n{lines}\n{_usage(output)}"


def _find(source: str) -> tuple[Path, str, str]:
    """(folder, name for the record, fingerprint) of a source."""
    path = Path(source).expanduser()
    if path.is_dir():
        path = path.resolve()
        files = sorted({file for pattern in _OWN_FILES for file in path.glob(pattern)})
        facts = [(file.relative_to(path).as_posix(), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        return path, str(path), hashlib.sha256(repr(facts).encode()).hexdigest()[:16]
    if path.exists() or not _HUB_NAME.fullmatch(source):
        raise ValueError(f"{source} is neither a folder with weights nor a name on the hub, e.g. google/flan-t5-base.")
    folder = _fetch(source)
    return folder, source, folder.name


def _fetch(name: str) -> Path:
    """The snapshot of a repository of the hub: its config and safetensors, in the hub's cache."""
    import huggingface_hub
    import huggingface_hub.errors

    try:
        folder = Path(huggingface_hub.snapshot_download(name, allow_patterns=list(_FETCHED)))
    except huggingface_hub.errors.RepositoryNotFoundError:
        raise ValueError(
            f"There is no folder {name}, and the hub has no model of that name that you may read: check the name, or "
            "log in with `hf auth login`."
        ) from None
    # The hub's client, and what it asks with, have a class for each way in which a network can fail.
    except Exception as error:
        raise ValueError(
            f"There is no folder {name}, and the hub's model of that name can neither be fetched nor lies in the cache "
            f"({type(error).__name__}): import it where there is a network, or name a folder."
        ) from None
    if not any(folder.glob("*.safetensors")):
        raise ValueError(
            f"The hub's {name} has no safetensors weights. If it has a pytorch_model.bin, let transformers convert it, "
            f"T5ForConditionalGeneration.from_pretrained('{name}').save_pretrained('FOLDER'), and import FOLDER."
        )
    return folder


def _model(weights: Weights, named: T5Config | None) -> T5Config:
    """The architecture of the weights."""
    if weights.architecture is None:
        if named is None:
            raise ValueError(
                f"{weights.folder} is a {weights.kind}, which does not say its architecture: name it with --gin_file, "
                "e.g. --gin_file models/t5_1_1_base."
            )
        return named
    if named is not None:
        check_architecture(weights.architecture, named, weights.folder)
    return T5Config(**weights.architecture)


def _summary(weights: Weights, record: Record) -> str:
    types = Counter(tensor.dtype for tensor in weights.tensors.values())
    counted = ", ".join(f"{count} of {name}" for name, count in types.most_common())
    text = (
        f"Read {record.source} ({weights.kind}): {len(weights.tensors)} tensors ({counted}), "
        f"{record.parameters:,} parameters, now {record.dtype}."
    )
    return f"{text} {weights.left_out} arrays of the optimiser's state were left out." if weights.left_out else text


def _usage(output: str | Path) -> str:
    gin, folder = Path(output) / GIN, Path(output)
    return f"dsbs train --gin_file {gin} --gin.INITIAL_CHECKPOINT_PATH=\"'{folder}'\" ..."
