"""Does it fit, and how fast could it be: a run's programs compiled for devices that need not be there.

The TPU compiler (the `libtpu` wheel) compiles for any slice without one; XLA's CPU compiler for any number of simulated
devices. What is compiled is the step that `dsbs train` runs, and the decoding that its evaluations run.
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from dsbs_jax.inference.decoding import greedy_decode
from dsbs_jax.models.config import T5Config
from dsbs_jax.models.flops import decode_flops, train_step_flops
from dsbs_jax.models.platform import check_platform
from dsbs_jax.sharding.arrays import batch_sharding, row_multiple
from dsbs_jax.sharding.chips import Chip, find_chip
from dsbs_jax.sharding.hlo_costs import Costs, program_costs
from dsbs_jax.sharding.mesh import MeshConfig, make_mesh
from dsbs_jax.sharding.rules import Rules, make_rules
from dsbs_jax.training.optimizers import OptimizerConfig
from dsbs_jax.training.program import TrainingProgram, abstract_batch, training_program
from dsbs_jax.training.step import abstract_state

PROGRAMS = ("train", "decode")


@dataclasses.dataclass(frozen=True)
class AotConfig:
    """What is compiled.

    Attributes:
      model: the student's architecture.
      optimizer: optimiser, schedule, clipping.
      mesh: how the devices are laid out.
      sharding_rules: changes to `sharding.rules.DEFAULT_RULES`.
      rows: packed rows of a batch over all devices; rounded up to what the mesh can divide.
      lengths: tokens of a row's (inputs, targets).
      tasks: how many tasks' losses are told apart.
      microbatches: gradient accumulation.
      decode_rows: examples a decoding step, rounded up likewise.
      decode_length: most tokens decoded; None takes the targets' length.
      steps: updates in the whole run.
    """

    model: T5Config
    optimizer: OptimizerConfig = OptimizerConfig()
    mesh: MeshConfig = MeshConfig()
    sharding_rules: tuple[tuple[str, Any], ...] = ()
    rows: int = 64
    lengths: tuple[int, int] = (1024, 256)
    tasks: int = 2
    microbatches: int = 1
    decode_rows: int = 64
    decode_length: int | None = None
    steps: int = 10_000

    def __post_init__(self) -> None:
        for name in ("rows", "tasks", "microbatches", "decode_rows", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1.")

    def rules(self) -> Rules:
        """The logical rules with this configuration's changes."""
        return make_rules(self.sharding_rules)

    def training_program(self, mesh: Mesh) -> TrainingProgram:
        """The step of a run of this shape on `mesh`, its tasks weighed alike."""
        return training_program(
            self.model,
            self.optimizer,
            self.steps,
            (1.0,) * self.tasks,
            mesh,
            microbatches=self.microbatches,
            rules=self.rules(),
        )


@dataclasses.dataclass(frozen=True)
class Estimate:
    """One program on one mesh. Bytes and FLOPs are of one chip; None: not known.

    Attributes:
      program: `train` or `decode`.
      rows: of the batch over all devices.
      lengths: tokens of a row's (inputs, targets).
      argument_bytes_per_chip: state or weights, and the batch.
      temp_bytes_per_chip: what the compiler sets aside beside them. Where memory is plentiful it does not pack tightly.
      peak_bytes_per_chip: the most that lives at one time, arguments and results included; of a program that does not
        fit, what the compiler said that it would need before it gave up.
      hbm_bytes_per_chip: the chip's memory.
      compiled_flops: of matrix products in the compiled program, loops counted as often as they run.
      model_flops: of `models/flops.py`, over all chips divided by their number.
      flops_ratio: compiled over model FLOPs: 1 recomputes nothing and shares everything.
      collective_bytes: what the chip sends over its links.
      roofline_step_seconds: the longest of: compiled FLOPs at the chip's peak; arguments and results passed once over
        its memory's bandwidth; collective bytes over its links. A lower bound: a real step overlaps these imperfectly.
      compile_seconds: wall time of the compilation.
      fits: whether the peak is within the chip's memory; None where that is not known.
      suggestion: what to change where it does not fit.
    """

    program: str
    rows: int
    lengths: tuple[int, int]
    argument_bytes_per_chip: float | None
    temp_bytes_per_chip: float | None
    peak_bytes_per_chip: float | None
    hbm_bytes_per_chip: float | None
    compiled_flops: float | None
    model_flops: float
    flops_ratio: float | None
    collective_bytes: float | None
    roofline_step_seconds: float | None
    compile_seconds: float
    fits: bool | None
    suggestion: str | None


