"""Greedy decoding with a cache of keys and values."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from dsbs_jax.data.vocabulary import EOS_ID, PAD_ID
from dsbs_jax.models.t5 import T5, single_segment


@flax.struct.dataclass
class _State:
    """The loop's state: position, last token [batch], output [batch, max_length], whether a row has ended [batch]."""

    position: jax.Array
    last: jax.Array
    output: jax.Array
    ended: jax.Array
    cache: Any


def greedy_decode(
    model: T5, params: Any, encoder_input_tokens: jax.Array, max_length: int, valid_vocabulary: int
) -> jax.Array:
    """The most likely token at each step, until every row has ended.

    Pure: wrap it in `jax.jit` with `model`, `max_length` and `valid_vocabulary` static; it compiles once per shape.

    Args:
      model: the student.
      params: its parameters.
      encoder_input_tokens: int32 [batch, encoder_length], one example a row, 0 is padding. A row of padding alone (to
        fill a batch) ends at once.
      max_length: tokens to emit at most, the end token included.
      valid_vocabulary: ids from here on are never emitted: embeddings have more rows than the tokenizer has pieces.

    Returns:
      int32 [batch, max_length], with 0 after the end token (1).
    """
    batch = encoder_input_tokens.shape[0]
    segment_ids = single_segment(encoder_input_tokens)
    variables = {"params": params}
    encoded = model.apply(variables, encoder_input_tokens, segment_ids, method="encode")
    cache = model.apply(variables, encoded, segment_ids, max_length, method="start_cache")
    valid = jnp.arange(model.config.vocab_size) < valid_vocabulary

    def unfinished(state: _State) -> jax.Array:
        return (state.position < max_length) & ~jnp.all(state.ended)

    def step(state: _State) -> _State:
        logits, cache = model.apply(variables, state.last, state.position, state.cache, method="decode_step")
        token = jnp.argmax(jnp.where(valid, logits, -jnp.inf), axis=-1).astype(jnp.int32)
        token = jnp.where(state.ended, PAD_ID, token)
        output = jax.lax.dynamic_update_slice_in_dim(state.output, token[:, None], state.position, axis=1)
        return _State(state.position + 1, token, output, state.ended | (token == EOS_ID), cache)

    start = _State(
        position=jnp.zeros((), jnp.int32),
        last=jnp.full((batch,), PAD_ID, jnp.int32),
        output=jnp.full((batch, max_length), PAD_ID, jnp.int32),
        ended=~jnp.any(segment_ids, axis=1),
        cache=cache,
    )
    return jax.lax.while_loop(unfinished, step, start).output
