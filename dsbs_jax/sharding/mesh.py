"""The device mesh: its three axes, how many devices lie along each, and in which order."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

# Parameters are replicated over `data`, split over `fsdp` (gathered when used) and over `model` (tensor parallel);
# rows of a batch are split over `data` and `fsdp` together.
AXES = ("data", "fsdp", "model")

# The sizes along AXES that a preset gives where nothing else is said. Two shards of `model` divide the heads of every
# published T5.
PRESETS = {"dp": (-1, 1, 1), "fsdp": (1, -1, 1), "fsdp+tp": (1, -1, 2)}


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How many devices lie along each mesh axis; -1, on one axis at most, takes all that the others leave.

    An axis that is None has the preset's size; where one of the others is -1, the preset's own -1 becomes 1.

    Attributes:
      data: replicas of the parameters, each fed its own rows.
      fsdp: shards of the parameters and the optimiser's state, each fed its own rows (fully sharded data parallel).
      model: shards of heads, feed-forward and vocabulary, all fed the same rows (tensor parallel).
      preset: `dp` (all devices along `data`), `fsdp` (all along `fsdp`), or `fsdp+tp` (pairs along `model`, all pairs
        along `fsdp`).
    """

    data: int | None = None
    fsdp: int | None = None
    model: int | None = None
    preset: str = "dp"

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise ValueError(f"There is no mesh preset {self.preset!r}; the presets are {', '.join(PRESETS)}.")
        sizes = self.sizes()
        if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
            raise ValueError(f"{self}: every axis must be at least 1, or -1 on one axis to take the remaining devices.")

    def sizes(self) -> tuple[int, int, int]:
        """What is asked for along `AXES`; -1 on one axis at most."""
        own = (self.data, self.fsdp, self.model)
        filled = -1 in own
        data, fsdp, model = (
            size if size is not None else 1 if filled and usual == -1 else usual
            for size, usual in zip(own, PRESETS[self.preset], strict=True)
        )
        return data, fsdp, model

    def shape(self, num_devices: int) -> tuple[int, int, int]:
        """The sizes of `AXES` on `num_devices` devices.

        Raises:
          ValueError: where the sizes do not multiply to `num_devices`.
        """
        sizes = self.sizes()
        named = math.prod(size for size in sizes if size != -1)
        if num_devices % named or (-1 not in sizes and named != num_devices):
            raise ValueError(
                f"The mesh {dict(zip(AXES, sizes, strict=True))} asks for {'a multiple of ' if -1 in sizes else ''}"
                f"{named} devices, but there are {num_devices}: choose data * fsdp * model = {num_devices}, -1 on one "
                "axis takes the remaining ones."
            )
        data, fsdp, model = (num_devices // named if size == -1 else size for size in sizes)
        return data, fsdp, model


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of `config` over `devices` (default: all devices of all processes).

    The axis that talks most lies over the fastest links: `model` over neighbours within a TPU slice or a GPU machine,
    then `fsdp`, then `data`, which alone is to cross between slices as far as its size allows (`_over_slices`). GPUs
    and CPUs come from JAX machine by machine and keep that order.

    Axis types are Auto, said explicitly: under JAX's default, Explicit, Linen's logical constraints raise.

    Raises:
      ValueError: where the sizes do not multiply to the number of devices, or would have `model` cross slices.
    """
    devices = jax.devices() if devices is None else devices
    shape = config.shape(len(devices))
    types = (AxisType.Auto,) * len(AXES)
    slices = len({getattr(device, "slice_index", None) for device in devices})
    if slices > 1 and devices[0].platform == "tpu":
        return Mesh(_over_slices(shape, slices, devices), AXES, axis_types=types)
    return jax.make_mesh(shape, AXES, types, devices=devices)


def _over_slices(shape: tuple[int, int, int], slices: int, devices: Sequence[jax.Device]) -> np.ndarray:
    """Devices of several TPU slices, [data, fsdp, model]: within a slice as `jax.make_mesh` lays them.

    Slices are joined by the data center's network, which is slow: `data` crosses it, for one all-reduce of gradients a
    step; then `fsdp`; `model` never.
    """
    data, fsdp, _ = shape
    of_data = math.gcd(data, slices)
    of_fsdp = slices // of_data
    if fsdp % of_fsdp:
        raise ValueError(
            f"The mesh {dict(zip(AXES, shape, strict=True))} does not divide over {slices} TPU slices: `data`, or "
            f"`data` times a part of `fsdp`, must be a multiple of {slices}, for `model` would cross the network."
        )
    within = (data // of_data, fsdp // of_fsdp, shape[2])
    return mesh_utils.create_hybrid_device_mesh(within, (of_data, of_fsdp, 1), devices)
