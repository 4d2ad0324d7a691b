"""The training step of a configuration and the shapes it takes: what a run trains with, and `dsbs aot` compiles."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from dsbs_jax.models.config import T5Config
from dsbs_jax.models.parameters import abstract_params
from dsbs_jax.models.t5 import T5
from dsbs_jax.sharding.arrays import batch_sharding
from dsbs_jax.sharding.rules import DEFAULT_RULES, Rules, scanned_layers
from dsbs_jax.training.losses import LossConfig
from dsbs_jax.training.optimizers import OptimizerConfig, make_optimizer, make_schedule
from dsbs_jax.training.step import make_train_step


@dataclasses.dataclass(frozen=True)
class TrainingProgram:
    """What trains a model on a mesh.

    Attributes:
      model: the student.
      optimizer: an optax transformation.
      step: the jitted `(state, batch) -> (state, metrics)`.
    """

    model: T5
    optimizer: optax.GradientTransformation
    step: jax.stages.Wrapped


@functools.lru_cache(maxsize=8)
def training_program(
    model_config: T5Config,
    optimizer_config: OptimizerConfig,
    steps: int,
    task_weights: tuple[float, ...],
    mesh: Mesh,
    loss: LossConfig = LossConfig(),
    microbatches: int = 1,
    rules: Rules = DEFAULT_RULES,
) -> TrainingProgram:
    """The program of a run. Runs of one process that differ in seed or data alone share one compilation.

    Args:
      model_config: the student.
      optimizer_config: the optimiser.
      steps: updates in the whole run, for the schedule.
      task_weights: the factor of each task's mean token loss.
      mesh: the device mesh.
      loss: options of the token loss.
      microbatches: parts a batch is computed in.
      rules: logical axis names to mesh axes.
    """
    model = T5(model_config)
    optimizer = make_optimizer(optimizer_config, steps, scanned_layers(abstract_params(model)))
    step = make_train_step(
        model,
        optimizer,
        make_schedule(optimizer_config, steps),
        task_weights,
        mesh,
        loss=loss,
        num_microbatches=microbatches,
        rules=rules,
    )
    return TrainingProgram(model, optimizer, step)


def abstract_batch(mesh: Mesh, rows: int, encoder_length: int, decoder_length: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The arrays of a packed batch (`data/batches.py`) as shapes, split over the mesh: [rows, length] each."""
    sharding = batch_sharding(mesh)

    def of(length: int, dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((rows, length), dtype, sharding=sharding)

    return {
        **{f"encoder_{name}": of(encoder_length) for name in ("input_tokens", "segment_ids", "positions")},
        **{f"decoder_{name}": of(decoder_length) for name in ("input_tokens", "target_tokens", "segment_ids")},
        **{f"decoder_{name}": of(decoder_length) for name in ("positions", "task_ids")},
        "decoder_loss_weights": of(decoder_length, jnp.float32),
    }
