"""The training job, top to bottom: step, evaluate, save, stop, report.

Everything a run needs is built and checked by `run.start` before the first step; what happens between steps is here.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from typing import Any

import dsbs_jax
from dsbs_jax.data.folders import SUMMARY
from dsbs_jax.files import write_whole
from dsbs_jax.inference.evaluation import Evaluation
from dsbs_jax.sharding.agreement import from_first
from dsbs_jax.sharding.distributed import shared_fate
from dsbs_jax.training import run as runs
from dsbs_jax.training.checkpoints import best_of
from dsbs_jax.training.config import TrainConfig
from dsbs_jax.training.folder import check_agreement, finished_result, reserved_folder
from dsbs_jax.training.preemption import Preempted, PreemptionSignal
from dsbs_jax.training.telemetry import NonFiniteLossError

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Result:
    """One finished run, as one line of a results file. Accuracies are shares in [0, 1]; None without such a split.

    `test_accuracy` is at `selected_step`, the best on validation; `test_accuracy_last` at `steps`, the last step run.
    `seconds` is the wall time of this process, compilation and evaluations included.
    """

    dataset: str
    method: str
    label_source: str
    fraction: float
    seed: int
    validation_accuracy: float | None
    test_accuracy: float | None
    test_accuracy_last: float | None
    selected_step: int
    steps: int
    seconds: float


def train(config: TrainConfig, operative_config: str = "") -> Result:
    """Trains one student, or goes on where a killed run stopped, and evaluates it.

    The run's folder gets `metrics.jsonl`, `tensorboard/`, `checkpoints/`, `predictions_{validation,test}.jsonl` (of the
    selected step), and `summary.json`. A finished run is not run again: its summary is returned. With more steps than
    before, a run goes on from its last checkpoint, finished or not, with the learning rates of the new number. In a run
    of several processes, process 0 writes all but the checkpoints, and all return the same result.

    Args:
      config: the run.
      operative_config: the gin configuration it came from, saved as `config.gin`; empty for library users.

    Raises:
      ValueError, OSError: anything wrong with configuration, data or folders, before the first step.
      NonFiniteLossError: the loss stopped being a number; names step and examples.
      Preempted: SIGTERM arrived; the state is saved.
    """
    started = time.perf_counter()
    with shared_fate():
        check_agreement(config)
        if finished := finished_result(config):
            logger.info("%s is finished: its result stands in summary.json.", config.model_dir)
            return Result(**finished)
        with reserved_folder(config.model_dir) as folder:
            return _train(runs.start(config, folder, operative_config), started)


def _train(run: runs.Run, started: float) -> Result:
    config = run.config
    state, history = run.state, run.history
    with run.checkpoints, run.telemetry as telemetry, PreemptionSignal() as signal, shared_fate():
        step = int(state.step)
        # By step: the latest one, which is very often that of the selected step. Its answers are wanted at the end.
        known: dict[int, Evaluation | None] = {}
        # A run killed between its last evaluation and its summary has no step left to do.
        for step, batch, stats in () if _should_stop(config, history) else run.batches():
            state, metrics = run.train_step(state, batch)
            try:
                telemetry.train_step(step, metrics, stats)
                if step % config.eval_period == 0 or step == config.steps:
                    telemetry.flush()
                    validation = run.evaluate("validation", state.params)
                    known = {step: validation}
                    if validation is not None:
                        telemetry.event(step, {"validation/accuracy": validation.accuracy})
                        history.append((step, validation.accuracy))
                    run.save(state, step, history, None if validation is None else validation.accuracy)
                    if _should_stop(config, history):
                        logger.info("No better validation accuracy for %d evaluations: stopping.", config.early_stop)
                        break
                elif config.checkpoint_period and step % config.checkpoint_period == 0:
                    telemetry.flush()
                    run.save(state, step, history, None)
                if signal.stops_after(step):
                    telemetry.flush()
                    run.save(state, step, history, None)
                    raise Preempted(step, config.model_dir)
            except NonFiniteLossError as error:
                raise run.explain_non_finite(error, state, history) from error
        last = run.evaluate("test", state.params)
        return _finish(run, state.params, step, history, last, known, started)


def _should_stop(config: TrainConfig, history: list[tuple[int, float]]) -> bool:
    best = best_of(history)
    if not config.early_stop or best is None:
        return False
    return sum(step > best[0] for step, _ in history) >= config.early_stop


def _finish(
    run: runs.Run,
    params: Any,
    step: int,
    history: list[tuple[int, float]],
    last: Evaluation | None,
    known: dict[int, Evaluation | None],
    started: float,
) -> Result:
    """Evaluates the selected step, writes predictions and summary.

    `last` is the last step's evaluation on test, `known` are those on validation that are at hand, by step.
    """
    selected_step, validation_accuracy = best_of(history) or (step, None)
    if selected_step != step:
        params = run.restore_params(selected_step, params)
    test = last if selected_step == step else run.evaluate("test", params)
    validation = known[selected_step] if selected_step in known else run.evaluate("validation", params)
    evaluations = {"validation": validation, "test": test}
    config = run.config
    result = Result(
        dataset=run.store.meta.name,
        method=config.method.name,
        label_source=config.method.label_source,
        fraction=config.fraction,
        seed=config.seed,
        validation_accuracy=validation_accuracy,
        test_accuracy=None if test is None else test.accuracy,
        test_accuracy_last=None if last is None else last.accuracy,
        selected_step=selected_step,
        steps=step,
        seconds=round(time.perf_counter() - started, 3),
    )
    # One result for all processes, once it is written: their clocks differ.
    return Result(**from_first("result", lambda: _write(run, result, evaluations)))


def _write(run: runs.Run, result: Result, evaluations: dict[str, Evaluation | None]) -> dict[str, Any]:
    """Predictions and summary, in the run's folder; returns the result."""
    for split, evaluation in evaluations.items():
        if evaluation is not None:
            evaluation.write(run.folder / f"predictions_{split}.jsonl")
    made = {
        "device": run.mesh.devices.flat[0].device_kind,
        "num_devices": run.mesh.size,
        "code_version": dsbs_jax.__version__,
    }
    summary = {
        "result": dataclasses.asdict(result),
        "data": run.data_report,
        "config": run.config.to_json(),
        "continued_from": run.continued_from,
        "made": made,
    }
    write_whole(run.folder / SUMMARY, json.dumps(summary, indent=1) + "\n")
    return dataclasses.asdict(result)
