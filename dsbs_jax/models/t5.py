"""T5 in Flax Linen: encoder, decoder, logits, and the cached decoding step.

Follows Raffel et al. 2020 (arXiv 1910.10683) and its v1.1; transformers' torch T5 is the oracle of the tests.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from dsbs_jax.models.config import T5Config
from dsbs_jax.models.layers import MASKED, Attention, Dropout, FeedForward, Norm, lookup, named
from dsbs_jax.models.relative_position import RelativeBias

_HIDDEN = ("batch", "length", "act_embed")
_POLICIES: dict[str, Callable[..., Any]] = {
    "dots": jax.checkpoint_policies.checkpoint_dots,
    "minimal": jax.checkpoint_policies.checkpoint_dots_with_no_batch_dims,
    "offload": jax.checkpoint_policies.offload_dot_with_no_batch_dims("device", "pinned_host"),
    "full": jax.checkpoint_policies.nothing_saveable,
}


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward, each normed before and added to the residual stream after."""

    config: T5Config

    def setup(self) -> None:
        self.self_norm, self.ffn_norm = Norm(self.config), Norm(self.config)
        self.self_attention = Attention(self.config)
        self.ffn = FeedForward(self.config)
        self.dropout = Dropout(self.config)

    def __call__(self, x: jax.Array, position_bias: jax.Array, mask: jax.Array, deterministic: bool) -> jax.Array:
        """[batch, length, d_model] -> [batch, length, d_model]."""
        normed = self.self_norm(x)
        keys_values = self.self_attention.keys_values(normed)
        attended = self.self_attention(normed, keys_values, position_bias, mask, deterministic)
        x = x + self.dropout(attended, deterministic)
        x = x + self.dropout(self.ffn(self.ffn_norm(x), deterministic), deterministic)
        return nn.with_logical_constraint(x, _HIDDEN)


