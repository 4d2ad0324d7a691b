"""Adding updates to parameters that are too coarse for them: stochastic rounding to bfloat16.

A bfloat16 has 8 significant bits, so that an update below 1/512 of its parameter is lost to rounding; nearly all of a
finetuning's are. Rounded up or down at random, by chances that make the expectation exact, small updates add up
(Gupta et al. 2015, arXiv 1502.02551).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def apply_updates(params: Any, updates: Any, key: jax.Array) -> Any:
    """`params + updates`, added in float32; bfloat16 parameters are rounded stochastically.

    Args:
      params: a tree of float32 or bfloat16 arrays.
      updates: the tree with arrays of the same shapes.
      key: of the rounding. One key gives one result, however the arrays are split over devices.
    """

    def add(number: int, param: jax.Array, update: jax.Array) -> jax.Array:
        total = param.astype(jnp.float32) + update.astype(jnp.float32)
        if param.dtype == jnp.bfloat16:
            return round_stochastically(total, jax.random.fold_in(key, number))
        return total.astype(param.dtype)

    numbers = jax.tree.unflatten(jax.tree.structure(params), range(len(jax.tree.leaves(params))))
    return jax.tree.map(add, numbers, params, updates)


def round_stochastically(values: jax.Array, key: jax.Array) -> jax.Array:
    """float32 to bfloat16: to one of the two neighbours, to the nearer one with the greater probability.

    The expectation is exactly `values`; what is a bfloat16 already stays as it is.
    """
    # A bfloat16 is the upper half of a float32: of 2^16 equally likely numbers added to the lower half L, L carry over.
    noise = jax.random.bits(key, values.shape, jnp.uint16).astype(jnp.uint32)
    upper = (jax.lax.bitcast_convert_type(values, jnp.uint32) + noise) & jnp.uint32(0xFFFF0000)
    rounded = jax.lax.bitcast_convert_type(upper, jnp.float32)
    # NaN's bits are no number to count up from.
    return jnp.where(jnp.isfinite(values), rounded, values).astype(jnp.bfloat16)
