"""A sweep: the product of its axes, one training run a cell, each named by the content of its configuration.

Workers share nothing but the sweep's folder, `ROOT/runs/ID` for each cell. A cell is finished where its summary stands,
failed where its error does, and running while its worker holds the lock in it, which ends with the worker, however that
ends. Whoever finds a cell that is none of these takes it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import logging
import math
import pathlib
import statistics
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from dsbs_jax.data.folders import CELL, SUMMARY, held
from dsbs_jax.data.prepare import ensure_store
from dsbs_jax.data.store import TokenStore
from dsbs_jax.experiments.results import CLAIM, ERROR, PLAN, Row, difference, planned_row, read_row
from dsbs_jax.experiments.students import point
from dsbs_jax.files import write_whole
from dsbs_jax.training import loop
from dsbs_jax.training.config import MAY_CHANGE, TrainConfig, as_read
from dsbs_jax.training.preemption import Preempted

logger = logging.getLogger(__name__)

# Makes a run of gin files and bindings: its configuration, and the text that makes the same one again.
Build = Callable[[Sequence[str], Sequence[str]], tuple[TrainConfig, str]]

# Names the cells to run next, of the rows of all.
Plan = Callable[[Sequence[Row]], Collection[str]]

# The macro that each axis of values binds; the other axes are gin files.
AXIS_MACROS = {
    "label_sources": "LABEL_SOURCE",
    "teachers": "TEACHER",
    "fractions": "FRACTION",
    "rationale_weights": "RATIONALE_WEIGHT",
    "wrong_rationales": "WRONG_RATIONALES",
    "missing_rationales": "MISSING_RATIONALES",
    "seeds": "RANDOM_SEED",
}
BEAT_TEACHER = "beat_teacher"
_MAY_BE_EMPTY = ("teachers", "rationale_weights", "wrong_rationales", "missing_rationales")
_SHARES = ("fractions", "rationale_weights", "wrong_rationales", "missing_rationales")


@dataclasses.dataclass(frozen=True)
class SweepConfig:
    """What is compared. Everything else that the sweep's gin file says holds for all cells.

    Attributes:
      name: of the sweep.
      datasets: gin files, as `datasets/cqa`.
      models: gin files; their names without folder are the sizes in tables.
      methods: gin files.
      variants: gin files with anything else that runs may differ in, as `variants/gold_filtered`; '' adds nothing.
        Their names without folder stand in tables.
      label_sources: `gold`, `teacher`.
      teachers: values of TEACHER; empty leaves it as the files set it.
      fractions: shares of the training examples, in (0, 1].
      rationale_weights: the paper's lambda; empty leaves it as the files set it.
      wrong_rationales: shares of the rationales that are exchanged for another row's, see `RationaleNoise`; likewise.
      missing_rationales: shares that are removed; likewise.
      seeds: of initial weights, dropout and order.
      search: None runs the whole product; `beat_teacher` only what it takes to find the smallest model and the least
        data that beat the teacher, see `search`.
      root: the sweep's folder; None takes `sweeps/NAME`.
    """

    name: str
    datasets: tuple[str, ...]
    models: tuple[str, ...]
    methods: tuple[str, ...] = ("methods/standard", "methods/step_by_step")
    variants: tuple[str, ...] = ("",)
    label_sources: tuple[str, ...] = ("gold",)
    teachers: tuple[str | None, ...] = ()
    fractions: tuple[float, ...] = (1.0,)
    rationale_weights: tuple[float, ...] = ()
    wrong_rationales: tuple[float, ...] = ()
    missing_rationales: tuple[float, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2, 3)
    search: str | None = None
    root: str | None = None

    def __post_init__(self) -> None:
        for name in ("datasets", "models", "methods", "variants", *AXIS_MACROS):
            values = getattr(self, name)
            if not isinstance(values, tuple | list) or len(set(values)) != len(values):
                raise ValueError(
                    f"SweepConfig.{name} is {values!r}; it must be a tuple of different values, as (a, b)."
                )
            if not values and name not in _MAY_BE_EMPTY:
                raise ValueError(f"SweepConfig.{name} is empty; it must hold at least one value.")
        if self.search not in (None, BEAT_TEACHER):
            raise ValueError(f"SweepConfig.search is {self.search!r}; it must be None or {BEAT_TEACHER!r}.")
        if self.search and len(self.teachers) > 1:
            raise ValueError(
                f"SweepConfig.teachers is {self.teachers!r}: a search has one teacher to beat; make a sweep for each."
            )

    @property
    def folder(self) -> pathlib.Path:
        """The sweep's folder."""
        return pathlib.Path(self.root or f"sweeps/{self.name}")

    def points(self) -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
        """(gin files, bindings) of every point of the product; the seeds run fastest, so that cells fill up in turn."""
        axes: list[list[tuple[str, ...]]] = []
        for name, macro in AXIS_MACROS.items():
            values = getattr(self, name)
            if name in _SHARES:
                values = [float(value) for value in values]
            axes.append([(f"{macro}={value!r}",) for value in values] or [()])
        for files in itertools.product(self.datasets, self.models, self.methods, self.variants):
            for values in itertools.product(*axes):
                yield files, tuple(itertools.chain.from_iterable(values))


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    Attributes:
      id: of the content of its configuration, see `cell_id`.
      sweep: the sweep's name.
      model: name of the size.
      variant: name of what else it was told; empty for nothing.
      files: gin files of dataset, model, method and variant, the last one '' where there is none.
      bindings: of the axes and of MODEL_DIR.
      config: the run's.
    """

    id: str
    sweep: str
    model: str
    variant: str
    files: tuple[str, ...]
    bindings: tuple[str, ...]
    config: TrainConfig

    @property
    def folder(self) -> pathlib.Path:
        """The run's folder."""
        return pathlib.Path(self.config.model_dir)

    def record(self) -> dict[str, Any]:
        """What its folder says of it before it ran."""
        config = json.loads(json.dumps(self.config.to_json()))
        named = {"sweep": self.sweep, "cell": self.id, "model": self.model, "variant": self.variant}
        return named | {"config": config}

    def row(self) -> Row:
        """What came of it so far."""
        return read_row(self.record(), self.folder)


