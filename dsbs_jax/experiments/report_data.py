"""What a report is made from: rows of a sweep, students' answers, how right the teachers are."""

from __future__ import annotations

import collections
import json
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from dsbs_jax.data.folders import CELL, SUMMARY
from dsbs_jax.experiments.results import PLAN, Row, difference, planned_cells, read_rows
from dsbs_jax.experiments.statistics import Answers
from dsbs_jax.experiments.students import point
from dsbs_jax.models.config import T5Config


class TeacherAccuracy(NamedTuple):
    """How often a teacher's label is the gold one: a share in [0, 1] of `rows` rows of `split`."""

    accuracy: float
    split: str
    rows: int


def report_rows(root: str | os.PathLike[str]) -> tuple[list[Row], list[str]]:
    """The rows of the sweeps in a folder, and in sentences what was left out of them.

    Of runs that a report could not tell apart (another number of steps, another batch size), those of the sweep that
    was last started in the folder stay.

    Raises:
      FileNotFoundError: there is no sweep.
      ValueError: none of such runs belongs to that sweep; names them and what differs.
    """
    path = pathlib.Path(root)
    if not (path / PLAN).is_file() and not any(path.glob(f"runs/*/{CELL}")):
        raise FileNotFoundError(f"There is nothing to report in {root}: give a sweep's folder.")
    planned = planned_cells(path)
    alike: dict[tuple[object, ...], list[Row]] = {}
    for row in read_rows(path):
        alike.setdefault(point(row), []).append(row)
    kept, left_out = [], []
    for rows in alike.values():
        own = [row for row in rows if row.cell in planned] if len(rows) > 1 else rows
        if len(own) != 1:
            raise ValueError(
                f"{rows[0].folder} and {rows[1].folder} differ only in what a report does not tell apart: "
                f"{difference(rows[0], rows[1])}. Move one of them away, or give each sweep an --output of its own."
            )
        kept += own
        left_out += [difference(row, own[0]) for row in rows if row is not own[0]]
    counted = collections.Counter(left_out)
    return kept, [
        f"{count} run{'s' * (count > 1)} of another configuration left out ({what})." for what, count in counted.items()
    ]


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
    path = pathlib.Path(row.folder, SUMMARY)
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
