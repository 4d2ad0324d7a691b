"""A model's parameters before there are any: how they are made, their shapes, and the logical axes they name."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


def boxed_params(model: nn.Module, key: jax.Array) -> Any:
    """New parameters, in the boxes that name their logical axes."""
    # Their shapes depend on the config alone: the shortest batch will do.
    tokens = jnp.ones((1, 1), jnp.int32)
    return model.init(key, tokens, tokens)["params"]


@functools.lru_cache(maxsize=16)
def abstract_params(model: nn.Module) -> Any:
    """The shapes of the model's parameters, in the same boxes; nothing is computed."""
    return jax.eval_shape(lambda: boxed_params(model, jax.random.key(0)))