def expand(sweep: SweepConfig, build: Build) -> list[Cell]:
    """The cells, each once.

    Points of the product that coincide are one cell, the first of them: those that differ in the weight of rationales
    or in what is done to them where the method trains on none, or in the teacher where it learns nothing from one.

    Raises:
      ValueError, OSError: a point that cannot be built, or cells that no report could tell apart, in a sentence.
    """
    cells: dict[str, Cell] = {}
    points: dict[tuple[object, ...], Row] = {}
    for files, bindings in sweep.points():
        model, variant = (pathlib.PurePath(file).name.removesuffix(".gin") for file in (files[1], files[3]))
        config, _ = build(files, [*bindings, "MODEL_DIR=''"])
        if sweep.search and config.data.teacher is None:
            raise ValueError(f"SweepConfig.search is {sweep.search!r}, and {files[0]} has no teacher: set TEACHER.")
        name = cell_id(config)
        folder = str(sweep.folder / "runs" / name)
        config = dataclasses.replace(config, model_dir=folder, progress=False)
        bindings = (*bindings, f"MODEL_DIR={folder!r}")
        cell = cells.setdefault(name, Cell(name, sweep.name, model, variant, files, bindings, config))
        if cell.model != model:
            raise ValueError(
                f"{cell.files[1]} and {files[1]} make the same students: what the sweep's file or a flag sets of the "
                "model (MODEL, T5Config) comes after them. Leave it out, or name one model alone."
            )
        row = planned_row(cell.record(), cell.folder)
        if (other := points.setdefault(point(row), row)).cell != name:
            raise ValueError(
                f"Two cells of {sweep.name} differ only in what no report tells apart ({difference(other, row)}): give "
                "the gin files of its axes other names, or make what differs a variant (SweepConfig.variants)."
            )
    return list(cells.values())


