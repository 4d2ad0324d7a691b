"""What an accelerator makes of the training step: real optimiser steps on made-up batches without padding."""

from __future__ import annotations

import dataclasses
import datetime
import logging
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from dsbs_jax.models.flops import train_step_flops
from dsbs_jax.models.platform import check_platform
from dsbs_jax.sharding.arrays import check_rows
from dsbs_jax.sharding.chips import find_chip
from dsbs_jax.sharding.mesh import make_mesh
from dsbs_jax.training.aot import AotConfig
from dsbs_jax.training.program import abstract_batch
from dsbs_jax.training.step import abstract_state, create_state

logger = logging.getLogger(__name__)

_WARM_UP = 2


@dataclasses.dataclass(frozen=True)
class StepBenchConfig:
    """One measurement.

    Attributes:
      program: model, optimiser, mesh and batch, as `dsbs aot` takes them.
      window: steps between two looks at the clock: the host waits for the device there, and not after each step.
      windows: how many windows; the median counts.
    """

    program: AotConfig
    window: int = 10
    windows: int = 3

    def __post_init__(self) -> None:
        for name in ("window", "windows"):
            if getattr(self, name) < 1:
                raise ValueError(f"StepBenchConfig: {name} is {getattr(self, name)}; it must be at least 1.")


def run(config: StepBenchConfig) -> dict[str, Any]:
    """Times the step on all devices of all processes.

    Returns:
      Seconds, tokens per second (inputs and targets), MFU (model FLOPs over what the chips' data sheets promise; None
      where none is known), and bytes per device: the most that was ever taken (None where the platform does not count),
      before the first step too, and what the compiled program asks for.

    Raises:
      ValueError: the mesh cannot divide model or rows, or the platform lacks an option; before anything is compiled.
      FloatingPointError: the loss stopped being a number, from where on steps make no update.
    """
    program, model = config.program, config.program.model
    mesh, rules = make_mesh(program.mesh), program.rules()
    check_platform(model, mesh.local_devices[0], program.lengths)
    check_rows(mesh, program.rows, program.microbatches)
    made = program.training_program(mesh)
    shapes = abstract_batch(mesh, program.rows, *program.lengths)
    lowered = made.step.lower(abstract_state(made.model, made.optimizer, mesh, rules), shapes)
    started = time.perf_counter()
    step = lowered.compile()
    compile_seconds = time.perf_counter() - started
    logger.info("Compiled in %.1f s.", compile_seconds)

    state = create_state(made.model, made.optimizer, 0, mesh, rules)
    batch = _full_batch(shapes, model.vocab_size, program.tasks)
    jax.block_until_ready((state, batch))
    before = _peak_bytes(mesh)
    seconds = []
    for window in range(1 + config.windows):
        steps = config.window if window else _WARM_UP
        started = time.perf_counter()
        for _ in range(steps):
            state, metrics = step(state, batch)
        jax.block_until_ready((state, metrics))
        seconds.append((time.perf_counter() - started) / steps)
    if not metrics["finite"]:
        raise FloatingPointError(
            f"The loss is {float(metrics['loss'])}, and steps make no update any more: set a lower LEARNING_RATE."
        )
    median = statistics.median(seconds[1:])
    flops = train_step_flops(model, program.rows, *program.lengths)
    device = mesh.devices.flat[0]
    chip = find_chip(device.device_kind)
    memory: Any = step.memory_analysis()
    needed = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    return {
        "device": device.device_kind,
        "devices": mesh.size,
        "mesh": dict(mesh.shape),
        "date": datetime.date.today().isoformat(),
        "jax": jax.__version__,
        "parameters": model.num_parameters(),
        "model": dataclasses.asdict(model),
        "optimizer": program.optimizer.name,
        "rows": program.rows,
        "lengths": list(program.lengths),
        "microbatches": program.microbatches,
        "compile_seconds": round(compile_seconds, 3),
        "step_seconds": round(median, 6),
        "windows_seconds": [round(value, 6) for value in seconds[1:]],
        "tokens_per_second": round(program.rows * sum(program.lengths) / median, 1),
        "model_flops_per_step": flops,
        "model_flops_per_second_per_device": round(flops / median / mesh.size, 1),
        "mfu": chip and round(flops / median / mesh.size / chip.peak_flops, 4),
        "peak_bytes": _peak_bytes(mesh),
        "peak_bytes_before_steps": before,
        "compiled_bytes": needed + memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "loss": round(float(metrics["loss"]), 6),
    }


def _full_batch(shapes: dict[str, jax.ShapeDtypeStruct], vocab_size: int, tasks: int) -> dict[str, jax.Array]:
    """Random tokens, one example a row that fills it, its task that of the row's number; made where they are to lie."""

    def make() -> dict[str, jax.Array]:
        made = {}
        for number, (name, shape) in enumerate(shapes.items()):
            if name.endswith("_tokens"):
                key = jax.random.key(number)
                made[name] = jax.random.randint(key, shape.shape, 2, vocab_size, shape.dtype)
            elif name.endswith("_positions"):
                made[name] = jax.lax.broadcasted_iota(shape.dtype, shape.shape, 1)
            elif name.endswith("_task_ids"):
                made[name] = jax.lax.broadcasted_iota(shape.dtype, shape.shape, 0) % tasks
            else:
                made[name] = jnp.ones(shape.shape, shape.dtype)
        return made

    return jax.jit(make, out_shardings={name: shape.sharding for name, shape in shapes.items()})()


def _peak_bytes(mesh: Mesh) -> int | None:
    """The most that any of this process's devices ever held, or None where the platform does not count."""
    stats = [device.memory_stats() or {} for device in mesh.local_devices]
    peaks = [one["peak_bytes_in_use"] for one in stats if "peak_bytes_in_use" in one]
    return max(peaks, default=None)
