"""Whether a platform can compute a model as its config says: asked before anything is compiled."""

from __future__ import annotations

from collections.abc import Sequence

import jax

from dsbs_jax.models.config import T5Config

# What cuDNN's attention needs (docs.nvidia.com/cudnn, "Attention", support matrix), and JAX finds out while it traces.
_LEAST_CAPABILITY = (8, 0)
_WIDEST_HEAD = (((9, 0), 256), (_LEAST_CAPABILITY, 128))
_HOST_MEMORY = "pinned_host"


def check_platform(
    config: T5Config, device: jax.Device, row_lengths: Sequence[int] = (), training: bool = True
) -> None:
    """Refuses options of `config` that `device` lacks: nothing falls back silently.

    Args:
      config: the model.
      device: one of those it will run on; all are taken to be alike.
      row_lengths: tokens of the rows that it will be trained on, inputs and targets, where they are known.
      training: whether anything is differentiated; rematerialisation does not matter otherwise.

    Raises:
      ValueError: what is lacking, and what to set instead.
    """
    if config.attention == "cudnn":
        _check_cudnn(config, device, row_lengths)
    if config.remat_policy == "offload" and training:
        kinds = sorted(memory.kind for memory in device.addressable_memories())
        if _HOST_MEMORY not in kinds:
            raise ValueError(
                f"T5Config: remat_policy is 'offload', but a device {device.device_kind!r} cannot address the memory "
                f"{_HOST_MEMORY!r} of its host (it knows {', '.join(kinds)}): set remat_policy to 'minimal' or 'full'."
            )


def _check_cudnn(config: T5Config, device: jax.Device, row_lengths: Sequence[int]) -> None:
    def refuse(needed: str, found: str, mend: str = "") -> None:
        raise ValueError(
            f"T5Config: attention is 'cudnn', which needs {needed}, but {found}: set {mend}attention to 'einsum'."
        )

    name = f"the device is {device.device_kind!r}"
    if device.platform != "gpu" or "cuda" not in device.client.platform_version:
        refuse("an NVIDIA GPU", f"{name} ({device.platform})")
    capability = tuple(map(int, device.compute_capability.split(".")))
    if capability < _LEAST_CAPABILITY:
        refuse("an Ampere GPU or a newer one", name)
    if config.dtype != "bfloat16":
        refuse("bfloat16 activations", f"dtype is {config.dtype!r}", "dtype to 'bfloat16', or ")
    widest = next(width for least, width in _WIDEST_HEAD if capability >= least)
    if config.d_kv % 8 or config.d_kv > widest:
        refuse(f"heads of a multiple of 8 and at most {widest} here", f"d_kv is {config.d_kv}")
    if odd := [length for length in row_lengths if length % 2]:
        refuse("rows of even lengths", f"one has {odd[0]} tokens", "pack_lengths to even ones, or ")
