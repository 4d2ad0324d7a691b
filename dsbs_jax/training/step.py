"""The training state and the jitted step: one batch in, one update of a sharded state out.

Everything is one `jax.jit` program over a mesh: parameters and optimiser state split by the logical rules, rows over
`data` and `fsdp`. The step never waits for the host: metrics stay on the device until somebody reads them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dsbs_jax.models.parameters import abstract_params, boxed_params
from dsbs_jax.sharding.arrays import batch_sharding, check_rows
from dsbs_jax.sharding.rules import DEFAULT_RULES, Rules, param_shardings, shardings_like_params
from dsbs_jax.training.losses import LossConfig, TaskSums, multi_task_loss, task_counts
from dsbs_jax.training.rounding import apply_updates

Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]

# Sets the key of rounding apart from those of microbatches, which count from 0.
_ROUNDING = 2**31

_MODEL_INPUTS = (
    "encoder_input_tokens",
    "decoder_input_tokens",
    "encoder_segment_ids",
    "decoder_segment_ids",
    "encoder_positions",
    "decoder_positions",
)


@flax.struct.dataclass
class TrainState:
    """All that a step reads and writes, and all that a resumed run needs beside its data position.

    Attributes:
      step: int32 `[]`, updates made so far.
      params: the model's parameters, without boxes.
      opt_state: the optimiser's state.
      rng: uint32 key data; dropout and rounding of step k are drawn from `fold_in(rng, k)`, wherever the run was
        resumed and however many hosts it has.
      healthy: bool `[]`, False from the first step whose loss or gradient was not finite. From then on every step
        leaves the state alone, so a caller that notices some steps later still holds the state before that step.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    rng: jax.Array
    healthy: jax.Array


def placed_params(model: nn.Module, mesh: Mesh, rules: Rules = DEFAULT_RULES) -> Any:
    """The shape, dtype and sharding of every parameter, as `jax.ShapeDtypeStruct`; nothing is computed."""
    boxed = abstract_params(model)
    return jax.tree.map(_place, nn.meta.unbox(boxed), param_shardings(boxed, mesh, rules))


def init_params(model: nn.Module, seed: int, mesh: Mesh, rules: Rules = DEFAULT_RULES) -> Any:
    """New parameters, made where they are to lie: no device ever holds all of them.

    The same seed gives the same parameters on every mesh.
    """

    def init(seed: jax.Array) -> Any:
        return nn.meta.unbox(boxed_params(model, _keys(seed)[0]))

    return jax.jit(init, out_shardings=param_shardings(abstract_params(model), mesh, rules))(jnp.uint32(seed))


def abstract_state(
    model: nn.Module, optimizer: optax.GradientTransformation, mesh: Mesh, rules: Rules = DEFAULT_RULES
) -> TrainState:
    """The shape, dtype and sharding of every array of the state, as `jax.ShapeDtypeStruct`; nothing is computed.

    What the optimiser keeps in a parameter's shape is split as that parameter.
    """
    params = placed_params(model, mesh, rules)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, params)
    whole = NamedSharding(mesh, PartitionSpec())
    opt_state = jax.eval_shape(optimizer.init, params)
    rng = jax.eval_shape(lambda: jax.random.key_data(_keys(jnp.uint32(0))[1]))
    return TrainState(
        step=_place(jax.ShapeDtypeStruct((), jnp.int32), whole),
        params=params,
        opt_state=jax.tree.map(_place, opt_state, shardings_like_params(opt_state, params, shardings, whole)),
        rng=_place(rng, whole),
        healthy=_place(jax.ShapeDtypeStruct((), jnp.bool_), whole),
    )


