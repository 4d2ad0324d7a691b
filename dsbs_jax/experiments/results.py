"""One row a run: read from the runs' own folders, kept in SQLite for questions, written as CSV.

The folders are the truth. The database is made anew from them, whole and by one process, whenever somebody asks:
workers on many hosts write nothing but the files of their own runs, since SQLite's locks cannot be relied on over a
network file system. SQLite, because Python brings it and a sweep has thousands of rows, not millions.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import json
import os
import pathlib
import sqlite3
from collections.abc import Sequence
from typing import Any, Literal

from dsbs_jax.data.folders import CELL, SUMMARY, held
from dsbs_jax.files import appearing
from dsbs_jax.training.config import MAY_CHANGE, as_read, changed_fields, reads_rationales, reads_teacher

Status = Literal["finished", "failed", "running", "waiting"]

# In a run's folder, beside what training writes and `CELL`: why it failed. The lock is its worker's.
ERROR, CLAIM = "error.json", ".claim"
# Folder of what a finished run was asked afterwards.
EVALUATIONS = "evaluations"
# In a sweep's folder: the cells that `--run` was last started for, so that those that wait are known, too.
PLAN = "sweep.json"


@dataclasses.dataclass(frozen=True)
class Row:
    """One cell of a sweep and what came of it. Accuracies are shares in [0, 1]; None where there is none (yet).

    Attributes:
      sweep: the sweep's name.
      cell: its id, the name of its folder.
      status: `finished`, `failed`, `running` or `waiting`.
      dataset: e.g. `cqa`.
      method: e.g. `step_by_step`.
      label_source: `gold` or `teacher`.
      teacher: whose rationales or labels the method learns from; None where it reads neither.
      fraction: share of the training examples.
      model: name of the size, e.g. `t5_1_1_base`.
      rationale_weight: lambda; None where the method has no task for rationales.
      wrong_rationales: share of the rationales that was exchanged for another row's on purpose.
      missing_rationales: share that was removed on purpose.
      variant: name of what else the run was told, e.g. `gold_filtered`; empty for nothing.
      seed: of initial weights, dropout and order.
      num_train_examples: how many examples the fraction holds.
      validation_accuracy: at `selected_step`.
      test_accuracy: at `selected_step`, the best on validation.
      test_accuracy_last: at `steps`.
      selected_step: in steps.
      steps: that were done.
      seconds: wall time of the process that finished it.
      tokens: trained on, inputs and targets without padding, from the utilisation that the run reports (4 digits).
      device: the devices' kind.
      num_devices: how many.
      code_version: of this package.
      teacher_accuracy: split -> `rows` with a gold label that the teacher answered, and how many it got `right`.
      error: why it failed, in a sentence.
      config: `TrainConfig.to_json`.
      folder: with `predictions_{validation,test}.jsonl`: a line a row, in the split's order.
    """

    sweep: str
    cell: str
    status: Status
    dataset: str
    method: str
    label_source: str
    teacher: str | None
    fraction: float
    model: str
    rationale_weight: float | None
    wrong_rationales: float
    missing_rationales: float
    variant: str
    seed: int
    num_train_examples: int | None
    validation_accuracy: float | None
    test_accuracy: float | None
    test_accuracy_last: float | None
    selected_step: int | None
    steps: int | None
    seconds: float | None
    tokens: int | None
    device: str | None
    num_devices: int | None
    code_version: str | None
    teacher_accuracy: dict[str, dict[str, int]]
    error: str | None
    config: dict[str, Any]
    folder: str


@dataclasses.dataclass(frozen=True)
class EvaluationRow:
    """A finished cell evaluated again.

    Attributes:
      cell: its id.
      dataset: that it was evaluated on.
      split: of that dataset.
      metric: `exact` or `equation`.
      step: whose weights.
      accuracy: share of the rows answered correctly.
      rows: how many.
      predictions: file with a line a row, in the split's order.
    """

    cell: str
    dataset: str
    split: str
    metric: str
    step: int
    accuracy: float
    rows: int
    predictions: str


def read_evaluation(path: pathlib.Path) -> EvaluationRow:
    """The row of one file in a cell's folder `evaluations`."""
    told = json.loads(path.read_text())
    names = {field.name for field in dataclasses.fields(EvaluationRow)} - {"predictions"}
    return EvaluationRow(**{name: told[name] for name in names}, predictions=str(path.with_suffix(".jsonl")))