def estimate(config: AotConfig, devices: Sequence[jax.Device], program: str = "train") -> Estimate:
    """Compiles one program for `devices` and reads its costs off it.

    Args:
      config: what to compile.
      devices: real ones, simulated ones, or those of `tpu_devices`.
      program: `train` or `decode`.

    Raises:
      ValueError: where the mesh cannot divide the model or the devices, the platform lacks an option of the model, or
        there is no such program.
    """
    check_platform(config.model, devices[0], config.lengths, training=program == "train")
    mesh = make_mesh(config.mesh, devices)
    made = config.training_program(mesh)
    state = abstract_state(made.model, made.optimizer, mesh, config.rules())
    encoder_length, decoder_length = config.lengths
    if program == "train":
        rows = _rounded(config.rows, row_multiple(mesh) * config.microbatches)
        flops = train_step_flops(config.model, rows, encoder_length, decoder_length)
        lowered = made.step.lower(state, abstract_batch(mesh, rows, encoder_length, decoder_length))
    elif program == "decode":
        rows = _rounded(config.decode_rows, row_multiple(mesh))
        decoder_length = config.decode_length or decoder_length
        flops = decode_flops(config.model, rows, encoder_length, decoder_length)
        tokens = jax.ShapeDtypeStruct((rows, encoder_length), jnp.int32, sharding=batch_sharding(mesh))
        decode = jax.jit(
            lambda params, tokens: greedy_decode(made.model, params, tokens, decoder_length, config.model.vocab_size)
        )
        lowered = decode.lower(state.params, tokens)
    else:
        raise ValueError(f"There is no program {program!r}; there are {', '.join(PROGRAMS)}.")
    return _read(
        lowered.compile,
        find_chip(devices[0].device_kind),
        len(devices),
        program=program,
        rows=rows,
        lengths=(encoder_length, decoder_length),
        flops=flops,
        suggest=lambda: _suggestion(config, mesh.shape, rows),
    )


def tpu_devices(topology: str, slices: int = 1) -> Sequence[jax.Device]:
    """The devices of a TPU slice that is not there, e.g. `v5p:2x2x4`, for compilation alone.

    Args:
      topology: generation and chips along each dimension: `v4:2x2x2`, `v5e:8x8`, `v5p:4x4x4`, `v6e:4x4`.
      slices: how many such slices, joined by the data center's network.

    Raises:
      ValueError: where there is no such topology, or no TPU compiler is installed.
    """
    from jax.experimental import topologies

    try:
        options = {"num_slices": slices} if slices > 1 else {}
        return topologies.get_topology_desc(topology, platform="tpu", **options).devices
    except (RuntimeError, ImportError, AssertionError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"The TPU topology {topology!r} cannot be compiled for ({reason}): name one as v5p:2x2x4 (v4, v5p: three "
            "dimensions) or v5e:8x8 (v5e, v6e: two), and install the TPU compiler: pip install 'dsbs_jax[tpu]'."
        ) from None


def _read(
    compile: Callable[[], Any],
    chip: Chip | None,
    num_devices: int,
    *,
    program: str,
    rows: int,
    lengths: tuple[int, int],
    flops: float,
    suggest: Callable[[], str],
) -> Estimate:
    """Compiles, and reads everything off the result."""
    hbm = chip.hbm_bytes if chip else None
    started = time.perf_counter()
    try:
        compiled = compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        peak = _asked_for(str(error))
        return Estimate(
            program,
            rows,
            lengths,
            argument_bytes_per_chip=None,
            temp_bytes_per_chip=None,
            peak_bytes_per_chip=peak,
            hbm_bytes_per_chip=hbm,
            compiled_flops=None,
            model_flops=flops / num_devices,
            flops_ratio=None,
            collective_bytes=None,
            roofline_step_seconds=None,
            compile_seconds=round(time.perf_counter() - started, 3),
            fits=False,
            suggestion=suggest(),
        )
    seconds = time.perf_counter() - started
    memory = compiled.memory_analysis()
    arguments, temporaries = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    # XLA's own count of what lives at one time; the CPU compiler gives none.
    peak = float(memory.peak_memory_in_bytes or arguments + temporaries + results)
    costs = program_costs(compiled.as_text())
    passed = arguments + memory.output_size_in_bytes
    fits = None if hbm is None else peak <= hbm
    return Estimate(
        program,
        rows,
        lengths,
        argument_bytes_per_chip=float(arguments),
        temp_bytes_per_chip=float(temporaries),
        peak_bytes_per_chip=peak,
        hbm_bytes_per_chip=hbm,
        compiled_flops=costs.flops,
        model_flops=flops / num_devices,
        flops_ratio=round(costs.flops * num_devices / flops, 4),
        collective_bytes=costs.collective_bytes,
        roofline_step_seconds=None if chip is None else _roofline(chip, costs, passed),
        compile_seconds=round(seconds, 3),
        fits=fits,
        suggestion=suggest() if fits is False else None,
    )


