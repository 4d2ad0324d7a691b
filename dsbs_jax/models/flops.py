"""Model FLOPs: the arithmetic that the equations of a T5 need, whatever a program adds to it.

A multiplication and an addition count as two. Matrix products only, as in PaLM's model FLOPs utilisation (Chowdhery et
al. 2022, arXiv 2204.02311, appendix B): no norms, no softmax, no lookups, nothing that is rematerialised.
Masked attention scores are counted, for the equations have them.
"""

from __future__ import annotations

from dsbs_jax.models.config import T5Config


def train_step_flops(config: T5Config, rows: int, encoder_length: int, decoder_length: int) -> float:
    """FLOPs of one forward and one backward pass, which takes two products for each of the forward pass.

    Args:
      config: the model.
      rows: of the batch, over all devices.
      encoder_length: tokens of an input row, padding included.
      decoder_length: tokens of a target row, padding included.
    """
    return 3.0 * (
        _encoder(config, rows, encoder_length)
        + _cross_keys_values(config, rows, encoder_length)
        + _decoder(config, rows, decoder_length, decoder_length, encoder_length)
    )


def decode_flops(config: T5Config, rows: int, encoder_length: int, max_length: int) -> float:
    """FLOPs of encoding `rows` inputs and of `max_length` cached decoding steps, each of which sees the whole cache."""
    return (
        _encoder(config, rows, encoder_length)
        + _cross_keys_values(config, rows, encoder_length)
        + max_length * _decoder(config, rows, 1, max_length, encoder_length)
    )


def _encoder(config: T5Config, rows: int, length: int) -> float:
    tokens, width = rows * length, config.num_heads * config.d_kv
    projections = 2.0 * tokens * 4 * config.d_model * width
    attention = 4.0 * tokens * length * width
    return config.num_layers * (projections + attention + _feed_forward(config, tokens))


def _cross_keys_values(config: T5Config, rows: int, length: int) -> float:
    return config.num_decoder_layers * 2.0 * rows * length * 2 * config.d_model * config.num_heads * config.d_kv


def _decoder(config: T5Config, rows: int, length: int, keys: int, encoder_length: int) -> float:
    """`length` target tokens a row that see `keys` of their own and `encoder_length` encoded tokens; with logits."""
    tokens, width = rows * length, config.num_heads * config.d_kv
    projections = 2.0 * tokens * (4 + 2) * config.d_model * width
    attention = 4.0 * tokens * (keys + encoder_length) * width
    layer = projections + attention + _feed_forward(config, tokens)
    return config.num_decoder_layers * layer + 2.0 * tokens * config.d_model * config.vocab_size


def _feed_forward(config: T5Config, tokens: int) -> float:
    matrices = 3 if config.feed_forward == "gated-gelu" else 2
    return 2.0 * tokens * matrices * config.d_model * config.d_ff
