"""Building a run: store, batches, mesh, model, state, checkpoints. What can be wrong is found here, before step 1."""

from __future__ import annotations

import dataclasses
import json
import logging
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dsbs_jax.data.batches import BatchPlan, prefetch
from dsbs_jax.data.shared_store import ensure_store_on_hosts
from dsbs_jax.data.store import TokenStore
from dsbs_jax.inference.evaluation import Evaluation, Evaluator
from dsbs_jax.models.parameters import abstract_params
from dsbs_jax.models.platform import check_platform
from dsbs_jax.models.t5 import T5
from dsbs_jax.sharding.agreement import from_first, is_first, together
from dsbs_jax.sharding.arrays import local_rows, put_batch, row_multiple
from dsbs_jax.sharding.mesh import make_mesh
from dsbs_jax.sharding.rules import param_shardings
from dsbs_jax.training.checkpoints import Checkpoints, abstract
from dsbs_jax.training.config import TrainConfig
from dsbs_jax.training.folder import check_same, leave_sweep
from dsbs_jax.training.initial_weights import initial_weights
from dsbs_jax.training.losses import LossConfig
from dsbs_jax.training.program import TrainingProgram, training_program
from dsbs_jax.training.step import TrainState, abstract_state, create_state
from dsbs_jax.training.telemetry import NonFiniteLossError, Telemetry

logger = logging.getLogger(__name__)

History = list[tuple[int, float]]


@dataclasses.dataclass
class Run:
    """Everything a run needs, ready for its next step.

    Attributes:
      config: as it was asked for.
      folder: `config.model_dir`.
      store: the token store.
      plan: the batches.
      mesh: the devices.
      state: where training goes on; donated to the first step.
      history: (step, validation accuracy) of the evaluations so far.
      continued_from: the numbers of steps that the run had before it was continued to more, in their order.
      train_step: the jitted step.
      evaluators: by split, of `validation` and `test`; a foreign task may lack them.
      checkpoints: the run's.
      telemetry: the run's.
      decode_length: most tokens decoded in an evaluation.
      data_report: what became of the rows: skipped, truncated, used; utilisation.
    """

    config: TrainConfig
    folder: pathlib.Path
    store: TokenStore
    plan: BatchPlan
    mesh: Mesh
    state: TrainState
    history: History
    continued_from: list[int]
    train_step: Callable[..., Any]
    evaluators: dict[str, Evaluator]
    checkpoints: Checkpoints
    telemetry: Telemetry
    decode_length: int
    data_report: dict[str, Any]

    def batches(self) -> Iterator[tuple[int, dict[str, jax.Array], dict[str, float]]]:
        """(number of the step from 1, batch on the devices, host numbers) of the steps that `state` has not done."""
        rows = local_rows(self.mesh, self.plan.shape[0])
        source: Any = prefetch(self.plan, int(self.state.step), self.config.steps, rows)
        try:
            waiting = time.perf_counter()
            for step, batch, stats in source:
                on_devices = put_batch(batch, self.mesh)
                numbers = {
                    "seconds/data": time.perf_counter() - waiting,
                    "tokens": float(stats.encoder_tokens + stats.decoder_tokens),
                    "padding/encoder": 1 - stats.encoder_utilisation,
                    "padding/decoder": 1 - stats.decoder_utilisation,
                }
                yield step + 1, on_devices, numbers
                waiting = time.perf_counter()
        finally:
            source.close()

    def evaluate(self, split: str, params: Any) -> Evaluation | None:
        """The weights' answers on a split, or None where the dataset does not have it."""
        return self.evaluators[split](params) if split in self.evaluators else None

    def save(self, state: TrainState, step: int, history: History, accuracy: float | None) -> None:
        """Saves in the background; `step` steps are done."""
        record = {
            "step": step,
            "data_position": step * self.config.batch_size,
            "seed": self.config.seed,
            "history": history,
            "continued_from": self.continued_from,
            "decode_length": self.decode_length,
            "vocabulary": self.store.meta.vocabulary_fingerprint,
            "store": self.store.meta.key,
            "config": json.loads(json.dumps(self.config.to_json())),
        }
        self.checkpoints.save(step, state.params, _optimizer_item(state), record, accuracy)

    def restore_params(self, step: int, params: Any) -> Any:
        """The weights saved at `step`, laid out like `params`."""
        return self.checkpoints.restore(step, abstract(params)).params

    def explain_non_finite(self, error: NonFiniteLossError, state: TrainState, history: History) -> NonFiniteLossError:
        """Saves the state before the failed step, which the step left untouched, and names the step's examples."""
        done = error.step - 1
        self.save(state, done, history, None)
        # Whoever raises ends the others, and process 0 may still be at it.
        together("saved", self.checkpoints.wait)
        ids = [example["id"] for example in self.plan.split.examples(self.plan.indices(done))]
        return NonFiniteLossError(
            error.step,
            error.values,
            f" The state after step {done} is saved in {self.folder / 'checkpoints'}. Examples: {', '.join(ids)}.",
        )