def _roofline(chip: Chip, costs: Costs, passed_bytes: float) -> float:
    return max(
        costs.flops / chip.peak_flops,
        passed_bytes / chip.hbm_bandwidth,
        costs.collective_bytes / chip.interconnect_bandwidth,
    )


def _rounded(rows: int, multiple: int) -> int:
    return -(-rows // multiple) * multiple


def _asked_for(message: str) -> float | None:
    """The bytes that the TPU compiler says it would need: in all, or for what alone is too much already."""
    used = re.search(r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm", message) or re.search(
        r"\(([\d.]+)([KMGT]?)\) exceeds available HBM", message
    )
    return float(used[1]) * 1024 ** " KMGT".index(used[2] or " ") if used else None


def _suggestion(config: AotConfig, mesh: Any, rows: int) -> str:
    """What saves memory and is not done yet, the cheapest first."""
    shards = mesh["data"] * mesh["fsdp"]
    ways = []
    if mesh["data"] > 1:
        ways.append("split the parameters (MESH='fsdp')")
    if config.model.dtype == "float32":
        ways.append("compute in bfloat16 (T5Config.dtype='bfloat16')")
    if config.model.remat_policy != "full":
        ways.append("recompute activations (T5Config.remat_policy='full')")
    if rows // config.microbatches > shards:
        ways.append(f"accumulate gradients (MICROBATCHES={2 * config.microbatches})")
    if config.optimizer.name == "adamw":
        ways.append("take Adafactor (OptimizerConfig.name='adafactor')")
    return "; ".join([*ways, "take more chips, or shorter rows (TASK_FEATURE_LENGTHS)"])


def report(estimates: Sequence[Estimate], where: str) -> str:
    """The estimates as text for people."""

    def gigabytes(value: float | None) -> str:
        return "?" if value is None else f"{value / 1e9:.2f} GB"

    def trillions(value: float | None) -> str:
        return "?" if value is None else f"{value / 1e12:.2f} TFLOP"

    lines = []
    for one in estimates:
        head = {"train": "training step", "decode": "decoding"}[one.program]
        fits = {None: "", True: ": fits", False: ": DOES NOT FIT"}[one.fits]
        roofline = "?" if one.roofline_step_seconds is None else f"{one.roofline_step_seconds:.3f} s"
        lines += [
            f"{head}, {one.rows} rows of {one.lengths[0]} + {one.lengths[1]} tokens, on {where}; per chip:",
            f"  arguments    {gigabytes(one.argument_bytes_per_chip)}",
            f"  temporaries  {gigabytes(one.temp_bytes_per_chip)}",
            f"  peak         {gigabytes(one.peak_bytes_per_chip)} of {gigabytes(one.hbm_bytes_per_chip)}{fits}",
            f"  FLOPs        {trillions(one.compiled_flops)} compiled, {trillions(one.model_flops)} model, ratio "
            f"{'?' if one.flops_ratio is None else f'{one.flops_ratio:.3f}'}",
            f"  collectives  {gigabytes(one.collective_bytes)} sent",
            f"  roofline     {roofline} a {'step' if one.program == 'train' else 'batch'}",
            f"  compiled in  {one.compile_seconds:.1f} s",
            *([f"  to make it fit: {one.suggestion}"] if one.suggestion else []),
        ]
    return "\n".join(lines)


def to_json(estimates: Sequence[Estimate], where: str) -> dict[str, Any]:
    """One object: the first estimate's fields, and each further one under its program's name."""
    first, *more = (dataclasses.asdict(one) for one in estimates)
    return {"target": where, **first, **{one["program"]: one for one in more}}
