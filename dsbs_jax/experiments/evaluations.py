"""Finished cells evaluated again, without training: another split, metric, dataset or step.

What was asked of a cell and what came of it lie in its folder, as everything about a cell does.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Sequence

import dsbs_jax
from dsbs_jax.data.prepare import StoreRequest
from dsbs_jax.experiments.results import EVALUATIONS, EvaluationRow, Row, read_evaluation
from dsbs_jax.experiments.sweep import Build, Cell, described
from dsbs_jax.files import appearing, write_whole
from dsbs_jax.metrics.accuracy import check_metric
from dsbs_jax.training.student import evaluation_store, load_student

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Question:
    """What finished cells are asked.

    Attributes:
      split: of the dataset.
      on: gin file of another dataset; None for the one that a cell was trained on.
      metric: a key of `metrics.accuracy.METRICS`; None takes the dataset's own.
      step: `best` on validation, `last`, or the number of a step that has a checkpoint.
    """

    split: str
    on: str | None = None
    metric: str | None = None
    step: str = "best"

    def __post_init__(self) -> None:
        if self.metric is not None:
            check_metric(self.metric)
        if self.step not in ("best", "last") and not self.step.isdecimal():
            raise ValueError(f"--step is {self.step!r}; it must be best, last, or the number of a step.")


@dataclasses.dataclass(frozen=True)
class Answers:
    """What came of a question.

    Attributes:
      found: a row a cell that answers, and its evaluation.
      failed: a row a cell that does not, and why.
      unfinished: how many cells have no student yet.
      new: how many were evaluated now; the others had been before.
    """

    found: list[tuple[Row, EvaluationRow]]
    failed: list[tuple[Row, str]]
    unfinished: int
    new: int

    def text(self) -> str:
        """As a table, with what is missing from it below."""
        lines = ["accuracy  rows  step  cell"]
        lines += [f"{e.accuracy:8.3f} {e.rows:5d} {e.step:5d}  {described(row)}" for row, e in self.found]
        lines += [f"Failed: {described(row)}: {reason}" for row, reason in self.failed]
        before, left = len(self.found) - self.new, f", {self.unfinished} cells are not finished" * bool(self.unfinished)
        return "\n".join([*lines, f"{self.new} evaluated, {before} had been before, {len(self.failed)} failed{left}."])


def evaluate(cells: Sequence[Cell], build: Build, question: Question) -> Answers:
    """Asks every finished cell, one after another; who was asked the same before is not asked again.

    The same is: the same split of a token store of the same content, metric and step. A cell's answers lie in
    `runs/ID/evaluations/`, as `DATASET-SPLIT-METRIC-STEP.json` and the predictions beside it.
    """
    found, failed, unfinished, new = [], [], 0, 0
    for cell in cells:
        row = cell.row()
        if row.status != "finished":
            unfinished += 1
            continue
        try:
            evaluation, is_new = _answer(cell, row, build, question)
        except Exception as error:
            # One cell's end is not the others'.
            failed.append((row, " ".join(str(error).split()) or type(error).__name__))
            logger.info("%s: %s", described(row), failed[-1][1])
            continue
        found.append((row, evaluation))
        new += is_new
    return Answers(found, failed, unfinished, new)


def _answer(cell: Cell, row: Row, build: Build, question: Question) -> tuple[EvaluationRow, bool]:
    """The cell's evaluation, and whether it was made now."""
    config = dataclasses.replace(cell.config, data=_data(cell, build, question))
    store = evaluation_store(config, cell.config.data.name)
    store.split(question.split)
    metric = question.metric or store.meta.metric
    step = {"best": row.selected_step, "last": row.steps}.get(question.step) or int(question.step)
    name = f"{config.data.name}-{question.split}-{metric}-{step}"
    path = cell.folder / EVALUATIONS / f"{name}.json"
    if path.exists() and json.loads(path.read_text())["store"] == store.meta.key:
        return read_evaluation(path), False
    student = load_student(config, str(step))
    evaluation = student.evaluate(question.split, metric)
    path.parent.mkdir(exist_ok=True)
    with appearing(path.with_suffix(".jsonl")) as temporary:
        evaluation.write(temporary)
    told = {
        "cell": cell.id,
        "dataset": config.data.name,
        "split": question.split,
        "metric": metric,
        "step": step,
        "accuracy": evaluation.accuracy,
        "rows": len(evaluation.rows),
        "store": store.meta.key,
        "code_version": dsbs_jax.__version__,
    }
    write_whole(path, json.dumps(told, indent=1) + "\n")
    return read_evaluation(path), True


def _data(cell: Cell, build: Build, question: Question) -> StoreRequest:
    if question.on is None:
        return cell.config.data
    return build((*cell.files, question.on), cell.bindings)[0].data
