"""The sublayers of T5: norm, attention, feed-forward, dropout.

Parameters carry logical axis names for sharding, and activations constraints by logical names, which do nothing where
no axis rules are set. Initial scales are Mesh TensorFlow's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dsbs_jax.models.config import T5Config

# Finite, so that a query that sees no key (padding) gives numbers, which nothing reads, and not NaN.
MASKED = -1e9


def named(init: Callable[..., jax.Array], *axes: str) -> Callable[..., Any]:
    """`init` for a parameter whose dimensions bear logical axis names."""
    return nn.with_logical_partitioning(init, axes)


def _projection(config: T5Config, features: int, axes: tuple[str, str], stddev: float) -> nn.Dense:
    return nn.Dense(
        features,
        use_bias=False,
        dtype=jnp.dtype(config.dtype),
        param_dtype=jnp.dtype(config.param_dtype),
        kernel_init=named(nn.initializers.normal(stddev), *axes),
    )


class Norm(nn.Module):
    """Root mean square norm, in float32 (T5's layer norm: no mean, no bias)."""

    config: T5Config

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., d_model] -> [..., d_model] in the config's dtype."""
        config = self.config
        init = named(nn.initializers.ones_init(), "embed")
        scale = self.param("scale", init, (config.d_model,), jnp.dtype(config.param_dtype))
        x = x.astype(jnp.float32)
        x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + config.epsilon)
        return (x * scale).astype(config.dtype)


