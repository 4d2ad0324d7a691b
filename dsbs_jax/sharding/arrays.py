"""Host-local rows of a batch to global arrays.

Every process builds and holds only the rows that its own devices compute; `put_batch` makes one global array of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dsbs_jax.sharding.mesh import AXES

_ROW_AXES = AXES[:2]


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows split over `data` and `fsdp`, everything else whole."""
    return NamedSharding(mesh, PartitionSpec(_ROW_AXES))


def row_multiple(mesh: Mesh) -> int:
    """The number of shards of a batch's rows: the rows of every batch must be a multiple of it."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def check_rows(mesh: Mesh, rows: int, num_microbatches: int = 1) -> None:
    """Raises ValueError where `rows` rows cannot be split over `mesh` and `num_microbatches`."""
    shards = row_multiple(mesh)
    if rows < 1 or rows % (shards * num_microbatches):
        raise ValueError(
            f"A batch of {rows} rows cannot be divided over data={mesh.shape['data']} x fsdp={mesh.shape['fsdp']} "
            f"devices in {num_microbatches} microbatches: its rows must be a multiple of {shards * num_microbatches}."
        )


def local_rows(mesh: Mesh, rows: int) -> np.ndarray:
    """Which of a global batch's `rows` rows this process is to build: those that its devices hold.

    Processes whose devices hold the same rows (a `model` axis that spans processes) all build them. On a TPU torus a
    process's devices need not hold neighbouring rows.

    Returns:
      int64 [local rows], ascending.

    Raises:
      ValueError: where the mesh cannot divide the rows.
    """
    check_rows(mesh, rows)
    size = rows // row_multiple(mesh)
    return (np.array(_held_shards(mesh))[:, None] * size + np.arange(size)).reshape(-1)


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's rows to global arrays.

    Args:
      batch: arrays `[local rows, ...]`: the rows `local_rows` names, all of them in a single process.
      mesh: the device mesh.

    Returns:
      Arrays `[rows, ...]`, split as `batch_sharding`.

    Raises:
      ValueError: where the mesh cannot divide the rows.
    """
    sharding = batch_sharding(mesh)
    held = _held_shards(mesh)

    def put(name: str, array: np.ndarray) -> jax.Array:
        size, rest = divmod(array.shape[0], len(held))
        if rest:
            raise ValueError(
                f"The batch's {name!r} has {array.shape[0]} rows on this process, which its {len(held)} shards of "
                f"rows (data={mesh.shape['data']} x fsdp={mesh.shape['fsdp']} over all processes) cannot divide: its "
                f"rows must be a multiple of {len(held)}."
            )

        def shard(index: Any) -> np.ndarray:
            at = held.index((index[0].start or 0) // size) * size
            return array[at : at + size]

        return jax.make_array_from_callback((size * row_multiple(mesh), *array.shape[1:]), sharding, shard)

    return {name: put(name, array) for name, array in batch.items()}


def _held_shards(mesh: Mesh) -> list[int]:
    """Which of the `row_multiple(mesh)` shards of a batch's rows this process's devices hold, ascending."""
    shards: Mapping[Any, Any] = batch_sharding(mesh).addressable_devices_indices_map((row_multiple(mesh),))
    return sorted({index[0].start or 0 for index in shards.values()})
