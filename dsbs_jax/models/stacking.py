"""Parameters of scanned layers (`layers`, stacked along axis 0) from and to those of unrolled ones (`layers_0`...)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

_STACKS = ("encoder", "decoder")


def stack_layers(params: dict[str, Any]) -> dict[str, Any]:
    """Parameters for `scan_layers=True` from those of `scan_layers=False`; both without boxes."""
    result = dict(params)
    for stack in _STACKS:
        rest = dict(params[stack])
        layers = [rest.pop(f"layers_{number}") for number in range(sum(name.startswith("layers_") for name in rest))]
        result[stack] = rest | {"layers": jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)}
    return result


def unstack_layers(params: dict[str, Any]) -> dict[str, Any]:
    """Parameters for `scan_layers=False` from those of `scan_layers=True`; both without boxes."""
    result = dict(params)
    for stack in _STACKS:
        rest = dict(params[stack])
        layers = rest.pop("layers")
        for number in range(len(jax.tree.leaves(layers)[0])):
            rest[f"layers_{number}"] = jax.tree.map(lambda leaf, number=number: leaf[number], layers)
        result[stack] = rest
    return result