def read_rows(root: str | os.PathLike[str]) -> list[Row]:
    """The rows of a sweep's folder, ordered by what they compare.

    Raises:
      FileNotFoundError: there is no sweep in `root`.
    """
    root = pathlib.Path(root)
    records = [json.loads(path.read_text()) for path in root.glob(f"runs/*/{CELL}")]
    planned = [*records, *_json(root / PLAN).get("cells", ())]
    if not planned:
        raise FileNotFoundError(f"There are no runs of a sweep in {root}: give the folder of `dsbs sweep FILE --run`.")
    rows = [read_row(record, root / "runs" / cell) for cell, record in {one["cell"]: one for one in planned}.items()]
    return sorted(
        rows,
        key=lambda row: (
            *(row.dataset, row.model, row.label_source, row.teacher or "", row.fraction),
            *(row.method, row.variant, row.rationale_weight or 0.0, row.wrong_rationales, row.missing_rationales),
            *(row.seed, row.cell),
        ),
    )


def and_others(rows: Sequence[Row], root: str | os.PathLike[str]) -> list[Row]:
    """`rows`, and behind them those of other recipes' runs in the same folder."""
    known = {row.cell for row in rows}
    begun = [path for path in pathlib.Path(root).glob(f"runs/*/{CELL}") if path.parent.name not in known]
    return [*rows, *(read_row(json.loads(path.read_text()), path.parent) for path in sorted(begun))]


def is_search(root: str | os.PathLike[str]) -> bool:
    """Whether `--run` was last started for a search in this folder, which needs only some of its cells."""
    return bool(_json(pathlib.Path(root) / PLAN).get("search"))


def planned_cells(root: str | os.PathLike[str]) -> frozenset[str]:
    """Ids of the cells that `--run` was last started for in this folder."""
    return frozenset(record["cell"] for record in _json(pathlib.Path(root) / PLAN).get("cells", ()))


def planned_row(record: dict[str, Any], folder: pathlib.Path) -> Row:
    """The row of a cell of which nothing is known but what it compares: its folder is not looked at.

    Args:
      record: what stands in the cell's `cell.json`: `sweep`, `cell`, `model`, `variant` and `config`.
      folder: the cell's; it need not exist.
    """
    config = record["config"]
    noise = config["data"]["rationale_noise"] if reads_rationales(config) else {"wrong": 0.0, "missing": 0.0}
    return Row(
        sweep=record["sweep"],
        cell=record["cell"],
        status="waiting",
        dataset=config["data"]["name"],
        method=config["method"]["name"],
        label_source=config["method"]["label_source"],
        teacher=config["data"]["teacher"] if reads_teacher(config) else None,
        fraction=config["fraction"],
        model=record["model"],
        rationale_weight=rationale_weight(config),
        wrong_rationales=noise["wrong"],
        missing_rationales=noise["missing"],
        variant=record["variant"],
        seed=config["seed"],
        num_train_examples=None,
        validation_accuracy=None,
        test_accuracy=None,
        test_accuracy_last=None,
        selected_step=None,
        steps=None,
        seconds=None,
        tokens=None,
        device=None,
        num_devices=None,
        code_version=None,
        teacher_accuracy={},
        error=None,
        config=config,
        folder=str(folder),
    )


def read_row(record: dict[str, Any], folder: pathlib.Path) -> Row:
    """As `planned_row`, with what the cell's folder says."""
    summary, error = _json(folder / SUMMARY), _json(folder / ERROR)
    status: Status = "finished" if summary else "failed" if error else "running" if is_held(folder) else "waiting"
    if status in ("running", "waiting"):
        # A worker may have ended between the two looks.
        summary, error = _json(folder / SUMMARY), _json(folder / ERROR)
        status = "finished" if summary else "failed" if error else status
    row = planned_row(record, folder)
    result, data, made = summary.get("result", {}), summary.get("data", {}).get("training", {}), summary.get("made", {})
    return dataclasses.replace(
        row,
        status=status,
        num_train_examples=data.get("rows_used"),
        validation_accuracy=result.get("validation_accuracy"),
        test_accuracy=result.get("test_accuracy"),
        test_accuracy_last=result.get("test_accuracy_last"),
        selected_step=result.get("selected_step"),
        steps=result.get("steps"),
        seconds=result.get("seconds"),
        tokens=_tokens(data, result["steps"]) if result else None,
        device=made.get("device"),
        num_devices=made.get("num_devices"),
        code_version=made.get("code_version"),
        teacher_accuracy=summary["data"].get("teacher", {}) if _same_teacher(summary, row.config) else {},
        error=error.get("error") if status == "failed" else None,
    )


