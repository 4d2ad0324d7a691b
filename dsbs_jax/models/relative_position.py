"""Relative positions: one learned bias per attention head and bucket of distances (Raffel et al. 2020, section 2.1)."""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dsbs_jax.models.config import T5Config
from dsbs_jax.models.layers import named


def relative_position_buckets(
    distances: np.ndarray, bidirectional: bool, num_buckets: int, max_distance: int
) -> np.ndarray:
    """The bucket of each distance. Small distances have a bucket each, larger ones share buckets on a log scale.

    Computed in float32 like the models that made the published weights: distances where the logarithm meets an
    integer would change buckets in float64.

    Args:
      distances: int [...], key position minus query position, in tokens.
      bidirectional: whether keys after the query have buckets of their own (encoder) or share that of distance 0.
      num_buckets: as in `T5Config`.
      max_distance: as in `T5Config`.

    Returns:
      int32 [...], in `[0, num_buckets)`.
    """
    offset = np.zeros_like(distances)
    if bidirectional:
        num_buckets //= 2
        offset = np.where(distances > 0, num_buckets, 0)
        distances = np.abs(distances)
    else:
        distances = np.maximum(-distances, 0)
    exact = num_buckets // 2
    ratio = np.maximum(distances, exact).astype(np.float32) / np.float32(exact)
    scale = np.float32(math.log(max_distance / exact))
    steps = (np.log(ratio) / scale * np.float32(num_buckets - exact)).astype(np.int32)
    logarithmic = np.minimum(exact + steps, num_buckets - 1)
    return (offset + np.where(distances < exact, distances, logarithmic)).astype(np.int32)


def _intervals(distances: np.ndarray, buckets: np.ndarray, num_buckets: int) -> list[tuple[int, int]]:
    """The least and greatest distance of every bucket; (1, 0) for one without any."""
    members = (distances[buckets == bucket] for bucket in range(num_buckets))
    return [(int(own.min()), int(own.max())) if own.size else (1, 0) for own in members]


class RelativeBias(nn.Module):
    """The bias that one stack adds to the attention scores of all its layers."""

    config: T5Config
    bidirectional: bool

    @nn.compact
    def __call__(self, length: int) -> jax.Array:
        """float32 [1, heads, length, length], over (query, key) positions of a row.

        Rows may hold several segments: within one, which is contiguous, differences of row positions are differences
        of positions in the segment, and the mask hides the rest.
        """
        config = self.config
        init = named(nn.initializers.normal(config.d_model**-0.5), "relpos_buckets", "heads")
        shape = (config.num_buckets, config.num_heads)
        table = self.param("embedding", init, shape, jnp.dtype(config.param_dtype))
        # Each bucket is an interval of distances, so which bucket a pair is in is two comparisons, and the lookup a
        # product with what they give. Indexing would be a scatter of length^2 rows in the backward pass; shifting
        # rows of one lookup per distance, arrays of twice the bias's size that a TPU copies head by head.
        distances = np.arange(-length + 1, length)
        buckets = relative_position_buckets(distances, self.bidirectional, config.num_buckets, config.max_distance)
        lowest, highest = (
            np.array(ends) for ends in zip(*_intervals(distances, buckets, config.num_buckets), strict=True)
        )
        distance = jax.lax.broadcasted_iota(jnp.int32, (1, length, length), 2) - jax.lax.broadcasted_iota(
            jnp.int32, (1, length, length), 1
        )
        inside = (distance >= lowest[:, None, None]) & (distance <= highest[:, None, None])
        # At the highest precision a product with zeros and a one is the number itself, on a TPU as well.
        bias = jnp.einsum(
            "bh,bqk->hqk",
            table.astype(jnp.float32),
            inside.astype(jnp.float32),
            precision=jax.lax.Precision.HIGHEST,
        )[None]
        return nn.with_logical_constraint(bias, (None, "act_heads", None, None))
