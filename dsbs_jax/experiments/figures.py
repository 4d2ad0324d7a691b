"""The report's figures: what is drawn, and how matplotlib draws it. The page draws the same in `report_svg.py`."""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from dsbs_jax.experiments.analysis import Cell, Panel, Student, all_students, teacher_name, titles
from dsbs_jax.experiments.published import published
from dsbs_jax.experiments.report_data import parameters
from dsbs_jax.experiments.statistics import Mean


class Point(NamedTuple):
    """One cell in a figure; `mean` and `runs` are shares in [0, 1]."""

    x: float
    mean: Mean
    runs: Mapping[int, float]


@dataclasses.dataclass(frozen=True)
class Line:
    """One student's points, from left to right; `slot` numbers its colour, marker and dashes in the whole report."""

    title: str
    slot: int
    points: tuple[Point, ...]


class Level(NamedTuple):
    """A number to compare with, a share in [0, 1]; with `x` a mark there, without it a line from side to side."""

    title: str
    y: float
    x: float | None = None


@dataclasses.dataclass(frozen=True)
class Figure:
    """Test accuracy against one thing.

    Attributes:
      name: of its files.
      dataset: what was tested on.
      title: what is held fixed.
      x_label: of the axis.
      ticks: (x, text).
      logarithmic: the x axis.
      lines: one a student.
      levels: teachers and the paper's values.
    """

    name: str
    dataset: str
    title: str
    x_label: str
    ticks: tuple[tuple[float, str], ...]
    logarithmic: bool
    lines: tuple[Line, ...]
    levels: tuple[Level, ...]


# Okabe and Ito's colours, which colour-blind readers tell apart (yellow is too faint for lines), for light pages and
# for dark ones; markers and dashes say the same without any colour. Their numbers differ, so that pairs repeat late.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#000000")
DARK_COLOURS = ("#56B4E9", "#EE7733", "#1CBF93", "#CC79A7", "#E69F00", "#FFFFFF")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ((), (7, 3), (2, 2), (8, 3, 2, 3), (12, 3))


def make_figures(panels: Sequence[Panel]) -> list[Figure]:
    """Accuracy against fraction for each panel, against lambda and size where there are several."""
    students = all_students(panels)
    slots, names = {student: slot for slot, student in enumerate(students)}, titles(students)
    figures = []
    for number, panel in enumerate(panels, start=1):
        stem, where = f"{number:02d}-{_stem(panel.dataset)}", f"{panel.dataset}, {panel.model}"
        lines = tuple(
            Line(names[student], slots[student], points)
            for student in panel.students
            if (points := _points(panel.cells, student, lambda student, fraction: 100 * fraction))
        )
        ticks = tuple((100 * fraction, f"{100 * fraction:g}") for fraction in panel.fractions)
        # Beside 100 %, and beside each other: they often differ by less than their own size.
        levels = tuple(
            Level(f"paper, T5-base: {one.title}", one.accuracy, 100 + 2.5 * place)
            for place, one in enumerate(published(panel.dataset) if 1.0 in panel.fractions else (), start=1)
        )
        label = "training data used, %"
        figures.append(
            Figure(f"{stem}-fraction", panel.dataset, where, label, ticks, False, lines, _teachers(panel) + levels)
        )
        if figure := _weights(panel, stem, where, slots):
            figures.append(figure)
    datasets = dict.fromkeys(panel.dataset for panel in panels)
    for dataset in datasets:
        alike = [panel for panel in panels if panel.dataset == dataset]
        if len(alike) > 1:
            figures.append(_sizes(alike, f"{_stem(dataset)}-size", slots, names))
    return figures


def _points(
    cells: Mapping[tuple[Student, float], Cell], student: Student, x: Callable[[Student, float], float]
) -> tuple[Point, ...]:
    return tuple(
        Point(x(student, fraction), cell.mean, cell.runs)
        for (_, fraction), cell in sorted(
            ((key, cell) for key, cell in cells.items() if key[0] == student), key=lambda item: item[0][1]
        )
        if cell.mean
    )


def _teachers(panel: Panel) -> tuple[Level, ...]:
    return tuple(
        Level(f"teacher {teacher_name(teacher)} ({told.rows:,} rows of {told.split})", told.accuracy)
        for teacher, told in panel.teachers.items()
    )