def cell_id(config: TrainConfig) -> str:
    """12 hex digits: a digest of the configuration without what a resumed run may change.

    The same in every process, on every machine, and in every sweep that holds such a cell. Folders that are part of the
    content (initial weights, labels) count as they are written.
    """
    content = _kept(as_read(json.loads(json.dumps(config.to_json()))))
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def _kept(value: Any, path: str = "") -> Any:
    if isinstance(value, dict):
        fields = {name: (f"{path}{name}", item) for name, item in value.items()}
        return {name: _kept(item, f"{at}.") for name, (at, item) in fields.items() if at not in MAY_CHANGE}
    if isinstance(value, list):
        return [_kept(item, f"{path}*.") for item in value]
    # 1 and 1.0 are one value.
    return int(value) if isinstance(value, float) and value.is_integer() else value


def work(cells: Sequence[Cell], build: Build) -> None:
    """Runs cells that nobody runs or has run, one after another in this process, until none is free.

    What fails leaves its error and is not tried again. Any number of workers may do this in one folder at once.

    Raises:
      Preempted: SIGTERM arrived; the cell's state is saved, and whoever takes it goes on from there.
    """
    # Once more after the last one: a cell whose worker was killed meanwhile is free again.
    while sum(_run_if_free(cells, index, build) for index in range(len(cells))):
        pass


def work_by_plan(cells: Sequence[Cell], build: Build, plan: Plan, pause: float = 5.0) -> None:
    """As `work`, but only what `plan` names, which is asked again after each cell, until it names none.

    Args:
      plan: the ids of the cells to run next, of the rows of all; also of those being run, which are waited for.
      pause: in seconds, before looking again where others run all that is planned.
    """
    while wanted := plan([cell.row() for cell in cells]):
        planned = (index for index, cell in enumerate(cells) if cell.id in wanted)
        if not any(_run_if_free(cells, index, build) for index in planned):
            time.sleep(pause)


def check_teachers(cells: Sequence[Cell]) -> None:
    """Makes a token store of each dataset, which tells how often its teacher is right: what a search has to beat.

    Raises:
      ValueError: that is not known of a dataset; or its store cannot be made.
    """
    for cell in {cell.config.data.name: cell for cell in cells}.values():
        data = cell.config.data
        told = TokenStore.open(ensure_store(cell.config.store_request(), cell.config.store_root)).meta.teacher
        if not told.keys() & {"validation", "test"}:
            raise ValueError(
                f"There is no accuracy to beat: of {data.name}, the teacher {data.teacher!r} answered no validation or "
                "test row with a gold label. Label one of the two: `dsbs label --split validation`."
            )


def _run_if_free(cells: Sequence[Cell], index: int, build: Build) -> bool:
    """Runs the cell unless somebody runs it or has run it; whether it did."""
    with _claimed(cells[index]) as mine:
        if mine:
            _run(cells[index], build)
            _tell(cells, cells[index])
        return mine


def teller(cells: Sequence[Cell]) -> Callable[[], None]:
    """What logs, whenever it is called, a line for each cell that has ended since."""
    waiting = [cell for cell in cells if not _is_over(cell)]

    def tell() -> None:
        for cell in [cell for cell in waiting if _is_over(cell)]:
            waiting.remove(cell)
            _tell(cells, cell)

    return tell


def _tell(cells: Sequence[Cell], ended: Cell) -> None:
    logger.info("[%d/%d] %s", sum(map(_is_over, cells)), len(cells), describe(ended.row()))