def start(config: TrainConfig, folder: pathlib.Path, operative_config: str = "") -> Run:
    """Builds a new run, or one that goes on from the newest checkpoint in its folder.

    Args:
      config: the run.
      folder: of `reserved_folder`.
      operative_config: the gin configuration it came from, saved beside it; may be empty.

    Raises:
      ValueError, OSError: whatever is wrong, in a sentence.
    """
    mesh = make_mesh(config.mesh)
    device = mesh.local_devices[0]
    check_platform(config.model, device)
    _check_evaluation_batch(config, mesh)
    vocabulary = config.data.vocabulary
    store = TokenStore.open(ensure_store_on_hosts(config.store_request(), config.store_root))
    _check_vocabulary(config, store)
    _check_tasks(config, store)
    plan = BatchPlan(
        store.split("train"),
        batch_size=config.batch_size,
        steps=config.steps,
        seed=config.seed,
        fraction=config.fraction,
        fraction_seed=config.fraction_seed,
        rationale_policy=config.rationale_policy,
        row_multiple=row_multiple(mesh),
        microbatches=config.microbatches,
        row_lengths=config.pack_lengths,
    )
    check_platform(config.model, device, plan.shape[1:])
    meta = store.meta
    data_report = {
        "store": meta.key,
        "splits": dict(meta.splits),
        "rows": dict(meta.counts),
        "teacher": {split: score._asdict() for split, score in meta.teacher.items()},
        "training": plan.report,
    }
    logger.info("Data: %s", json.dumps(data_report))

    max_length = _decode_length(config, store)
    evaluators = {
        name: Evaluator(
            model=T5(config.model),
            split=store.split(name),
            method=config.method,
            metric=store.meta.metric,
            vocabulary=vocabulary,
            mesh=mesh,
            batch_size=config.eval_batch_size,
            max_length=max_length,
        )
        for name in ("validation", "test")
        if name in store.meta.splits
    }
    if missing := {"validation", "test"} - evaluators.keys():
        logger.info("%s has no split %s: not evaluated on it.", store.meta.name, " and no ".join(sorted(missing)))
    checkpoints = Checkpoints(folder / "checkpoints")
    program = training_program(
        config.model,
        config.optimizer,
        config.steps,
        tuple(task.weight for task in config.method.tasks),
        mesh,
        LossConfig(config.z_loss, config.label_smoothing),
        config.microbatches,
        config.rules(),
    )
    state, history, continued_from = _state(config, program, mesh, checkpoints)
    if continued_from and is_first():
        leave_sweep(folder)
    if operative_config and is_first():
        (folder / "config.gin").write_text(operative_config)
    return Run(
        config=config,
        folder=folder,
        store=store,
        plan=plan,
        mesh=mesh,
        state=state,
        history=history,
        continued_from=continued_from,
        train_step=program.step,
        evaluators=evaluators,
        checkpoints=checkpoints,
        telemetry=Telemetry(
            folder if is_first() else None,
            int(state.step),
            config.steps,
            config.log_period,
            store.meta.tasks,
            config.progress,
        ),
        decode_length=max_length,
        data_report=data_report,
    )