class DecoderLayer(nn.Module):
    """Self-attention, cross-attention and feed-forward."""

    config: T5Config

    def setup(self) -> None:
        self.self_norm, self.cross_norm, self.ffn_norm = (Norm(self.config) for _ in range(3))
        self.self_attention, self.cross_attention = Attention(self.config), Attention(self.config)
        self.ffn = FeedForward(self.config)
        self.dropout = Dropout(self.config)

    def cross_keys_values(self, encoded: jax.Array) -> tuple[jax.Array, jax.Array]:
        """[batch, encoder_length, d_model] -> keys and values, each [batch, heads, encoder_length, d_kv]."""
        return self.cross_attention.keys_values(encoded)

    def __call__(
        self,
        x: jax.Array,
        cross_keys_values: tuple[jax.Array, jax.Array],
        position_bias: jax.Array,
        mask: jax.Array,
        cross_mask: jax.Array,
        deterministic: bool,
        past: tuple[jax.Array, jax.Array] | None = None,
        index: jax.Array | int = 0,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """One layer, over whole targets or over the token at `index`.

        Args:
          x: [batch, length, d_model].
          cross_keys_values: of the encoded inputs.
          position_bias: float32 [1, heads, length, key_length].
          mask: float32 [batch, 1, length, key_length].
          cross_mask: float32 [batch, 1, length, encoder_length].
          deterministic: whether to leave dropout out.
          past: keys and values of the tokens before `index`, each [batch, heads, key_length, d_kv]; None where `x`
            holds all tokens.
          index: the position of `x`'s first token in `past`.

        Returns:
          [batch, length, d_model], and the self-attention's keys and values of `x`.
        """
        normed = self.self_norm(x)
        new = self.self_attention.keys_values(normed)
        keys_values = new
        if past is not None:
            keys_values = _write(past[0], new[0], index), _write(past[1], new[1], index)
        cached = past is not None
        attended = self.self_attention(normed, keys_values, position_bias, mask, deterministic, cached)
        x = x + self.dropout(attended, deterministic)
        attended = self.cross_attention(self.cross_norm(x), cross_keys_values, None, cross_mask, deterministic, cached)
        x = x + self.dropout(attended, deterministic)
        x = x + self.dropout(self.ffn(self.ffn_norm(x), deterministic), deterministic)
        return nn.with_logical_constraint(x, _HIDDEN), new


def _write(cache: jax.Array, new: jax.Array, index: jax.Array | int) -> jax.Array:
    """`cache` [..., length, d_kv] with `new` written from position `index` on."""
    return jax.lax.dynamic_update_slice_in_dim(cache, new, index, axis=cache.ndim - 2)


def _mask(visible: jax.Array) -> jax.Array:
    """bool [batch, queries, keys] -> float32 [batch, 1, queries, keys] to add to the scores."""
    return jnp.where(visible, 0.0, MASKED).astype(jnp.float32)[:, None]


def _same_segment(queries: jax.Array, keys: jax.Array) -> jax.Array:
    """int [batch, queries], int [batch, keys] -> bool [batch, queries, keys]. Padding (0) sees padding alone."""
    return queries[:, :, None] == keys[:, None, :]


@flax.struct.dataclass
class DecoderCache:
    """What decoding one token reads.

    Attributes:
      keys, values: of the decoder's self-attention, [layers, batch, heads, max_length, d_kv]; zero where not yet
        written.
      cross_keys, cross_values: of the encoded inputs, [layers, batch, heads, encoder_length, d_kv].
      position_bias: float32 [1, heads, max_length, max_length].
      cross_mask: float32 [batch, 1, 1, encoder_length].
    """

    keys: jax.Array
    values: jax.Array
    cross_keys: jax.Array
    cross_values: jax.Array
    position_bias: jax.Array
    cross_mask: jax.Array


class _Stack(nn.Module):
    """What encoder and decoder share: one relative bias, the layers, the final norm."""

    config: T5Config

    def _setup_stack(self, layer: Callable[[T5Config], nn.Module], num_layers: int, bidirectional: bool) -> None:
        self.relative_bias = RelativeBias(self.config, bidirectional)
        self.layers: Any = (
            layer(self.config) if self.config.scan_layers else [layer(self.config) for _ in range(num_layers)]
        )
        self.final_norm = Norm(self.config)
        self.dropout = Dropout(self.config)

    def _over_layers(
        self, body: Callable[..., tuple[Any, Any]], num_layers: int, carry: Any, per_layer: Any, *shared: Any
    ) -> tuple[Any, Any]:
        """Run `body(layer, carry, per_layer, *shared) -> (carry, output)` from the first layer to the last.

        Args:
          body: what to do with each layer.
          num_layers: how many there are.
          carry: what goes from layer to layer.
          per_layer: arrays [layers, ...], or None.
          *shared: what every layer reads.

        Returns:
          The last carry, and the outputs stacked to [layers, ...].
        """
        config = self.config
        if config.remat_policy != "none":
            # Within a scan, XLA cannot merge the recomputation with the forward pass: no barrier is needed.
            body = nn.remat(body, policy=_POLICIES[config.remat_policy], prevent_cse=not config.scan_layers)
        if config.scan_layers:
            scan = nn.scan(
                body,
                variable_axes={"params": 0},
                split_rngs={"params": True, "dropout": True},
                in_axes=(0, *(nn.broadcast for _ in shared)),
                length=num_layers,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )
            return scan(self.layers, carry, per_layer, *shared)
        outputs = []
        for number, layer in enumerate(self.layers):
            own = jax.tree.map(operator.itemgetter(number), per_layer)
            carry, output = body(layer, carry, own, *shared)
            outputs.append(output)
        return carry, jax.tree.map(lambda *leaves: jnp.stack(leaves), *outputs)


class Encoder(_Stack):
    """Token embeddings to encoded inputs."""

    def setup(self) -> None:
        self._setup_stack(EncoderLayer, self.config.num_layers, bidirectional=True)

    def __call__(self, x: jax.Array, segment_ids: jax.Array, deterministic: bool) -> jax.Array:
        """[batch, length, d_model], int [batch, length] -> [batch, length, d_model]."""

        def body(layer: EncoderLayer, x: jax.Array, _: None, position_bias: jax.Array, mask: jax.Array) -> Any:
            return layer(x, position_bias, mask, deterministic), None

        position_bias = self.relative_bias(x.shape[1])
        mask = _mask(_same_segment(segment_ids, segment_ids))
        x = nn.with_logical_constraint(self.dropout(x, deterministic), _HIDDEN)
        x, _ = self._over_layers(body, self.config.num_layers, x, None, position_bias, mask)
        return self.dropout(self.final_norm(x), deterministic)


class Decoder(_Stack):
    """Token embeddings and encoded inputs to decoder outputs."""

    def setup(self) -> None:
        self._setup_stack(DecoderLayer, self.config.num_decoder_layers, bidirectional=False)

    def __call__(
        self,
        x: jax.Array,
        segment_ids: jax.Array,
        encoded: jax.Array,
        encoder_segment_ids: jax.Array,
        deterministic: bool,
    ) -> jax.Array:
        """Whole targets at once: [batch, length, d_model] -> [batch, length, d_model]."""

        def body(
            layer: DecoderLayer, x: jax.Array, _: None, encoded: jax.Array, bias: Any, mask: Any, cross_mask: Any
        ) -> Any:
            return layer(x, layer.cross_keys_values(encoded), bias, mask, cross_mask, deterministic)[0], None

        length = x.shape[1]
        causal = jnp.tril(jnp.ones((length, length), bool))
        mask = _mask(_same_segment(segment_ids, segment_ids) & causal)
        cross_mask = _mask(_same_segment(segment_ids, encoder_segment_ids))
        position_bias = self.relative_bias(length)
        x = nn.with_logical_constraint(self.dropout(x, deterministic), _HIDDEN)
        num_layers = self.config.num_decoder_layers
        x, _ = self._over_layers(body, num_layers, x, None, encoded, position_bias, mask, cross_mask)
        return self.dropout(self.final_norm(x), deterministic)

    def start_cache(self, encoded: jax.Array, encoder_segment_ids: jax.Array, max_length: int) -> DecoderCache:
        """An empty cache for `max_length` tokens, with the keys and values of the encoded inputs."""

        def body(layer: DecoderLayer, carry: None, _: None, encoded: jax.Array) -> Any:
            return carry, layer.cross_keys_values(encoded)

        config = self.config
        _, (cross_keys, cross_values) = self._over_layers(body, config.num_decoder_layers, None, None, encoded)
        shape = (config.num_decoder_layers, encoded.shape[0], config.num_heads, max_length, config.d_kv)
        empty = nn.with_logical_constraint(
            jnp.zeros(shape, config.dtype), ("layers", "batch", "act_heads", "length", None)
        )
        return DecoderCache(
            keys=empty,
            values=empty,
            cross_keys=cross_keys,
            cross_values=cross_values,
            position_bias=self.relative_bias(max_length),
            cross_mask=_mask(encoder_segment_ids[:, None, :] == 1),
        )

    def step(self, x: jax.Array, index: jax.Array, cache: DecoderCache) -> tuple[jax.Array, DecoderCache]:
        """The token at `index` alone: [batch, 1, d_model] -> [batch, 1, d_model]."""

        def body(layer: DecoderLayer, x: jax.Array, per_layer: Any, bias: Any, mask: Any, cross_mask: Any) -> Any:
            cross_keys_values, past = per_layer
            return layer(x, cross_keys_values, bias, mask, cross_mask, True, past, index)

        position_bias = jax.lax.dynamic_slice_in_dim(cache.position_bias, index, 1, axis=2)
        mask = _mask((jnp.arange(cache.keys.shape[3]) <= index)[None, None])
        per_layer = ((cache.cross_keys, cache.cross_values), (cache.keys, cache.values))
        x, (keys, values) = self._over_layers(
            body, self.config.num_decoder_layers, x, per_layer, position_bias, mask, cache.cross_mask
        )
        # Written once for all layers, so that the loop around updates the cache in place.
        cache = dataclasses.replace(
            cache, keys=_write(cache.keys, keys, index), values=_write(cache.values, values, index)
        )
        return self.final_norm(x), cache


class T5(nn.Module):
    """T5. Token id 0 is padding; decoder inputs are the targets shifted right, with 0 first."""

    config: T5Config

    def setup(self) -> None:
        config = self.config
        shape, dtype = (config.vocab_size, config.d_model), jnp.dtype(config.param_dtype)
        self.embedding = self.param("embedding", named(nn.initializers.normal(1.0), "vocab", "embed"), shape, dtype)
        if not config.tie_embeddings:
            init = named(nn.initializers.normal(config.d_model**-0.5), "vocab", "embed")
            self.lm_head = self.param("lm_head", init, shape, dtype)
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    def __call__(
        self,
        encoder_input_tokens: jax.Array,
        decoder_input_tokens: jax.Array,
        encoder_segment_ids: jax.Array | None = None,
        decoder_segment_ids: jax.Array | None = None,
        encoder_positions: jax.Array | None = None,
        decoder_positions: jax.Array | None = None,
        deterministic: bool = True,
    ) -> jax.Array:
        """The logits of every target token: float32 [batch, length, vocab].

        Args:
          encoder_input_tokens: int32 [batch, encoder_length].
          decoder_input_tokens: int32 [batch, length].
          encoder_segment_ids: int32 [batch, encoder_length], which of a packed row's examples a token belongs to, from
            1, and 0 for padding. None: one example a row, tokens 0 are padding.
          decoder_segment_ids: int32 [batch, length], likewise. None: one example a row, padding only at the end.
          encoder_positions: not read. T5 sees differences of positions only, and segments are contiguous; part of the
            signature so that a packed batch is passed as it is.
          decoder_positions: not read, likewise.
          deterministic: whether to leave dropout out; if not, a `dropout` key is needed.
        """
        del encoder_positions, decoder_positions
        if encoder_segment_ids is None:
            encoder_segment_ids = single_segment(encoder_input_tokens)
        if decoder_segment_ids is None:
            decoder_segment_ids = jnp.ones_like(decoder_input_tokens)
        # One lookup for both: the gradient of each is as large as the whole table.
        x = self._embed(jnp.concatenate([encoder_input_tokens, decoder_input_tokens], axis=1))
        encoder_x, decoder_x = jnp.split(x, [encoder_input_tokens.shape[1]], axis=1)
        encoded = self.encoder(encoder_x, encoder_segment_ids, deterministic)
        hidden = self.decoder(decoder_x, decoder_segment_ids, encoded, encoder_segment_ids, deterministic)
        return self.logits(self._scale(hidden))

    def encode(self, encoder_input_tokens: jax.Array, encoder_segment_ids: jax.Array) -> jax.Array:
        """The encoded inputs for `start_cache`: [batch, encoder_length, d_model]. No dropout."""
        return self.encoder(self._embed(encoder_input_tokens), encoder_segment_ids, deterministic=True)

    def start_cache(self, encoded: jax.Array, encoder_segment_ids: jax.Array, max_length: int) -> DecoderCache:
        """What `decode_step` reads, for targets of up to `max_length` tokens; one example a row."""
        return self.decoder.start_cache(encoded, encoder_segment_ids, max_length)

    def decode_step(self, tokens: jax.Array, index: jax.Array, cache: DecoderCache) -> tuple[jax.Array, DecoderCache]:
        """One token further.

        Args:
          tokens: int32 [batch], the decoder input at `index`; 0 at index 0.
          index: int32 scalar; 0, 1, 2... in turn.
          cache: from `start_cache` or the step before.

        Returns:
          The logits of the token that follows, float32 [batch, vocab], and the cache for the next step.
        """
        x, cache = self.decoder.step(self._embed(tokens[:, None]), index, cache)
        return self.logits(self._scale(x))[:, 0], cache

    def logits(self, hidden: jax.Array) -> jax.Array:
        """[batch, length, d_model] -> float32 [batch, length, vocab]."""
        table = self.embedding if self.config.tie_embeddings else self.lm_head
        logits = jnp.einsum("bld,vd->blv", hidden, table.astype(self.config.dtype), preferred_element_type=jnp.float32)
        return nn.with_logical_constraint(logits, ("batch", "length", "act_vocab"))

    def _embed(self, tokens: jax.Array) -> jax.Array:
        # Where the table's columns are split, every device looks its columns up for the tokens of all, and what it
        # found goes to whose tokens they are: far less travels than the table, which no device ever holds whole, nor
        # its gradient.
        found = nn.with_logical_constraint(lookup(self.embedding, tokens), ("lookup_batch", "length", "embed"))
        return nn.with_logical_constraint(found.astype(self.config.dtype), _HIDDEN)

    def _scale(self, x: jax.Array) -> jax.Array:
        return x * self.config.d_model**-0.5 if self.config.scale_logits else x


def single_segment(tokens: jax.Array) -> jax.Array:
    """The segment ids of rows with one example each: 1 on tokens, 0 on padding; int32 [batch, length]."""
    return (tokens != 0).astype(jnp.int32)
