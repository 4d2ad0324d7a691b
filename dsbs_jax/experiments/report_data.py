"""What a report is made from: rows of a sweep or of the demo, students' answers, how right the teachers are."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from dsbs_jax.experiments.results import CELL, PLAN, Row, rationale_weight, read_rows, reads_teacher
from dsbs_jax.experiments.statistics import Answers
from dsbs_jax.models.config import T5Config

_UNNAMED = "student"


class TeacherAccuracy(NamedTuple):
    """How often a teacher's label is the gold one: a share in [0, 1] of `rows` rows of `split`."""

    accuracy: float
    split: str
    rows: int


def report_rows(root: str | os.PathLike[str]) -> list[Row]:
    """The rows to report on.

    Args:
      root: the folder of a sweep, or `results.jsonl` of `dsbs demo` or its folder. Of the latter's rows everything is
        taken that they and the runs' folders beside them say.

    Raises:
      FileNotFoundError: it is neither.
      ValueError: a line of `results.jsonl` is no result.
    """
    path = pathlib.Path(root)
    results = path if path.is_file() else path / "results.jsonl"
    if (path / PLAN).is_file() or any(path.glob(f"runs/*/{CELL}")):
        return read_rows(path)
    if not results.is_file():
        raise FileNotFoundError(f"There is nothing to report in {root}: give a sweep's folder, or a results.jsonl.")
    found = [(path.parent, json.loads(path.read_text())) for path in sorted(results.parent.glob("*/summary.json"))]
    rows = []
    for number, line in enumerate(results.read_text().splitlines(), start=1):
        try:
            result = json.loads(line)
            folder, summary = next((one for one in found if one[1].get("result") == result), (None, {}))
            rows.append(_demo_row(results, result, folder, summary))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{results}, line {number}: this is no result of a run ({error!r}).") from None
    return rows


def _demo_row(results: pathlib.Path, result: dict[str, Any], folder: pathlib.Path | None, summary: dict) -> Row:
    config, made = summary.get("config", {}), summary.get("made", {})
    size = parameters(config)
    return Row(
        sweep=results.parent.resolve().name,
        cell=folder.name if folder else "",
        status="finished",
        teacher=config["data"]["teacher"] if config and reads_teacher(config) else None,
        model=f"T5, {size:,} parameters" if size else _UNNAMED,
        rationale_weight=rationale_weight(config) if config else None,
        wrong_rationales=0.0,
        missing_rationales=0.0,
        variant="",
        num_train_examples=summary.get("data", {}).get("training", {}).get("rows_used"),
        tokens=None,
        device=made.get("device"),
        num_devices=made.get("num_devices"),
        code_version=made.get("code_version"),
        teacher_accuracy=summary.get("data", {}).get("teacher", {}),
        error=None,
        config=config,
        folder=str(folder or ""),
        **result,
    )


def parameters(config: dict[str, Any]) -> int | None:
    """How many parameters the student of a run's configuration has; None where the configuration is not there."""
    return T5Config(**config["model"]).num_parameters() if "model" in config else None


def read_predictions(row: Row) -> list[dict[str, Any]] | None:
    """The answers of a run's selected step to the test split, in its order; None where there is no file.

    Raises:
      ValueError: a line is no answer; names it.
    """
    path = pathlib.Path(row.folder, "predictions_test.jsonl")
    if not row.folder or not path.is_file():
        return None
    answers = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            answer = json.loads(line)
            answer["id"], bool(answer["correct"])
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{path}, line {number}: this is no student's answer; evaluate the run again.") from None
        answers.append(answer)
    return answers


def read_answers(row: Row) -> Answers | None:
    """As `read_predictions`: only which were right."""
    answers = read_predictions(row)
    if not answers:
        return None
    return Answers(tuple(a["id"] for a in answers), np.array([a["correct"] for a in answers], bool))


def read_data(row: Row) -> dict[str, dict[str, Any]] | None:
    """How many examples each split of a finished run's data has (`splits`), and what was noted of its rows (`rows`).

    The former is split -> count, the latter split -> reason -> count. None where the run's summary does not say.
    """
    path = pathlib.Path(row.folder, "summary.json")
    if not row.folder or row.status != "finished" or not path.is_file():
        return None
    told = json.loads(path.read_text()).get("data", {})
    return told if "splits" in told else None


def shown(told: Mapping[str, TeacherAccuracy]) -> TeacherAccuracy | None:
    """What a report says of a teacher: that of the test split, or else of the training rows."""
    return told.get("test") or told.get("train")


def teacher_accuracies(rows: Iterable[Row]) -> dict[str, dict[str, TeacherAccuracy]]:
    """How often the teachers that runs of one dataset learn from are right, by teacher and split.

    What the first finished run of a teacher says.
    """
    found: dict[str, dict[str, TeacherAccuracy]] = {}
    for row in rows:
        if row.teacher and row.teacher_accuracy and row.teacher not in found:
            found[row.teacher] = told_accuracy(row)
    return found


def told_accuracy(row: Row) -> dict[str, TeacherAccuracy]:
    """What a run says of its teacher, by split, whether or not it learns from it; empty before it is finished."""
    return {
        split: TeacherAccuracy(told["right"] / told["rows"], split, told["rows"])
        for split, told in row.teacher_accuracy.items()
    }