def create_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    seed: int,
    mesh: Mesh,
    rules: Rules = DEFAULT_RULES,
    params: Any = None,
) -> TrainState:
    """The state before the first step, made where it is to lie.

    Args:
      model: the student.
      optimizer: the optimiser.
      seed: of the parameters and of dropout.
      mesh: the device mesh.
      rules: logical axis names to mesh axes.
      params: parameters to start from, laid as `param_shardings` says, instead of new ones. They become part of the
        state: a step that donates the state deletes them.
    """
    shardings = _shardings(abstract_state(model, optimizer, mesh, rules))
    if params is None:
        params = init_params(model, seed, mesh, rules)

    def rest(seed: jax.Array, params: Any) -> tuple[jax.Array, Any, jax.Array, jax.Array]:
        return jnp.int32(0), optimizer.init(params), jax.random.key_data(_keys(seed)[1]), jnp.bool_(True)

    places = (shardings.step, shardings.opt_state, shardings.rng, shardings.healthy)
    step, opt_state, rng, healthy = jax.jit(rest, out_shardings=places)(jnp.uint32(seed), params)
    return TrainState(step=step, params=params, opt_state=opt_state, rng=rng, healthy=healthy)


def make_train_step(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    task_weights: Sequence[float],
    mesh: Mesh,
    *,
    loss: LossConfig = LossConfig(),
    num_microbatches: int = 1,
    rules: Rules = DEFAULT_RULES,
) -> jax.stages.Wrapped:
    """The jitted training step `(state, batch) -> (state, metrics)`. It donates the state: the old one is gone.

    The loss is that of `multi_task_loss`, with token counts over the whole batch: on any mesh and in any number of
    microbatches it is the same loss. Where the loss or a gradient is not finite, this step and all later ones return
    the state as it came in but for `healthy`, their steps not counted: the caller can still save it.

    Args:
      model: the student; called with the batch's tokens, segment ids and positions.
      optimizer: the optimiser.
      schedule: the learning rate that the optimiser uses, for the metrics.
      task_weights: the factor of each task's mean token loss, in the order of the task ids.
      mesh: the device mesh.
      loss: options of the token loss.
      num_microbatches: in how many parts, one after another, the batch's rows go through the model. Gradients are
        added up in float32.
      rules: logical axis names to mesh axes.

    Returns:
      The step, a jitted function. Its batch is the one of `data/batches.py`, global arrays `[rows, length]`. Metrics:

        loss             float32 []       the weighted loss that was differentiated, z-loss included
        task_loss        float32 [tasks]  mean cross-entropy of each task's tokens; 0 for a task without tokens
        task_loss_sum    float32 [tasks]  sum of it over the tokens
        task_tokens      float32 [tasks]  their number
        z_loss           float32 []       mean z-loss over all target tokens
        grad_norm        float32 []       global norm of the gradients, before clipping
        learning_rate    float32 []
        encoder_tokens   int32 []         input tokens without padding
        decoder_tokens   int32 []         target tokens without padding
        finite           bool []          whether the update was made

    Raises:
      ValueError: on its first call, where mesh and microbatches cannot divide the rows.
    """
    if num_microbatches < 1:
        raise ValueError(f"num_microbatches is {num_microbatches}; it must be at least 1.")
    shardings = _shardings(abstract_state(model, optimizer, mesh, rules))
    rows_over_microbatches = NamedSharding(mesh, PartitionSpec(None, *batch_sharding(mesh).spec))

    def microbatch_loss(params: Any, rows: Batch, counts: jax.Array, key: jax.Array) -> tuple[jax.Array, TaskSums]:
        inputs = (rows[name] for name in _MODEL_INPUTS)
        logits: Any = model.apply({"params": params}, *inputs, deterministic=False, rngs={"dropout": key})
        return multi_task_loss(
            logits,
            rows["decoder_target_tokens"],
            rows["decoder_task_ids"],
            rows["decoder_loss_weights"],
            task_weights,
            counts,
            loss,
        )

    differentiate = jax.value_and_grad(microbatch_loss, has_aux=True)

    def accumulate(params: Any, batch: Batch, counts: jax.Array, key: jax.Array) -> Any:
        if num_microbatches == 1:
            return differentiate(params, batch, counts, key)

        def split(array: jax.Array) -> jax.Array:
            # Row i goes to microbatch i % m: so every device splits its own rows and none travels.
            parts = array.reshape(-1, num_microbatches, *array.shape[1:]).swapaxes(0, 1)
            return jax.lax.with_sharding_constraint(parts, rows_over_microbatches)

        def add(total: Any, microbatch: tuple[jax.Array, Batch]) -> tuple[Any, None]:
            index, rows = microbatch
            part = differentiate(params, rows, counts, jax.random.fold_in(key, index))
            return jax.tree.map(lambda a, b: a + b.astype(a.dtype), total, part), None

        zeros = jax.tree.map(
            lambda param, sharding: jax.lax.with_sharding_constraint(jnp.zeros(param.shape, jnp.float32), sharding),
            params,
            shardings.params,
        )
        nothing = jnp.zeros(len(task_weights), jnp.float32)
        start = ((jnp.float32(0.0), TaskSums(loss=nothing, z_loss=nothing)), zeros)
        total, _ = jax.lax.scan(add, start, (jnp.arange(num_microbatches), jax.tree.map(split, dict(batch))))
        return total

    def update(state: TrainState, grads: Any) -> TrainState:
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = apply_updates(state.params, updates, jax.random.fold_in(_step_key(state), _ROUNDING))
        return dataclasses.replace(state, step=state.step + 1, params=params, opt_state=opt_state)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        check_rows(mesh, batch["encoder_input_tokens"].shape[0], num_microbatches)
        # What the model's logical constraints are read with.
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh), nn.logical_axis_rules(rules):
            counts = task_counts(batch["decoder_task_ids"], batch["decoder_loss_weights"], len(task_weights))
            (value, sums), grads = accumulate(state.params, batch, counts, _step_key(state))
            # Said here, a gradient's sum over devices leaves each with its own part alone.
            grads = jax.lax.with_sharding_constraint(grads, shardings.params)
            # Bfloat16 gradients are summed in float32, and stay what they are: the update reads them again.
            grad_norm = optax.tree.norm(jax.tree.map(lambda grad: grad.astype(jnp.float32), grads))
            finite = state.healthy & jnp.isfinite(value) & jnp.isfinite(grad_norm)
            # Not jnp.where: a branch writes the donated state in place, a choice between old and new copies it first.
            updated = jax.lax.cond(finite, update, lambda state, _: state, state, grads)
        metrics = {
            "loss": value,
            "task_loss": sums.loss / jnp.maximum(counts, 1.0),
            "task_loss_sum": sums.loss,
            "task_tokens": counts,
            "z_loss": jnp.sum(sums.z_loss) / jnp.maximum(jnp.sum(counts), 1.0),
            "grad_norm": grad_norm,
            "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
            "encoder_tokens": jnp.sum(batch["encoder_segment_ids"] > 0),
            "decoder_tokens": jnp.sum(batch["decoder_segment_ids"] > 0),
            "finite": finite,
        }
        return dataclasses.replace(updated, healthy=finite), metrics

    whole = NamedSharding(mesh, PartitionSpec())
    return jax.jit(
        step, in_shardings=(shardings, batch_sharding(mesh)), out_shardings=(shardings, whole), donate_argnums=0
    )


def _step_key(state: TrainState) -> jax.Array:
    """The key of all that is drawn in the step that `state` is about to make."""
    return jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)


def _shardings(state: TrainState) -> TrainState:
    return jax.tree.map(lambda array: array.sharding, state)


def _place(array: jax.ShapeDtypeStruct, sharding: NamedSharding) -> Any:
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)


def _keys(seed: jax.Array) -> jax.Array:
    """One key for the parameters, one for dropout."""
    return jax.random.split(jax.random.key(seed))
