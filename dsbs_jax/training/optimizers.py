"""Optimisers and learning rate schedules: a config to an optax transformation.

The defaults are the paper's recipe: AdamW at 5e-5, no weight decay, linear decay to 0 without warm-up, clipping at 1.0.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

NAMES = ("adamw", "adafactor")
SCHEDULES = ("linear", "constant", "rsqrt", "cosine")
DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """An optimiser and its schedule.

    Attributes:
      name: `adamw` (Loshchilov & Hutter 2019) or `adafactor` (Shazeer & Stern 2018, as in T5X: factored second
        moments, update clipping at RMS 1, steps relative to each parameter's RMS).
      learning_rate: the schedule's peak. For adafactor relative to the parameters' RMS: T5 is finetuned at 1e-3.
      schedule: after the warm-up, at step s of `train_steps` with w = max(warmup_steps, 1): `linear` to 0 at the last
        step, `constant`, `rsqrt` (peak * sqrt(w / max(s, w))), or `cosine` to 0 at the last step.
      warmup_steps: steps of linear warm-up from 0.
      weight_decay: decoupled, times the learning rate; norms' scales are left out, as in the reference's trainer.
      clip_norm: the global norm that gradients are clipped to; None leaves them as they are.
      b1: adamw's decay of the first moment.
      b2: adamw's decay of the second moment.
      eps: adamw's epsilon.
      moment_dtype: of adamw's first moment; `bfloat16` saves 2 bytes a parameter. All else that either optimiser
        keeps is float32, and so is its arithmetic, also where the parameters are bfloat16.
    """

    name: Literal["adamw", "adafactor"] = "adamw"
    learning_rate: float = 5e-5
    schedule: Literal["linear", "constant", "rsqrt", "cosine"] = "linear"
    warmup_steps: int = 0
    weight_decay: float = 0.0
    clip_norm: float | None = 1.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    moment_dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        for field, allowed in (("name", NAMES), ("schedule", SCHEDULES), ("moment_dtype", DTYPES)):
            if getattr(self, field) not in allowed:
                raise ValueError(
                    f"OptimizerConfig: {field} is {getattr(self, field)!r}; it must be one of {', '.join(allowed)}."
                )
        for field in ("learning_rate", "warmup_steps", "weight_decay"):
            if getattr(self, field) < 0:
                raise ValueError(f"OptimizerConfig: {field} is {getattr(self, field)}; it must be at least 0.")
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise ValueError(f"OptimizerConfig: clip_norm is {self.clip_norm}; it must be above 0, or None.")


def make_schedule(config: OptimizerConfig, train_steps: int) -> optax.Schedule:
    """The learning rate as a function of the number of updates made so far.

    Args:
      config: the optimiser.
      train_steps: updates in the whole run; the decaying schedules end there.

    Raises:
      ValueError: for a run no longer than its warm-up.
    """
    peak, warmup = config.learning_rate, config.warmup_steps
    if train_steps <= warmup:
        raise ValueError(f"warmup_steps is {warmup} in a run of {train_steps} steps: it must be smaller.")
    match config.schedule:
        case "linear":
            after = optax.linear_schedule(peak, 0.0, train_steps - warmup)
        case "constant":
            after = optax.constant_schedule(peak)
        case "cosine":
            after = optax.cosine_decay_schedule(peak, train_steps - warmup)
        case "rsqrt":
            start = max(warmup, 1)

            def after(count: jax.typing.ArrayLike) -> jax.Array:
                return peak * jnp.sqrt(start / jnp.maximum(count + warmup, start))

    if not warmup:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after], [warmup])


def make_optimizer(
    config: OptimizerConfig, train_steps: int, scanned_layers: Any = None
) -> optax.GradientTransformation:
    """The optax transformation of `config`.

    Args:
      config: the optimiser.
      train_steps: updates in the whole run.
      scanned_layers: how many layers are stacked along the leading dimension of each parameter, 0 for none: a tree
        as that of the parameters (`sharding.rules.scanned_layers`). Adafactor treats every layer by itself, and
        weight decay tells a stack of norms' scales from a matrix by it. None: no parameter is a stack.

    Raises:
      ValueError: for a run no longer than its warm-up.
    """
    if config.name == "adamw":
        scale = optax.scale_by_adam(config.b1, config.b2, config.eps, mu_dtype=jnp.dtype(config.moment_dtype))
    else:
        # The pieces of optax.adafactor, in its order but for the learning rate, which commutes with the last.
        scale = per_layer(
            optax.chain(
                optax.scale_by_factored_rms(),
                optax.clip_by_block_rms(1.0),
                optax.scale_by_param_block_rms(),
            ),
            scanned_layers,
        )

    def is_matrix(params: Any) -> Any:
        layers = scanned_layers if scanned_layers is not None else jax.tree.map(lambda _: 0, params)
        return jax.tree.map(lambda param, count: param.ndim - bool(count) > 1, params, layers)

    parts = [scale]
    if config.clip_norm is not None:
        parts.insert(0, _clip_by_global_norm(config.clip_norm))
    if config.weight_decay:
        parts.append(optax.add_decayed_weights(config.weight_decay, is_matrix))
    return _in_float32(optax.chain(*parts, optax.scale_by_learning_rate(make_schedule(config, train_steps))))


def _in_float32(transformation: optax.GradientTransformation) -> optax.GradientTransformation:
    """`transformation` of float32 gradients and parameters, whatever they are: optax takes over their dtype.

    In bfloat16 a second moment would stand still: 1 - b2 is below the last of its 8 bits.
    """

    def widen(tree: Any) -> Any:
        return jax.tree.map(lambda array: array.astype(jnp.float32), tree)

    def update(gradients: Any, state: Any, params: Any) -> tuple[Any, Any]:
        return transformation.update(widen(gradients), state, widen(params))

    return optax.GradientTransformation(lambda params: transformation.init(widen(params)), update)


def per_layer(transformation: optax.GradientTransformation, scanned_layers: Any) -> optax.GradientTransformation:
    """`transformation` applied to every layer of a stack by itself, as if the layers were parameters of their own.

    For transformations that look at a parameter as a whole (its RMS, its rows and columns): to optax a stack
    [layers, ...] is one tensor. Stacks of one height go through one vmap, so the program does not grow with depth.

    Args:
      transformation: whose state holds a leaf per parameter or per tree.
      scanned_layers: as in `make_optimizer`.
    """
    if scanned_layers is None:
        return transformation
    heights = sorted(set(jax.tree.leaves(scanned_layers)))
    # String labels, for they become keys of the state's tree and so names in a checkpoint.
    labels = jax.tree.map(lambda height: f"layers_{height}", scanned_layers)
    return optax.partition(
        {f"layers_{height}": _vmapped(transformation) if height else transformation for height in heights}, labels
    )


def _clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    # optax's divides by the norm. XLA thinks a division too dear to repeat and so writes the clipped gradients to
    # memory before the moments read them; a product it fuses into each reader (0.34 -> 0.23 s an AdamW update of
    # T5-small on 2 CPU cores).
    def clip(gradients: Any, _: Any) -> Any:
        factor = jnp.minimum(1.0, max_norm / optax.tree.norm(gradients))
        return jax.tree.map(lambda gradient: gradient * factor.astype(gradient.dtype), gradients)

    return optax.stateless(clip)


def _vmapped(transformation: optax.GradientTransformation) -> optax.GradientTransformation:
    return optax.GradientTransformation(jax.vmap(transformation.init), jax.vmap(transformation.update))
