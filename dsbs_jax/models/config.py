"""The shape of a T5 and how it computes: `T5Config`, and the published sizes by name."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

FeedForward = Literal["relu", "gated-gelu"]
Precision = Literal["float32", "bfloat16"]
RematPolicy = Literal["none", "dots", "minimal", "offload", "full"]
AttentionKind = Literal["einsum", "cudnn"]

FEED_FORWARDS = ("relu", "gated-gelu")
PRECISIONS = ("float32", "bfloat16")
REMAT_POLICIES = ("none", "dots", "minimal", "offload", "full")
ATTENTIONS = ("einsum", "cudnn")


@dataclasses.dataclass(frozen=True)
class T5Config:
    """A T5 encoder-decoder. `d_model` need not equal `num_heads * d_kv`.

    Attributes:
      d_model: width of the residual stream.
      d_kv: width of one attention head.
      d_ff: hidden width of the feed-forward layers.
      num_layers: encoder layers.
      num_decoder_layers: decoder layers.
      num_heads: attention heads of every layer.
      feed_forward: `relu` (v1.0) or `gated-gelu` (v1.1 and Flan; GELU in its tanh form).
      tie_embeddings: whether the logits are read off the token embeddings (v1.0) or have a matrix of their own.
      scale_logits: whether decoder outputs are scaled by `d_model ** -0.5` before the logits (v1.0).
      vocab_size: rows of the embeddings, those beyond the tokenizer's vocabulary included.
      num_buckets: buckets of relative positions.
      max_distance: distance in tokens from which on all positions share the last bucket.
      dropout_rate: one rate for embeddings, attention probabilities, feed-forward, and every sublayer's output.
      epsilon: added to the mean square in the norms.
      dtype: of activations and matrix products. Softmax, norms and logits are float32 in any case. There is no
        float16: T5's activations overflow it.
      param_dtype: of the parameters.
      scan_layers: whether the layers of a stack are one scanned layer with stacked parameters (compiles in time
        independent of depth), or unrolled ones with parameters of their own.
      remat_policy: what the backward pass recomputes: `none`; `dots`: all but matrix products; `minimal`: all but the
        products with parameters (attention scores are recomputed); `offload`: as `minimal`, but those products wait in
        the host's memory, where the platform can put them there; `full`: everything within a layer.
      attention: `einsum`, or `cudnn`: NVIDIA's fused attention, which never writes the scores to memory. It needs a
        GPU, bfloat16 activations and no dropout (`models.platform.check_platform` says what else). Cached decoding
        steps, of one query each, always take `einsum`.
    """

    d_model: int
    d_kv: int
    d_ff: int
    num_layers: int
    num_decoder_layers: int
    num_heads: int
    feed_forward: FeedForward = "gated-gelu"
    tie_embeddings: bool = False
    scale_logits: bool = False
    vocab_size: int = 32128
    num_buckets: int = 32
    max_distance: int = 128
    dropout_rate: float = 0.1
    epsilon: float = 1e-6
    dtype: Precision = "float32"
    param_dtype: Precision = "float32"
    scan_layers: bool = True
    remat_policy: RematPolicy = "none"
    attention: AttentionKind = "einsum"

    def __post_init__(self) -> None:
        for name in ("d_model", "d_kv", "d_ff", "num_layers", "num_decoder_layers", "num_heads", "vocab_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"T5Config: {name} is {getattr(self, name)}; it must be at least 1.")
        choices = {
            "feed_forward": FEED_FORWARDS,
            "dtype": PRECISIONS,
            "param_dtype": PRECISIONS,
            "remat_policy": REMAT_POLICIES,
            "attention": ATTENTIONS,
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"T5Config: {name} is {getattr(self, name)!r}; it must be one of {', '.join(allowed)}."
                )
        if not 0 <= self.dropout_rate < 1:
            raise ValueError(f"T5Config: dropout_rate is {self.dropout_rate}; it must lie in [0, 1).")
        if self.attention == "cudnn" and self.dropout_rate:
            raise ValueError(
                f"T5Config: attention is 'cudnn', which cannot drop attention probabilities, but dropout_rate is "
                f"{self.dropout_rate}: set dropout_rate (the macro DROPOUT_RATE) to 0.0, or attention to 'einsum'."
            )
        # The encoder splits the buckets between both directions, and half of each direction's are exact distances.
        if self.num_buckets < 4 or self.num_buckets % 2 or self.max_distance <= self.num_buckets // 2:
            raise ValueError(
                f"T5Config: num_buckets is {self.num_buckets} and max_distance {self.max_distance}; num_buckets must "
                "be even and at least 4, and max_distance greater than num_buckets / 2."
            )

    def num_parameters(self) -> int:
        """The number of parameters, as transformers counts them."""
        attention = 4 * self.d_model * self.num_heads * self.d_kv
        feed_forward = (3 if self.feed_forward == "gated-gelu" else 2) * self.d_model * self.d_ff
        encoder_layer = attention + feed_forward + 2 * self.d_model
        decoder_layer = 2 * attention + feed_forward + 3 * self.d_model
        stacks = self.num_layers * encoder_layer + self.num_decoder_layers * decoder_layer
        per_stack = self.num_buckets * self.num_heads + self.d_model
        embeddings = (1 if self.tie_embeddings else 2) * self.vocab_size * self.d_model
        return stacks + 2 * per_stack + embeddings


# (d_model, d_kv, d_ff, layers of each stack, num_heads), from the published checkpoints' configs.
SIZES: dict[str, dict[str, tuple[int, int, int, int, int]]] = {
    "v1_0": {
        "small": (512, 64, 2048, 6, 8),
        "base": (768, 64, 3072, 12, 12),
        "large": (1024, 64, 4096, 24, 16),
        "3b": (1024, 128, 16384, 24, 32),
        "11b": (1024, 128, 65536, 24, 128),
    },
    "v1_1": {
        "small": (512, 64, 1024, 8, 6),
        "base": (768, 64, 2048, 12, 12),
        "large": (1024, 64, 2816, 24, 16),
        "xl": (2048, 64, 5120, 24, 32),
        "xxl": (4096, 64, 10240, 24, 64),
    },
}


def t5_config(version: str, size: str, **overrides: Any) -> T5Config:
    """The config of a published model.

    Args:
      version: `v1_0`, or `v1_1`, whose shapes Flan-T5 shares.
      size: `small`, `base`, `large`, then `3b`, `11b` (v1_0) or `xl`, `xxl` (v1_1).
      **overrides: other fields of `T5Config`, e.g. `dtype="bfloat16"`.

    Raises:
      ValueError: for a version or a size that does not exist.
    """
    if version not in SIZES:
        raise ValueError(f"There is no T5 version {version!r}; the versions are {', '.join(SIZES)}.")
    if size not in SIZES[version]:
        raise ValueError(f"T5 {version} has no size {size!r}; its sizes are {', '.join(SIZES[version])}.")
    d_model, d_kv, d_ff, layers, heads = SIZES[version][size]
    fields: dict[str, Any] = {
        "d_model": d_model,
        "d_kv": d_kv,
        "d_ff": d_ff,
        "num_layers": layers,
        "num_decoder_layers": layers,
        "num_heads": heads,
        "feed_forward": "relu" if version == "v1_0" else "gated-gelu",
        "tie_embeddings": version == "v1_0",
        "scale_logits": version == "v1_0",
    }
    return T5Config(**(fields | overrides))
