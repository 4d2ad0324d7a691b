"""Host-local rows of a batch to global arrays.

Every process builds and holds only the rows that its own devices compute; `put_batch` makes one global array of them.
"""

from __future__ import annotations

from collections.abc import Mapping

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


def local_rows(mesh: Mesh, rows: int) -> slice:
    """Which of a global batch's `rows` rows this process is to build.

    Processes whose devices hold the same rows (a `model` axis that spans processes) get the same slice. Where a
    process's devices do not hold neighbouring rows, as on a TPU torus, its slice still is one block: the global
    array's rows are then a permutation of the batch's, which no sum over the batch depends on.

    Raises:
      ValueError: where the mesh cannot divide the rows, or its processes hold overlapping sets of rows.
    """
    check_rows(mesh, rows)
    held = _held_shards(mesh)
    blocks = sorted({tuple(sorted(shards)) for shards in held.values()})
    if sum(map(len, blocks)) != row_multiple(mesh) or len({len(block) for block in blocks}) > 1:
        raise ValueError(
            f"The processes of the mesh {dict(mesh.shape)} hold overlapping or unequal sets of rows ({blocks}): choose "
            "sizes such that every process holds whole rows, e.g. a `model` size that divides its number of devices."
        )
    block = blocks.index(tuple(sorted(held[jax.process_index()])))
    size = rows // len(blocks)
    return slice(block * size, (block + 1) * size)


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
    local_shards = len(_held_shards(mesh)[jax.process_index()])
    for name, array in batch.items():
        if array.shape[0] % local_shards:
            raise ValueError(
                f"The batch's {name!r} has {array.shape[0]} rows on this process, which its {local_shards} shards of "
                f"rows (data={mesh.shape['data']} x fsdp={mesh.shape['fsdp']} over all processes) cannot divide: its "
                f"rows must be a multiple of {local_shards}."
            )
    return {name: jax.make_array_from_process_local_data(sharding, array) for name, array in batch.items()}


def _held_shards(mesh: Mesh) -> dict[int, set[int]]:
    """For every process, which of the `row_multiple(mesh)` shards of a batch's rows its devices hold."""
    held: dict[int, set[int]] = {}
    device: jax.Device
    for device, (index,) in batch_sharding(mesh).devices_indices_map((row_multiple(mesh),)).items():
        held.setdefault(device.process_index, set()).add(index.start or 0)
    return held