def keep_mask(key: jax.Array, rate: float, shape: tuple[int, ...]) -> jax.Array:
    """bool `shape` (two dimensions or more), False with probability `rate` to within 2^-17.

    Each 32 random bits decide on two elements, which halves the cost of the generator. They lie in the two
    halves of the second last axis, that of tokens: unlike the last it is never split over devices.
    """
    half = -(-shape[-2] // 2)
    bits = jax.random.bits(key, (*shape[:-2], half, shape[-1]), jnp.uint32)
    threshold = round(rate * 2**16)
    low, high = bits & 0xFFFF, bits >> 16
    return jnp.concatenate([low >= threshold, high >= threshold], axis=-2)[..., : shape[-2], :]


@jax.custom_vjp
def lookup(table: jax.Array, tokens: jax.Array) -> jax.Array:
    """Rows of [vocab, width] at int [batch, length]: [batch, length, width]. Its gradient is summed in float32.

    A bfloat16 table would sum it in bfloat16, where a token that is met often stops adding up.
    """
    return table[tokens]


def _lookup_forward(table: jax.Array, tokens: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return table[tokens], (table, tokens)


def _lookup_backward(read: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, None]:
    table, tokens = read
    total = jnp.zeros(table.shape, jnp.float32).at[tokens].add(gradient.astype(jnp.float32))
    return nn.with_logical_constraint(total.astype(table.dtype), ("vocab", "embed")), None


lookup.defvjp(_lookup_forward, _lookup_backward)


class Dropout(nn.Module):
    """Inverted dropout of single elements, drawn from the `dropout` stream."""

    config: T5Config

    @nn.compact
    def __call__(self, x: jax.Array, deterministic: bool) -> jax.Array:
        """[..., length, width] -> the same shape and dtype."""
        rate = self.config.dropout_rate
        if deterministic or rate == 0.0:
            return x
        keep = keep_mask(self.make_rng("dropout"), rate, x.shape)
        return jnp.where(keep, x / (1 - rate), jnp.zeros_like(x))


@jax.custom_vjp
def _add_position_bias(scores: jax.Array, bias: jax.Array) -> jax.Array:
    """float32 [batch, heads, length, key_length] + [1, heads, length, key_length]."""
    return scores + bias


def _add_position_bias_forward(scores: jax.Array, bias: jax.Array) -> tuple[jax.Array, None]:
    return scores + bias, None


def _add_position_bias_backward(_: None, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    # The sum over the batch as a product with ones: XLA's CPU reduction over a leading axis takes 18 ms where this
    # takes 0.24 ms ([8, 8, 128, 128] on 2 cores, jaxlib 0.10.2), which is 2 to 4 % of a step of t5-small.
    ones = jnp.ones(gradient.shape[0], gradient.dtype)
    return gradient, jnp.einsum("b,bhqk->hqk", ones, gradient, precision=jax.lax.Precision.HIGHEST)[None]


_add_position_bias.defvjp(_add_position_bias_forward, _add_position_bias_backward)


def _fused_attention(
    queries: jax.Array, keys: jax.Array, values: jax.Array, position_bias: jax.Array | None, mask: jax.Array
) -> jax.Array:
    """cuDNN's attention. Arguments as in `Attention.__call__`; returns [batch, length, heads, d_kv]."""
    bias = None
    if position_bias is not None:
        # Joined here and not by JAX, whose sum would be float32 (cuDNN 9.10's gradient of a float32 bias is NaN:
        # jax-ml/jax issue 32242) and whose gradient would be summed over the batch in bfloat16; this one is summed in
        # float32. In bfloat16, `MASKED` still leaves a weight of exactly 0 to whatever is hidden.
        batch, heads, length, _ = queries.shape
        everywhere = jnp.broadcast_to(mask, (batch, heads, length, keys.shape[2]))
        bias = _add_position_bias(everywhere, position_bias).astype(queries.dtype)
        bias = nn.with_logical_constraint(bias, ("batch", "act_heads", "length", None))
    return jax.nn.dot_product_attention(
        queries.swapaxes(1, 2),
        keys.swapaxes(1, 2),
        values.swapaxes(1, 2),
        bias=bias,
        # Where a mask stands alone it is passed as what it is: its gradient need not be computed.
        mask=mask == 0.0 if bias is None else None,
        scale=1.0,
        implementation="cudnn",
    )


class Attention(nn.Module):
    """Multi-head attention with T5's unscaled scores: the initial query weights carry the scale."""

    config: T5Config

    def setup(self) -> None:
        config = self.config
        width = config.num_heads * config.d_kv
        inward, outward = ("embed", "joined_kv"), ("joined_kv", "embed")
        self.query = _projection(config, width, inward, (config.d_model * config.d_kv) ** -0.5)
        self.key = _projection(config, width, inward, config.d_model**-0.5)
        self.value = _projection(config, width, inward, config.d_model**-0.5)
        self.out = _projection(config, config.d_model, outward, width**-0.5)
        self.dropout = Dropout(config)

    def _split_heads(self, x: jax.Array) -> jax.Array:
        x = x.reshape(*x.shape[:-1], self.config.num_heads, self.config.d_kv)
        return nn.with_logical_constraint(x.swapaxes(1, 2), ("batch", "act_heads", "length", None))

    def keys_values(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """[batch, length, d_model] -> keys and values, each [batch, heads, length, d_kv]."""
        return self._split_heads(self.key(x)), self._split_heads(self.value(x))

    def __call__(
        self,
        x: jax.Array,
        keys_values: tuple[jax.Array, jax.Array],
        position_bias: jax.Array | None,
        mask: jax.Array,
        deterministic: bool,
        cached: bool = False,
    ) -> jax.Array:
        """Attend from `x`.

        Args:
          x: [batch, length, d_model].
          keys_values: each [batch, heads, key_length, d_kv].
          position_bias: float32 [1, heads, length, key_length], or None for attention without positions.
          mask: float32, 0 or `MASKED`, [batch, 1, length, key_length]. It is not joined with `position_bias`: the two
            small arrays cost less to read than their [batch, heads, length, key_length] sum.
          deterministic: whether to leave dropout out.
          cached: whether this is a decoding step: one query, for which fused attention has nothing to save.

        Returns:
          [batch, length, d_model].
        """
        keys, values = keys_values
        queries = self._split_heads(self.query(x))
        # Initialisation reads shapes alone, on any platform.
        if self.config.attention == "cudnn" and not cached and not self.is_initializing():
            attended = _fused_attention(queries, keys, values, position_bias, mask)
            return self.out(attended.reshape(*x.shape[:-1], -1))
        scores = jnp.einsum("bhqd,bhkd->bhqk", queries, keys, preferred_element_type=jnp.float32)
        if position_bias is not None:
            scores = _add_position_bias(scores, position_bias)
        weights = jax.nn.softmax(scores + mask, axis=-1).astype(self.config.dtype)
        weights = self.dropout(weights, deterministic)
        attended = jnp.einsum("bhqk,bhkd->bhqd", weights, values).swapaxes(1, 2)
        return self.out(attended.reshape(*x.shape[:-1], -1))


class FeedForward(nn.Module):
    """Two matrices with a ReLU between (v1.0), or three with a gated GELU (v1.1; Shazeer 2020, arXiv 2002.05202)."""

    config: T5Config

    def setup(self) -> None:
        config = self.config
        inward, outward = ("embed", "mlp"), ("mlp", "embed")
        if config.feed_forward == "relu":
            self.wi = _projection(config, config.d_ff, inward, config.d_model**-0.5)
        else:
            self.wi_0 = _projection(config, config.d_ff, inward, config.d_model**-0.5)
            self.wi_1 = _projection(config, config.d_ff, inward, config.d_model**-0.5)
        self.wo = _projection(config, config.d_model, outward, config.d_ff**-0.5)
        self.dropout = Dropout(config)

    def __call__(self, x: jax.Array, deterministic: bool) -> jax.Array:
        """[batch, length, d_model] -> [batch, length, d_model]."""
        if self.config.feed_forward == "relu":
            x = jax.nn.relu(self.wi(x))
        else:
            x = jax.nn.gelu(self.wi_0(x), approximate=True) * self.wi_1(x)
        x = nn.with_logical_constraint(x, ("batch", "length", "act_mlp"))
        return self.wo(self.dropout(x, deterministic))