def _same_teacher(summary: dict[str, Any], config: dict[str, Any]) -> bool:
    """Whether what a run says of its teacher holds for the cell: one that reads none is the same with any."""
    ran = summary.get("config", {}).get("data", config["data"])
    return "data" in summary and ran["teacher"] == config["data"]["teacher"]


def difference(one: Row, other: Row) -> str:
    """The fields in which two runs' configurations differ."""
    return "; ".join(changed_fields(as_read(one.config), as_read(other.config), MAY_CHANGE, ("there", "here")))


def rationale_weight(config: dict[str, Any]) -> float | None:
    """lambda of a run's configuration; None where its method has no task for rationales."""
    weights = [task["weight"] for task in config["method"]["tasks"] if task["name"] == "rationale"]
    return weights[0] if weights else None


def is_held(folder: pathlib.Path) -> bool:
    """Whether a worker is at the cell of this folder."""
    if not (folder / CLAIM).exists():
        return False
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(held(folder / CLAIM))
        except BlockingIOError:
            return True
        return False


def write_database(rows: Sequence[Row], path: str | os.PathLike[str]) -> None:
    """Makes the SQLite file at `path` anew: the table `runs` with a column a field of `Row`, dictionaries as JSON, and
    `evaluations` with what the runs' folders hold, a column a field of `EvaluationRow`.

    It appears whole: who reads the old one meanwhile goes on reading it.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    files = [file for row in rows for file in sorted(pathlib.Path(row.folder, EVALUATIONS).glob("*.json"))]
    tables = (
        ("runs", Row, map(_values, rows)),
        ("evaluations", EvaluationRow, (dataclasses.astuple(read_evaluation(file)) for file in files)),
    )
    with appearing(path) as temporary, contextlib.closing(sqlite3.connect(temporary)) as connection, connection:
        for name, kind, values in tables:
            names = [field.name for field in dataclasses.fields(kind)]
            connection.execute(f"CREATE TABLE {name} ({', '.join(names)})")
            connection.executemany(f"INSERT INTO {name} VALUES ({', '.join('?' * len(names))})", values)


def query(path: str | os.PathLike[str], sql: str) -> tuple[list[str], list[tuple[Any, ...]]]:
    """The column names and rows that `sql` selects from a database of `write_database`, which it cannot change.

    Raises:
      ValueError: SQLite refuses the query, with its reason.
    """
    address = f"{pathlib.Path(path).absolute().as_uri()}?mode=ro"
    with contextlib.closing(sqlite3.connect(address, uri=True)) as connection:
        try:
            cursor = connection.execute(sql)
            found = cursor.fetchall()
        except (sqlite3.Error, sqlite3.Warning) as error:
            raise ValueError(f"SQLite refuses {sql!r}: {error}. The tables are `runs` and `evaluations`.") from None
        return [column[0] for column in cursor.description or ()], found


def to_csv(rows: Sequence[Row]) -> str:
    """The rows as CSV with a line of names, dictionaries as JSON."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(field.name for field in dataclasses.fields(Row))
    writer.writerows(map(_values, rows))
    return text.getvalue()


def _values(row: Row) -> tuple[Any, ...]:
    values = {field.name: getattr(row, field.name) for field in dataclasses.fields(Row)}
    as_json = {name: json.dumps(values[name], sort_keys=True) for name in ("config", "teacher_accuracy")}
    return tuple((values | as_json).values())


def _json(path: pathlib.Path) -> dict[str, Any]:
    """What stands in the file; empty where there is none."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return {}


def _tokens(data: dict[str, Any], steps: int) -> int | None:
    if "row_lengths" not in data:
        return None
    encoder, decoder = data["row_lengths"]
    used = encoder * data["encoder_utilisation"] + decoder * data["decoder_utilisation"]
    return round(steps * data["rows_per_step"] * used)