def _weights(panel: Panel, stem: str, where: str, slots: Mapping[Student, int]) -> Figure | None:
    """Accuracy against lambda at the largest fraction; the students that differ in nothing else are one line."""
    fraction = panel.fractions[-1]
    groups: dict[Student, list[Student]] = {}
    for student in panel.students:
        cell = panel.cells.get((student, fraction))
        if student.rationale_weight is not None and cell is not None and cell.mean:
            groups.setdefault(student._replace(rationale_weight=None), []).append(student)
    groups = {key: members for key, members in groups.items() if len(members) > 1}
    names, lines, xs = titles(list(groups)), [], set[float]()
    for key, members in groups.items():
        points = []
        for student in members:
            cell, weight = panel.cells[student, fraction], student.rationale_weight
            assert cell.mean is not None
            assert weight is not None
            points.append(Point(weight, cell.mean, cell.runs))
        xs.update(point.x for point in points)
        lines.append(Line(names[key], slots[members[0]], tuple(points)))
    if not lines:
        return None
    ticks = tuple((x, f"{x:g}") for x in sorted(xs))
    title, label = f"{where}, {100 * fraction:g} % of the data", "weight of the rationale loss, λ"
    return Figure(f"{stem}-lambda", panel.dataset, title, label, ticks, False, tuple(lines), _teachers(panel))


def _sizes(panels: Sequence[Panel], name: str, slots: Mapping[Student, int], names: Mapping[Student, str]) -> Figure:
    """Accuracy against the student's size at the largest fraction that all sizes have."""
    shared = set.intersection(*(set(panel.fractions) for panel in panels)) or {panels[0].fractions[-1]}
    fraction = max(shared)
    counts = [
        next((count for cell in panel.cells.values() for row in cell.rows if (count := parameters(row.config))), None)
        for panel in panels
    ]
    logarithmic = all(counts) and len(set(counts)) == len(counts)
    places = [float(count or 0) if logarithmic else float(at) for at, count in enumerate(counts)]
    lines = []
    for student in all_students(panels):
        points = []
        for place, panel in zip(places, panels, strict=True):
            cell = panel.cells.get((student, fraction))
            if cell is not None and cell.mean:
                points.append(Point(place, cell.mean, cell.runs))
        if points:
            lines.append(Line(names[student], slots[student], tuple(sorted(points))))
    ticks = tuple((place, panel.model) for place, panel in zip(places, panels, strict=True))
    title = f"{panels[0].dataset}, {100 * fraction:g} % of the data"
    label = "size of the student (parameters, logarithmic)" if logarithmic else "size of the student"
    levels = tuple(dict.fromkeys(level for panel in panels for level in _teachers(panel)))
    return Figure(name, panels[0].dataset, title, label, ticks, bool(logarithmic), tuple(lines), levels)


def _stem(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in name)


def draw(figure: Figure, folder: pathlib.Path) -> list[pathlib.Path]:
    """Writes the figure as SVG and PNG, in percent, with bars of one standard error; returns the files."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    # The same figure gives the same file: no date, no random names inside. Text stays text.
    with plt.rc_context({"svg.hashsalt": figure.name, "svg.fonttype": "none", "text.parse_math": False}):
        drawn, axes = plt.subplots(figsize=(6.4, 5.4), layout="constrained")
        for line in figure.lines:
            axes.errorbar(
                [point.x for point in line.points],
                [100 * point.mean.mean for point in line.points],
                yerr=[0.0 if math.isnan(point.mean.error) else 100 * point.mean.error for point in line.points],
                marker=MARKERS[line.slot % len(MARKERS)],
                linestyle=(0, DASHES[line.slot % len(DASHES)] or None),
                color=COLOURS[line.slot % len(COLOURS)],
                capsize=3,
                label=line.title,
            )
        for at, level in enumerate(figure.levels):
            if level.x is None:
                axes.axhline(100 * level.y, color="#666666", linestyle=(0, (1, 1 + at)), label=level.title)
            else:
                marker = "xd^*s"[at % 5]
                axes.plot(
                    *(level.x, 100 * level.y, marker),
                    label=level.title,
                    color="#444444",
                    markersize=8,
                    markerfacecolor="none",
                )
        if figure.logarithmic:
            axes.set_xscale("log")
        axes.set(xlabel=figure.x_label, ylabel="test accuracy, %", title=figure.title)
        axes.set_xticks([x for x, _ in figure.ticks], [text for _, text in figure.ticks], minor=False)
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        if figure.lines or figure.levels:
            drawn.legend(loc="outside lower center", ncols=2, fontsize="small")
        files = [folder / f"{figure.name}.{suffix}" for suffix in ("svg", "png")]
        drawn.savefig(files[0], metadata={"Date": None})
        drawn.savefig(files[1], dpi=150)
        plt.close(drawn)
    return files
