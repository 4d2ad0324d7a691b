"""Imported weights: an Orbax pytree of the parameters, their layers stacked, and `model.json` beside it.

The folder appears whole or not at all: it is written under another name and renamed when all processes are done.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

import dsbs_jax
from dsbs_jax.models.config import T5Config
from dsbs_jax.models.streaming import Layer, Source, Tensor, Weights
from dsbs_jax.models.zarr import is_orbax, open_arrays, orbax_specs
from dsbs_jax.sharding.agreement import from_first

# Orbax reports every phase of every save.
logging.getLogger("absl").setLevel(logging.CRITICAL)

PARAMS, RECORD, GIN = "params", "model.json", "model.gin"
# Chunks that any mesh reads without reading much else. (A chunk is otherwise what one device of the writer held.)
_CHUNK_BYTES = 32 * 2**20
# Written at once, on the way from the devices to the disk.
_AT_ONCE_BYTES = 256 * 2**20

# The fields of T5Config that say which function the weights compute. All others say how, or how it is trained.
ARCHITECTURE = (
    *("d_model", "d_kv", "d_ff", "num_layers", "num_decoder_layers", "num_heads", "feed_forward", "tie_embeddings"),
    *("scale_logits", "vocab_size", "num_buckets", "max_distance", "epsilon"),
)


def architecture(config: T5Config | Mapping[str, Any]) -> dict[str, Any]:
    """The fields that decide the architecture."""
    fields = dataclasses.asdict(config) if isinstance(config, T5Config) else config
    return {name: fields[name] for name in ARCHITECTURE}


@dataclasses.dataclass(frozen=True)
class Record:
    """What `model.json` says.

    Attributes:
      model: see `architecture`.
      source: what was imported, as it was named.
      fingerprint: of its files; a hub's revision.
      kind: of source.
      dtype: of the parameters.
      parameters: how many numbers they are.
      written_by: this package and its version.
    """

    model: dict[str, Any]
    source: str
    fingerprint: str
    kind: str
    dtype: str
    parameters: int
    written_by: str = f"dsbs_jax {dsbs_jax.__version__}"

    def same(self, other: Record) -> bool:
        """Whether the other one is an import of the same weights; the tool's version does not matter."""
        return dataclasses.replace(self, written_by="") == dataclasses.replace(other, written_by="")


@dataclasses.dataclass(frozen=True)
class _Ours(Weights):
    """Parameters by their own names, with layers stacked or not: an imported folder's, or a step's of a run."""

    def source(self, path: str, num_layers: int) -> Source:
        stack, _, rest = path.partition("/")
        group, _, leaf = rest.partition("/")
        if path in self.tensors or path in self.broken or not group.startswith("layers"):
            return Source((path,))
        if group == "layers":
            return Source(tuple(f"{stack}/layers_{layer}/{leaf}" for layer in range(num_layers)), stacked=True)
        return Source((f"{stack}/layers/{leaf}",), layer=Layer(0, int(group.removeprefix("layers_")), num_layers))


def is_imported(folder: str | Path) -> bool:
    """Whether `dsbs import` wrote a folder."""
    return (Path(folder) / RECORD).is_file()


def open_imported(folder: str | Path) -> Weights:
    """An imported folder: every array opened, none read.

    Raises:
      ValueError: where its own files are missing or broken.
    """
    record = read_record(folder)
    return open_params(Path(folder) / PARAMS, record.model)


def open_params(folder: str | Path, model: Mapping[str, Any]) -> Weights:
    """Parameters that Orbax wrote, by this model's names: every array opened, none read.

    Args:
      folder: of the pytree.
      model: their architecture, see `architecture`.

    Raises:
      ValueError: where the folder is no pytree of Orbax.
    """
    folder = Path(folder)
    if not is_orbax(folder):
        raise ValueError(f"{folder} holds no _METADATA, which Orbax writes: copy or import the whole folder again.")
    stored, broken = open_arrays({"/".join(key): spec for key, spec in orbax_specs(folder).items()})
    tensors: dict[str, Tensor] = {**stored}
    return _Ours("imported folder", folder, tensors, broken, architecture(model))


def read_record(folder: str | Path) -> Record:
    """`model.json` of an imported folder.

    Raises:
      ValueError: where it is not what `dsbs import` writes.
    """
    path = Path(folder) / RECORD
    try:
        record = Record(**json.loads(path.read_text("utf-8")))
        architecture(record.model)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is not what `dsbs import` writes ({error!r}): import the weights again.") from None
    return record


def is_finished(folder: str | Path, record: Record) -> bool:
    """Whether a folder already holds the same import.

    Raises:
      ValueError: where it holds anything else.
    """
    folder = Path(folder)
    if not folder.exists():
        return False
    if not is_imported(folder):
        raise ValueError(f"{folder} exists and is no imported folder: choose another --output.")
    there = read_record(folder)
    if not there.same(record):
        raise ValueError(
            f"{folder} holds an import of {there.source} ({there.dtype}), of other files or to other numbers than this "
            f"one of {record.source} ({record.dtype}): choose another --output."
        )
    return True


def write(folder: str | Path, params: Any, record: Record) -> None:
    """Writes an imported folder; every process calls it and writes what its devices hold.

    Args:
      folder: on a file system that all processes share; must not exist.
      params: the parameters, layers stacked.
      record: of `model.json`.

    Raises:
      OSError: where it cannot be written.
    """
    final = Path(folder).absolute()
    unfinished = final.with_name(f".{final.name}.importing")

    def make_room() -> None:
        # What a killed import left behind.
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.parent.mkdir(parents=True, exist_ok=True)

    def finish() -> None:
        text = json.dumps(dataclasses.asdict(record), indent=2)
        (unfinished / RECORD).write_text(f"{text}\n", "utf-8")
        (unfinished / GIN).write_text(gin_lines(record.model), "utf-8")
        unfinished.rename(final)

    from_first("import: make room", make_room)
    options = ocp.Context()
    # Orbax refuses what is larger than its limits.
    shards = (shard.data.nbytes for array in jax.tree.leaves(params) for shard in array.addressable_shards)
    at_once = max(_AT_ONCE_BYTES, 1 + max(shards))
    options.memory_options.write_concurrent_bytes = at_once
    options.memory_options.transfer_concurrent_bytes = at_once
    options.array.saving.storage_options.chunk_byte_size = _CHUNK_BYTES
    # Random-looking numbers do not get smaller.
    options.array.saving.use_compression = False
    try:
        with options:
            ocp.save_checkpointables(unfinished, {PARAMS: params})
    # TensorStore raises ValueError for a full disk, too.
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise OSError(f"{final} could not be written ({reason[:300]}): make room, and import again.") from error
    from_first("import: finish", finish)


def gin_lines(model: Mapping[str, Any]) -> str:
    """The gin file that names an architecture."""
    return "".join(["MODEL = @T5Config()\n", *(f"T5Config.{name} = {value!r}\n" for name, value in model.items())])
