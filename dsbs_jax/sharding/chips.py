"""What accelerators can do, from their makers' data sheets: dense bfloat16 peak, memory, and links."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator as JAX shows it (a TPU device, a GPU).

    Attributes:
      name: what people call it.
      peak_flops: dense bfloat16 FLOP/s, without sparsity.
      hbm_bytes: memory.
      hbm_bandwidth: bytes/s.
      interconnect_bandwidth: bytes/s that leave the chip over its fast links (ICI, NVLink), one direction.
    """

    name: str
    peak_flops: float
    hbm_bytes: float
    hbm_bandwidth: float
    interconnect_bandwidth: float


_GIB = 2.0**30
# By JAX's `device_kind`. TPUs: cloud.google.com/tpu/docs, the page of each generation; GPUs: NVIDIA's data sheets. Link
# speeds are stated there for both directions together; halved here.
_CHIPS = {
    "TPU v4": Chip("TPU v4", 275e12, 32 * _GIB, 1.2e12, 150e9),
    "TPU v5 lite": Chip("TPU v5e", 197e12, 16 * _GIB, 0.8e12, 100e9),
    "TPU v5": Chip("TPU v5p", 459e12, 95 * _GIB, 2.765e12, 300e9),
    "TPU v6 lite": Chip("TPU v6e", 918e12, 32 * _GIB, 1.6e12, 200e9),
    "NVIDIA A100-SXM4-40GB": Chip("A100 40GB", 312e12, 40e9, 1.555e12, 300e9),
    "NVIDIA A100-SXM4-80GB": Chip("A100 80GB", 312e12, 80e9, 2.039e12, 300e9),
    "NVIDIA H100 80GB HBM3": Chip("H100 SXM", 989e12, 80e9, 3.35e12, 450e9),
    "NVIDIA H200": Chip("H200", 989e12, 141e9, 4.8e12, 450e9),
    "NVIDIA B200": Chip("B200", 2250e12, 180e9, 8.0e12, 900e9),
}
_ALIASES = {"TPU v5e": "TPU v5 lite", "TPU v5p": "TPU v5", "TPU v6e": "TPU v6 lite"}


def find_chip(device_kind: str) -> Chip | None:
    """The chip of that `jax.Device.device_kind`, or None where no data sheet is known here (CPUs among them)."""
    return _CHIPS.get(_ALIASES.get(device_kind, device_kind))