def _optimizer_item(state: TrainState) -> dict[str, Any]:
    return {"opt_state": state.opt_state, "rng": state.rng, "step": state.step}


def _state(
    config: TrainConfig, program: TrainingProgram, mesh: Mesh, checkpoints: Checkpoints
) -> tuple[TrainState, History, list[int]]:
    """A new state, or that of the newest checkpoint; with what `Run` says of the steps before it."""
    model, optimizer = program.model, program.optimizer
    # Process 0 alone removes what a killed run left: what the others see of the folder may be older.
    newest = from_first("newest", lambda: max(checkpoints.steps, default=None))
    if newest is None:
        params = None
        if config.initial_weights is not None:
            shardings = param_shardings(abstract_params(model), mesh, config.rules())
            params = initial_weights(config.initial_weights, config.model, shardings)
        return create_state(model, optimizer, config.seed, mesh, config.rules(), params), [], []
    record = checkpoints.record(newest)
    check_same(config, record["config"], config.model_dir)
    if record["vocabulary"] != config.data.vocabulary.fingerprint:
        raise ValueError(f"{config.model_dir} was trained with another vocabulary: choose another model_dir.")
    wanted = abstract_state(model, optimizer, mesh, config.rules())
    restored = checkpoints.restore(newest, wanted.params, _optimizer_item(wanted))
    logger.info("Going on after step %d.", newest)
    continued_from = record.get("continued_from", [])
    if (steps := record["config"]["steps"]) != config.steps:
        continued_from = [*continued_from, steps]
        logger.info("From here on the learning rate is that of a run of %d steps; it was of %d.", config.steps, steps)
    history = [(int(step), float(accuracy)) for step, accuracy in record["history"]]
    state = TrainState(params=restored.params, healthy=jnp.bool_(True), **restored.optimizer)
    return state, history, continued_from


def _check_evaluation_batch(config: TrainConfig, mesh: Mesh) -> None:
    multiple = row_multiple(mesh)
    if config.eval_batch_size % multiple:
        raise ValueError(
            f"eval_batch_size is {config.eval_batch_size}, which the {multiple} shards of rows "
            f"(data={mesh.shape['data']} x fsdp={mesh.shape['fsdp']}) cannot divide: choose a multiple of {multiple}."
        )


def _check_vocabulary(config: TrainConfig, store: TokenStore) -> None:
    if store.meta.vocabulary_size > config.model.vocab_size:
        raise ValueError(
            f"The vocabulary {config.data.vocabulary.path} has {store.meta.vocabulary_size} ids, the model's embedding "
            f"{config.model.vocab_size} rows: set T5Config.vocab_size, or name the model's own vocabulary."
        )


def _check_tasks(config: TrainConfig, store: TokenStore) -> None:
    """A foreign SeqIO task brings its own texts: only a method that adds nothing to them says what is trained."""
    method = config.method
    as_it_is = len(method.tasks) == 1 and not method.tasks[0].prefix and method.answer_marker is None
    if store.meta.streams and not (as_it_is and method.tasks[0].input == "{input}"):
        raise ValueError(
            f"{store.meta.name} is a SeqIO task with texts of its own, to which the method {method.name!r} would add: "
            "give --gin_file methods/standard."
        )


def _decode_length(config: TrainConfig, store: TokenStore) -> int:
    """Room for twice the longest label target seen in training: a wrong answer may be longer than any right one."""
    if config.max_decode_length is not None:
        return config.max_decode_length
    longest = int(np.max(store.split("train").lengths(store.meta.tasks[0], "targets")))
    # Multiples of 8, so that runs on fractions of one dataset share a compilation.
    return min(-(-2 * longest // 8) * 8, config.data.feature_lengths[1])
