"""The weighted multi-task loss: cross-entropy over a large vocabulary, reduced per task.

The paper's loss is L = sum_t weight_t * (mean cross-entropy over the target tokens of task t); its reference code runs
the model once per task. Here all tasks' sequences lie packed in one batch, and per-token task ids keep the sums apart.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Options of the token loss.

    Attributes:
      z_loss: coefficient of log(Z)^2, Z the softmax's normaliser; keeps logits from drifting (T5X uses 1e-4).
      label_smoothing: probability mass spread evenly over all classes, the target's own included, as in torch.
    """

    z_loss: float = 0.0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if self.z_loss < 0 or not 0 <= self.label_smoothing < 1:
            raise ValueError(f"{self}: z_loss must be at least 0, and label_smoothing must lie in [0, 1).")


def token_loss(logits: jax.Array, targets: jax.Array, config: LossConfig = LossConfig()) -> tuple[jax.Array, jax.Array]:
    r"""Cross-entropy and z-loss of every token.

    With l the logits `[vocab]`, y the target, V the vocabulary, e the smoothing and z the z-loss coefficient,

        log Z = log sum_v exp(l_v)
        ce    = log Z - (1 - e) * l_y - (e / V) * sum_v l_v
        zl    = z * (log Z)^2

    which is -sum_v q_v log softmax(l)_v for q = (1 - e) onehot(y) + e / V. As d(log Z)/dl = softmax(l) = p, the
    cotangents g of ce and h of zl give

        dl = (g + 2 h z log Z) * p - g * (1 - e) * onehot(y) - g * e / V,    p = exp(l - log Z).

    So the backward pass needs l and log Z alone: p is never stored, and dl is one elementwise pass over l, written
    into l's own buffer. Autodiff of log_softmax keeps three arrays of [batch, length, vocab], that of logsumexp two.

    After T5X `losses.py` (`cross_entropy_with_logits`) and the z-loss of Mesh TensorFlow (`layers.py`), which take
    one-hot targets. Both weigh the z-loss's gradient through the sum; here it has a cotangent of its own.

    Args:
      logits: `[..., vocab]`, any float; the arithmetic is float32.
      targets: `[...]` int, in [0, vocab).
      config: options.

    Returns:
      Cross-entropy and z-loss, each float32 `[...]`. The token's loss is their sum.
    """
    return _token_loss(config, logits, targets)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _token_loss(config: LossConfig, logits: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    return _token_loss_fwd(config, logits, targets)[0]


def _token_loss_fwd(config, logits, targets):
    wide = logits.astype(jnp.float32)
    log_z = jax.nn.logsumexp(wide, axis=-1)
    target_logit = jnp.take_along_axis(wide, targets[..., None], axis=-1)[..., 0]
    cross_entropy = log_z - (1 - config.label_smoothing) * target_logit
    if config.label_smoothing:
        cross_entropy -= config.label_smoothing * jnp.mean(wide, axis=-1)
    return (cross_entropy, config.z_loss * jnp.square(log_z)), (logits, targets, log_z)


def _token_loss_bwd(config, residuals, cotangents):
    logits, targets, log_z = residuals
    of_cross_entropy, of_z_loss = cotangents
    of_log_z = of_cross_entropy + 2 * config.z_loss * log_z * of_z_loss
    probabilities = jnp.exp(logits.astype(jnp.float32) - log_z[..., None])
    of_target = jnp.where(_is_target(logits, targets), (1 - config.label_smoothing) * of_cross_entropy[..., None], 0.0)
    of_logits = of_log_z[..., None] * probabilities - of_target
    if config.label_smoothing:
        of_logits -= of_cross_entropy[..., None] * (config.label_smoothing / logits.shape[-1])
    return of_logits.astype(logits.dtype), None


_token_loss.defvjp(_token_loss_fwd, _token_loss_bwd)


def _is_target(logits: jax.Array, targets: jax.Array) -> jax.Array:
    return jax.lax.broadcasted_iota(targets.dtype, logits.shape, logits.ndim - 1) == targets[..., None]


@flax.struct.dataclass
class TaskSums:
    """Sums over tokens, to be added up over microbatches: means of sums stay right where means of means do not.

    Attributes:
      loss: float32 `[tasks]`, weighted sum of the cross-entropy of each task's tokens.
      z_loss: float32 `[tasks]`, likewise of the z-loss.
    """

    loss: jax.Array
    z_loss: jax.Array


def task_counts(task_ids: jax.Array, loss_weights: jax.Array, num_tasks: int) -> jax.Array:
    """The number of target tokens of each task.

    Args:
      task_ids: int `[batch, length]`, in [0, num_tasks) wherever `loss_weights` is not 0.
      loss_weights: float32 `[batch, length]`.
      num_tasks: how many tasks there are.

    Returns:
      float32 `[tasks]`: sums of `loss_weights`; over all devices where the arrays are global.
    """
    return _sum_per_task(loss_weights, task_ids, num_tasks)


def multi_task_loss(
    logits: jax.Array,
    targets: jax.Array,
    task_ids: jax.Array,
    loss_weights: jax.Array,
    task_weights: Sequence[float],
    counts: jax.Array,
    config: LossConfig = LossConfig(),
) -> tuple[jax.Array, TaskSums]:
    """sum_t task_weights[t] * sum_t / max(counts[t], 1), with sum_t the loss over these tokens of task t.

    With `counts` those of the whole batch, the losses and gradients of its microbatches add up to the whole batch's.
    A task without tokens contributes 0.

    Args:
      logits: `[batch, length, vocab]`.
      targets: int `[batch, length]`.
      task_ids: int `[batch, length]`.
      loss_weights: float32 `[batch, length]`; 0 on padding.
      task_weights: the factor of each task's mean.
      counts: float32 `[tasks]`, from `task_counts` over the whole batch.
      config: options of the token loss.

    Returns:
      The loss, float32 `[]`, and the sums it is made of.
    """
    cross_entropy, z_loss = token_loss(logits, targets, config)
    num_tasks = len(task_weights)
    sums = TaskSums(
        loss=_sum_per_task(cross_entropy * loss_weights, task_ids, num_tasks),
        z_loss=_sum_per_task(z_loss * loss_weights, task_ids, num_tasks),
    )
    factors = jnp.asarray(task_weights, jnp.float32) / jnp.maximum(counts, 1.0)
    return jnp.sum(factors * (sums.loss + sums.z_loss)), sums


def _sum_per_task(values: jax.Array, task_ids: jax.Array, num_tasks: int) -> jax.Array:
    belongs = task_ids[..., None] == jnp.arange(num_tasks)
    return jnp.sum(jnp.where(belongs, values[..., None], 0.0), axis=tuple(range(values.ndim)))
