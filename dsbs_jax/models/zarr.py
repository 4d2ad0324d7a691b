"""Arrays of Orbax and T5X checkpoints, opened with TensorStore and read slice by slice.

Orbax keeps an array in a folder of its own (zarr), or all arrays of all processes in one key-value store (OCDBT); its
`_METADATA` names them and says which. Where that file is absent, in checkpoints of 2022 and 2023, a msgpack file
`checkpoint` does.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore

from dsbs_jax.models.streaming import Index

_METADATA, _OCDBT = "_METADATA", "manifest.ocdbt"
# How Orbax names what holds nothing.
_EMPTY = ("None", "Dict", "List", "Tuple", "NamedTuple")
# A chunk that is not there is an error, not zeros.
_STRICT = {"fill_missing_data_reads": False}


@dataclasses.dataclass(frozen=True)
class Inline:
    """A small array that lies in the checkpoint's own file, and so in memory."""

    values: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return self.values.shape

    @property
    def dtype(self) -> str:
        """The name of its type."""
        return self.values.dtype.name

    def read(self, index: Index) -> np.ndarray:
        """A part of it."""
        return self.values[index]


@dataclasses.dataclass(frozen=True)
class Stored:
    """An array of a TensorStore, and its name for people."""

    store: Any
    name: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return tuple(self.store.shape)

    @property
    def dtype(self) -> str:
        """The name of its type."""
        return self.store.dtype.name

    def read(self, index: Index) -> np.ndarray:
        """A part of it; only the chunks that it touches are read."""
        try:
            return self.store[index].read().result()
        # As below, in `open_arrays`.
        except (ValueError, OSError) as error:
            reason = (str(error).splitlines() or ["no reason given"])[0]
            raise ValueError(f"{self.name} cannot be read ({reason[:300]}): copy the whole folder again.") from None


def open_arrays(specs: Mapping[str, dict[str, Any]]) -> tuple[dict[str, Stored], dict[str, str]]:
    """Opens arrays side by side, which on a network file system takes a fraction of the time.

    Args:
      specs: of `zarr_folder` or `orbax_specs`, by name.

    Returns:
      The arrays by name; and what is wrong with those that cannot be opened or whose chunks are not all there. (What
      TensorStore does not find it would read as zeros.)
    """
    opening = {name: tensorstore.open(spec, open=True, read=True) for name, spec in specs.items()}
    found, broken = {}, {}
    for name, future in opening.items():
        try:
            found[name] = Stored(future.result(), name)
        # TensorStore raises ValueError for what is missing and for what is damaged.
        except (ValueError, OSError) as error:
            reason = "is missing" if "NOT_FOUND" in str(error) else f"cannot be read ({str(error)[:200]})"
            broken[name] = f"{reason}, {_called(specs[name])}"
    listing = {
        name: stored.store.kvstore.list()
        for name, stored in found.items()
        if specs[name]["driver"] == "zarr" and specs[name]["kvstore"]["driver"] == "file"
    }
    for name, future in listing.items():
        chunk = found[name].store.chunk_layout.read_chunk.shape
        wanted = math.prod(math.ceil(size / step) for size, step in zip(found[name].shape, chunk, strict=True))
        present = sum(not key.rpartition(b"/")[2].startswith(b".") for key in future.result())
        if present < wanted:
            broken[name] = f"has {present} of its {wanted} chunks, {_called(specs[name])}"
            del found[name]
    return found, broken


def zarr_folder(folder: Path, name: str, shape: Sequence[int] | None = None) -> dict[str, Any]:
    """The spec of an array in a folder of its own, of the given shape if any is given."""
    spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": f"{folder.absolute() / name}/"}, **_STRICT}
    return spec if shape is None else spec | {"metadata": {"shape": [int(size) for size in shape]}}


def is_orbax(folder: Path) -> bool:
    """Whether a folder holds a pytree that Orbax wrote, with a `_METADATA` file."""
    return (folder / _METADATA).is_file()


def orbax_specs(folder: Path) -> dict[tuple[str, ...], dict[str, Any]]:
    """The specs of all arrays of an Orbax pytree, by path.

    Raises:
      ValueError: where `_METADATA` is not what Orbax writes.
    """
    path = folder / _METADATA
    try:
        metadata = json.loads(path.read_text("utf-8"))
        leaves = metadata["tree_metadata"].values()
        keys = [
            tuple(str(part["key"]) for part in leaf["key_metadata"])
            for leaf in leaves
            if leaf["value_metadata"]["value_type"] not in _EMPTY
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not the metadata of an Orbax checkpoint ({error!r}): copy it again.") from None
    driver = {"driver": "zarr3" if metadata.get("use_zarr3") else "zarr"}
    if not metadata.get("use_ocdbt", (folder / _OCDBT).is_file()):
        return {key: zarr_folder(folder, ".".join(key)) | driver for key in keys}
    if not (folder / _OCDBT).is_file():
        raise ValueError(
            f"{folder} lacks {_OCDBT}, through which Orbax finds every array: copy the whole folder again."
        )
    store = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{folder.absolute()}/"}}
    return {key: {**driver, "kvstore": {**store, "path": f"{'.'.join(key)}/"}, **_STRICT} for key in keys}


def _called(spec: dict[str, Any]) -> str:
    """The array's name in its folder or store."""
    return f"looked for as {spec['kvstore']['path'].rstrip('/').rpartition('/')[2]}"