def announce(cells: Sequence[Cell], folder: pathlib.Path, search: str | None) -> None:
    """Writes down which cells are going to run, for `read_rows`, which else knows only those that have begun."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / PLAN, json.dumps({"search": search, "cells": [cell.record() for cell in cells]}))


def forget_errors(cells: Sequence[Cell]) -> int:
    """Makes failed cells free again; returns how many. They go on from their last checkpoint."""
    failed = [cell.folder / ERROR for cell in cells if cell.row().status == "failed"]
    for path in failed:
        path.unlink(missing_ok=True)
    return len(failed)


def described(row: Row) -> str:
    """What a cell compares, in a line."""
    axes = [row.cell, row.dataset, row.model, row.method, f"{row.label_source} labels", f"fraction {row.fraction:g}"]
    if row.rationale_weight is not None:
        axes.append(f"lambda {row.rationale_weight:g}")
    if row.teacher is not None:
        axes.append(f"teacher {row.teacher}")
    for share, what in ((row.wrong_rationales, "wrong"), (row.missing_rationales, "missing")):
        axes += [f"{share:g} of rationales {what}"] if share else []
    return ", ".join([*axes, *([row.variant] if row.variant else []), f"seed {row.seed}"])


def describe(row: Row) -> str:
    """A cell and its state in a line."""
    line = f"{described(row)}: {row.status}"
    if row.test_accuracy is not None:
        line += f", test accuracy {row.test_accuracy:.3f} ({row.seconds:.0f} s)"
    return f"{line}: {row.error}" if row.error else line


def status(rows: Sequence[Row], skipped: Collection[str] = ()) -> str:
    """How many cells are in which state, what failed and why, and about how long the rest takes.

    Args:
      rows: of all cells.
      skipped: ids of waiting cells that need not run.
    """
    states = [("skipped" if row.cell in skipped and row.status == "waiting" else row.status) for row in rows]
    counts = {state: states.count(state) for state in ("finished", "failed", "running", "waiting", "skipped")}
    told = [f"{count} {state}" for state, count in counts.items() if count or state != "skipped"]
    lines = [f"{len(rows)} cells: {', '.join(told)}."]
    lines += [describe(row) for row in rows if row.status == "failed"]
    seconds = [row.seconds for row in rows if row.seconds is not None]
    left = counts["running"] + counts["waiting"]
    if seconds and left:
        workers = max(counts["running"], 1)
        each = statistics.median(seconds)
        minutes = each * math.ceil(left / workers) / 60
        lines.append(
            f"About {minutes:.1f} minutes left: {left} cells, {each:.0f} s each (median of the finished), "
            f"{workers} at a time."
        )
    return "\n".join(lines)


@contextlib.contextmanager
def _claimed(cell: Cell) -> Iterator[bool]:
    """Whether the cell is this worker's while the block runs: it is free, and nobody else has taken it."""
    if _is_over(cell):
        yield False
        return
    cell.folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        if not _take(cell, stack):
            # Who asks for the cell's state (`is_held`) holds the lock for an instant.
            time.sleep(0.05)
            if not _take(cell, stack):
                yield False
                return
        # Another worker may have ended it between the first look and the lock.
        yield not _is_over(cell)


def _take(cell: Cell, stack: contextlib.ExitStack) -> bool:
    try:
        stack.enter_context(held(cell.folder / CLAIM))
    except BlockingIOError:
        return False
    return True


def _is_over(cell: Cell) -> bool:
    return (cell.folder / SUMMARY).exists() or (cell.folder / ERROR).exists()


def _run(cell: Cell, build: Build) -> None:
    write_whole(cell.folder / CELL, json.dumps(cell.record(), indent=1) + "\n")
    try:
        config, operative = build(cell.files, cell.bindings)
        loop.train(dataclasses.replace(config, progress=False), operative)
    except Preempted:
        raise
    except Exception as error:
        # One cell's end is not the sweep's.
        told = {
            "error": " ".join(str(error).split()) or type(error).__name__,
            "type": type(error).__name__,
            "traceback": traceback.format_exc(),
        }
        write_whole(cell.folder / ERROR, json.dumps(told, indent=1) + "\n")
