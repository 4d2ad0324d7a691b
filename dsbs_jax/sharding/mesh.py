"""The device mesh: its three axes, and how many devices lie along each."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import jax
from jax.sharding import AxisType, Mesh

# Parameters are replicated over `data`, split over `fsdp` (gathered when used) and over `model` (tensor parallel);
# rows of a batch are split over `data` and `fsdp` together.
AXES = ("data", "fsdp", "model")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How many devices lie along each mesh axis; -1, on one axis at most, takes all that the others leave.

    Attributes:
      data: replicas of the parameters, each fed its own rows.
      fsdp: shards of the parameters and the optimiser's state, each fed its own rows (fully sharded data parallel).
      model: shards of heads, feed-forward and vocabulary, all fed the same rows (tensor parallel).
    """

    data: int = -1
    fsdp: int = 1
    model: int = 1

    def __post_init__(self) -> None:
        sizes = dataclasses.astuple(self)
        if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
            raise ValueError(f"{self}: every axis must be at least 1, or -1 on one axis to take the remaining devices.")

    def shape(self, num_devices: int) -> tuple[int, int, int]:
        """The sizes of `AXES` on `num_devices` devices.

        Raises:
          ValueError: where the sizes do not multiply to `num_devices`.
        """
        sizes = dataclasses.astuple(self)
        named = math.prod(size for size in sizes if size != -1)
        if num_devices % named or (-1 not in sizes and named != num_devices):
            raise ValueError(
                f"{self} asks for {'a multiple of ' if -1 in sizes else ''}{named} devices, but there are "
                f"{num_devices}: choose data * fsdp * model = {num_devices}, -1 on one axis takes the remaining ones."
            )
        data, fsdp, model = (num_devices // named if size == -1 else size for size in sizes)
        return data, fsdp, model


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of `config` over `devices` (default: all devices of all processes).

    Its axis types are Auto, said explicitly: under JAX's default, Explicit, Linen's logical constraints raise.

    Raises:
      ValueError: where the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh(config.shape(len(devices)), AXES, (AxisType.Auto,) * len(AXES), devices=devices)
