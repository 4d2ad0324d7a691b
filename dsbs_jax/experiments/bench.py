"""Training speed against transformers' T5 in torch: same rows, same architecture, both in one process, interleaved.

The torch side is what the reference code does in a step: one forward pass over the label batch and one over the
rationale batch, each padded to its longest row, alpha times one loss plus (1 - alpha) times the other, one backward
pass, gradients clipped, AdamW. This side is the step that `dsbs train` runs.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from dsbs_jax import schema
from dsbs_jax.data.batches import BatchPlan
from dsbs_jax.data.prepare import StoreRequest, ensure_store
from dsbs_jax.data.store import Feature, Split, TokenStore
from dsbs_jax.models.config import T5Config
from dsbs_jax.sharding.arrays import put_batch
from dsbs_jax.sharding.mesh import MeshConfig, make_mesh
from dsbs_jax.training.optimizers import OptimizerConfig
from dsbs_jax.training.program import training_program
from dsbs_jax.training.step import create_state

logger = logging.getLogger(__name__)

_WARM_UP = 2
# The rows are packed as for the paper's whole run: a plan of the timed steps alone would fill its rows better.
_PLANNED_STEPS = 10_000


@dataclasses.dataclass(frozen=True)
class BenchConfig:
    """One comparison.

    Attributes:
      data: the rows; two tasks, label and rationale.
      model: the architecture of both sides.
      batch_size: examples a step.
      steps: timed steps of each side.
      store_root: folder of the token stores; None takes `default_store_root()`.
    """

    data: StoreRequest
    model: T5Config
    batch_size: int = 64
    steps: int = 10
    store_root: str | None = None


def train(config: BenchConfig) -> dict[str, Any]:
    """Examples per second of both sides and their ratio, from medians over interleaved steps.

    Raises:
      ImportError: torch or transformers is not installed (`pip install 'dsbs_jax[parity]'`).
    """
    method = schema.make_method("step_by_step", label_weight=0.5, rationale_weight=0.5)
    store = TokenStore.open(ensure_store(config.data.for_method(method), config.store_root))
    total = _WARM_UP + config.steps
    plan = BatchPlan(store.split("train"), batch_size=config.batch_size, steps=max(total, _PLANNED_STEPS))
    sides = {"dsbs_jax": _jax_step(config, plan, method), "torch": _torch_step(config, plan)}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for step in range(total):
        # Who goes first alternates: whatever else the machine does meets both alike.
        for name in sorted(sides, reverse=step % 2 == 1):
            started = time.perf_counter()
            sides[name](step)
            seconds[name].append(time.perf_counter() - started)
        logger.info("step %d/%d: %s", step + 1, total, {name: round(times[-1], 3) for name, times in seconds.items()})
    medians = {name: statistics.median(times[_WARM_UP:]) for name, times in seconds.items()}
    return {
        "dataset": store.meta.name,
        "parameters": config.model.num_parameters(),
        "batch_size": config.batch_size,
        "steps": config.steps,
        "packed_shape": list(plan.shape),
        "encoder_utilisation": plan.report["encoder_utilisation"],
        "decoder_utilisation": plan.report["decoder_utilisation"],
        "examples_per_second": {name: round(config.batch_size / median, 3) for name, median in medians.items()},
        "ratio": round(medians["torch"] / medians["dsbs_jax"], 3),
        "ratio_quartiles": [
            round(float(q), 3)
            for q in np.quantile(
                np.array(seconds["torch"][_WARM_UP:]) / np.array(seconds["dsbs_jax"][_WARM_UP:]), [0.25, 0.75]
            )
        ],
        "cores": os.cpu_count(),
    }


def _jax_step(config: BenchConfig, plan: BatchPlan, method: schema.Method) -> Callable[[int], None]:
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    weights = tuple(task.weight for task in method.tasks)
    program = training_program(config.model, OptimizerConfig(), _PLANNED_STEPS, weights, mesh)
    state = create_state(program.model, program.optimizer, 0, mesh)

    def step(number: int) -> None:
        nonlocal state
        state, metrics = program.step(state, put_batch(plan.batch(number), mesh))
        jax.block_until_ready((state, metrics))

    return step


def _torch_step(config: BenchConfig, plan: BatchPlan) -> Callable[[int], None]:
    import torch
    import transformers

    ours = config.model
    torch.manual_seed(0)
    model = transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=ours.vocab_size,
            d_model=ours.d_model,
            d_kv=ours.d_kv,
            d_ff=ours.d_ff,
            num_layers=ours.num_layers,
            num_decoder_layers=ours.num_decoder_layers,
            num_heads=ours.num_heads,
            dropout_rate=ours.dropout_rate,
            feed_forward_proj=ours.feed_forward,
            tie_word_embeddings=ours.tie_embeddings,
            decoder_start_token_id=0,
        )
    ).train()
    if not ours.tie_embeddings:
        # transformers 5 ties the weights whatever the config says; v1.1 has a head of its own.
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    count = sum(parameter.numel() for parameter in model.parameters())
    if count != ours.num_parameters():
        raise ValueError(f"torch's model has {count} parameters, ours {ours.num_parameters()}: not a comparison.")
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5, weight_decay=0.0)

    def step(number: int) -> None:
        indices = plan.indices(number)
        losses = [
            model(**{name: torch.from_numpy(array) for name, array in _padded(plan.split, task, indices).items()}).loss
            for task in plan.tasks
        ]
        loss = 0.5 * losses[0] + 0.5 * losses[1]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()

    return step


def _padded(split: Split, task: str, indices: np.ndarray) -> dict[str, np.ndarray]:
    """One task's rows padded to the longest, as DataCollatorForSeq2Seq does; rows without a pair are left out."""
    lengths = split.lengths(task, "targets")
    kept = [index for index in indices if lengths[index]]
    arrays: dict[str, np.ndarray] = {}
    features: tuple[tuple[Feature, str, int], ...] = (("inputs", "input_ids", 0), ("targets", "labels", -100))
    for feature, name, padding in features:
        rows = [split.tokens(task, feature, index) for index in kept]
        array = np.full((len(rows), max(map(len, rows))), padding, np.int64)
        for at, row in enumerate(rows):
            array[at, : len(row)] = row
        arrays[name] = array
    return arrays | {"attention_mask": (arrays["input_ids"] != 0).astype(np.int64)}
