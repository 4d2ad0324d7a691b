"""The report's figures: what is drawn; by `report_svg.py` on the page, by `report_print.py` for print."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from dsbs_jax.experiments.analysis import Cell, Panel, Student, all_students
from dsbs_jax.experiments.published import PARAMETERS, published
from dsbs_jax.experiments.report_data import parameters, shown
from dsbs_jax.experiments.statistics import Mean, mean_over_seeds
from dsbs_jax.experiments.students import teacher_name, titles

Drawn = TypeVar("Drawn")


class Point(NamedTuple):
    """One cell in a figure; `mean` and `runs` (by seed) are shares in [0, 1], or differences of such."""

    x: float
    mean: Mean
    runs: Mapping[int, float]


@dataclasses.dataclass(frozen=True)
class Line:
    """One student's points, from left to right.

    Attributes:
      title: in the legend.
      slot: numbers its colour, marker and dashes in the whole report.
      points: from left to right.
      flat: its only point does not depend on x: a line from side to side, with a band of one standard error.
    """

    title: str
    slot: int
    points: tuple[Point, ...]
    flat: bool = False


class Level(NamedTuple):
    """A number to compare with, a share in [0, 1]; with `x` a mark there, without it a line from side to side.

    `slot` numbers its look among the marks, or among the lines, in the whole report.
    """

    title: str
    y: float
    slot: int
    x: float | None = None


@dataclasses.dataclass(frozen=True)
class Figure:
    """Test accuracy, or a gain in it, against one thing.

    Attributes:
      name: of its files.
      dataset: what was tested on.
      title: what is held fixed.
      x_label: of the axis.
      ticks: (x, text).
      logarithmic: the x axis.
      lines: one a student.
      levels: teachers and the paper's values.
      gain: what is drawn are differences in accuracy, not accuracies.
    """

    name: str
    dataset: str
    title: str
    x_label: str
    ticks: tuple[tuple[float, str], ...]
    logarithmic: bool
    lines: tuple[Line, ...]
    levels: tuple[Level, ...]
    gain: bool = False

    @property
    def y_label(self) -> str:
        """Of the axis; what is drawn is 100 times the shares."""
        return "gain over standard training, points" if self.gain else "test accuracy, %"

    @property
    def unit(self) -> str:
        """Of what is drawn."""
        return "points" if self.gain else "%"

    def named(self, x: float) -> str:
        """A place on the x axis, as its tick says it."""
        return dict(self.ticks).get(x, f"{x:g}")


@dataclasses.dataclass(frozen=True)
class _Trait:
    """Something of a student that may vary along an x axis, instead of the share of the data.

    Attributes:
      field: of `Student`.
      plain: the value that stands for all in the title of a line; also that of students that have no such trait.
      label: of the axis.
      even: places are 0, 1, 2 ... instead of the values in percent: lambda often doubles from value to value, and may
        be 0, which a logarithmic axis has no place for.
    """

    field: str
    plain: float | None
    label: str
    even: bool


_TRAITS = {
    "lambda": _Trait("rationale_weight", None, "weight of the rationale loss, λ (values evenly spaced)", True),
    "wrong": _Trait("wrong_rationales", 0.0, "rationales exchanged for another row's, %", False),
    "missing": _Trait("missing_rationales", 0.0, "rationales removed, %", False),
}
# Fewer say nothing of how gain goes with quality.
_LEAST_QUALITIES = 3


def make_figures(panels: Sequence[Panel]) -> list[Figure]:
    """Accuracy against what varies: the fraction, lambda, spoiled rationales, size; and gain against rationale quality.

    A panel whose cells all have one fraction has no figure over it where something else varies, or the size does.
    """
    students = all_students(panels)
    # The paper's own first: looks repeat late, and those are in most figures.
    own_first = sorted(students, key=lambda student: not student.as_in_the_paper)
    look = _Look(
        {student: slot for slot, student in enumerate(own_first)},
        titles(students),
        {teacher: slot for slot, teacher in enumerate(dict.fromkeys(t for panel in panels for t in panel.teachers))},
    )
    figures = []
    for number, panel in enumerate(panels, start=1):
        stem = f"{number:02d}-{_stem(panel.dataset)}"
        # Recipes that share a folder vary different things at different fractions: the largest at which this one does.
        fractions = panel.fractions[::-1]
        over_traits = [
            figure
            for name, trait in _TRAITS.items()
            if (figure := _first(_over_trait(panel, f, f"{stem}-{name}", trait, look) for f in fractions))
        ]
        same = [other.fractions for other in panels if other.dataset == panel.dataset]
        over_size = len(same) > 1 and all(panel.fractions[-1] in fractions for fractions in same)
        if len(panel.fractions) > 1 or not (over_traits or over_size):
            figures.append(_over_fractions(panel, f"{stem}-fraction", look))
        figures += over_traits
        figures += _first(_qualities(panel, fraction, stem, look) for fraction in fractions) or []
    for dataset in dict.fromkeys(panel.dataset for panel in panels):
        alike = [panel for panel in panels if panel.dataset == dataset]
        if len(alike) > 1:
            figures.append(_over_sizes(alike, f"{_stem(dataset)}-size", look))
    return figures


def _first(drawn: Iterable[Drawn]) -> Drawn | None:
    """The first in which there is anything."""
    return next(filter(None, drawn), None)


class _Look(NamedTuple):
    """What is the same in all figures: colours and titles."""

    slots: Mapping[Student, int]
    names: Mapping[Student, str]
    teachers: Mapping[str, int]

    def levels(self, panels: Iterable[Panel]) -> tuple[Level, ...]:
        """A line for each teacher: few-shot CoT on the test split, or else on the split that its title names."""
        found: dict[str, Level] = {}
        for panel in panels:
            for teacher, told in panel.teachers.items():
                if one := shown(told):
                    title = f"few-shot CoT, {teacher_name(teacher)} ({one.rows:,} rows of {one.split})"
                    found.setdefault(teacher, Level(title, one.accuracy, self.teachers[teacher]))
        return tuple(found.values())


def _over_fractions(panel: Panel, name: str, look: _Look) -> Figure:
    lines = []
    for student in panel.students:
        cells = [(fraction, panel.cells.get((student, fraction))) for fraction in panel.fractions]
        if points := _points((100 * fraction, cell) for fraction, cell in cells):
            lines.append(Line(look.names[student], look.slots[student], points))
    if any(len(line.points) > 1 for line in lines):
        # A point of a line over something else would be a lone one here.
        elsewhere = {look.slots[student] for student in _varied(panel.students)}
        lines = [line for line in lines if len(line.points) > 1 or line.slot not in elsewhere]
    ticks = tuple((100 * fraction, f"{100 * fraction:g}") for fraction in panel.fractions)
    # Beside 100 %, and beside each other: they often differ by less than their own size.
    paper = _paper(panel, lambda place: 100 + 2.5 * place) if 1.0 in panel.fractions else ()
    where, levels = f"{panel.dataset}, {panel.model}", look.levels([panel]) + paper
    return Figure(name, panel.dataset, where, "training data used, %", ticks, False, tuple(lines), levels)


def _points(cells: Iterable[tuple[float, Cell | None]]) -> tuple[Point, ...]:
    return _sorted(Point(x, cell.mean, cell.runs) for x, cell in cells if cell is not None and cell.mean)


def _sorted(points: Iterable[Point]) -> tuple[Point, ...]:
    return tuple(sorted(points, key=lambda point: point.x))


def _paper(panel: Panel, x: Callable[[int], float]) -> tuple[Level, ...]:
    found = enumerate(published(panel.dataset), start=1)
    return tuple(Level(f"paper, T5-base: {one.title}", one.accuracy, at - 1, x(at)) for at, one in found)


def _grouped(students: Iterable[Student], trait: str, plain: Any) -> dict[Student, list[Student]]:
    """The students that differ in the trait alone, by the one that they would be without it; in their order."""
    groups: dict[Student, list[Student]] = {}
    for student in students:
        groups.setdefault(student._replace(**{trait: plain}), []).append(student)
    return groups


def _varied(students: Sequence[Student]) -> set[Student]:
    """Those that differ from another one in a single trait."""
    return {
        student
        for trait in _TRAITS.values()
        for members in _grouped(students, trait.field, trait.plain).values()
        for student in (members if len(members) > 1 else ())
    }


def _over_trait(panel: Panel, fraction: float, name: str, trait: _Trait, look: _Look) -> Figure | None:
    """Accuracy against a trait at one fraction; the students that differ in nothing else are one line.

    Standard training has no such trait: a line from side to side. None where no two students differ in it alone.
    """
    done = [student for student in panel.students if (student, fraction) in panel.cells]
    flat = [s for s in done if s.method == "standard" or getattr(s, trait.field) is None]
    vary = [student for student in done if student not in flat]
    groups = _grouped(vary, trait.field, trait.plain)
    # As in `_over_fractions`.
    elsewhere = _varied(vary)
    groups = {key: own for key, own in groups.items() if len(own) > 1 or own[0] not in elsewhere}
    if all(len(members) < 2 for members in groups.values()):
        return None
    values = sorted({getattr(student, trait.field) for members in groups.values() for student in members})
    places = {value: float(at) if trait.even else 100 * value for at, value in enumerate(values)}
    names, lines = titles(list(groups)), []
    for key, members in groups.items():
        cells = [(places[getattr(student, trait.field)], panel.cells[student, fraction]) for student in members]
        if points := _points(cells):
            lines.append(Line(names[key], look.slots[members[0]], points))
    for student in flat:
        if points := _points([(places[values[0]], panel.cells[student, fraction])]):
            lines.append(Line(look.names[student], look.slots[student], points, flat=True))
    ticks = tuple((place, f"{value if trait.even else 100 * value:g}") for value, place in places.items())
    where = f"{panel.dataset}, {panel.model}, {100 * fraction:g} % of the data"
    return Figure(name, panel.dataset, where, trait.label, ticks, False, tuple(lines), look.levels([panel]))


def _qualities(panel: Panel, fraction: float, stem: str, look: _Look) -> list[Figure]:
    """What step-by-step gains over its standard training at one fraction, against how right its rationales are.

    Where there are at least three teachers, or three shares of spoiled rationales.
    """
    gains = _gains(panel, fraction)
    taught = {teacher: told["train"].accuracy for teacher, told in panel.teachers.items() if "train" in told}
    by_teacher, by_noise = [], []
    groups = _grouped([student for student in gains if student.teacher in taught], "teacher", None)
    names = titles(list(groups))
    for key, members in groups.items():
        points = _sorted(Point(100 * taught[student.teacher or ""], *gains[student]) for student in members)
        by_teacher.append(Line(names[key], look.slots[members[0]], points))
    for trait, what in (("wrong_rationales", "exchanged"), ("missing_rationales", "removed")):
        groups = _grouped(gains, trait, 0.0)
        names = titles(list(groups))
        for key, members in groups.items():
            points = _sorted(Point(100 * (1 - getattr(student, trait)), *gains[student]) for student in members)
            # The last one's look: the first, with all rationales as they were, may be on both lines.
            by_noise.append(Line(f"{names[key]}, the others {what}", look.slots[members[-1]], points))
    figures = []
    for name, label, lines in (
        ("teachers", "the teacher's labels that are right, training rows, %", by_teacher),
        ("noise", "rationales left as they were, %", by_noise),
    ):
        lines = [line for line in lines if len(line.points) >= _LEAST_QUALITIES]
        if lines:
            ticks = tuple((x, f"{x:.3g}") for x in sorted({point.x for line in lines for point in line.points}))
            where = f"{panel.dataset}, {panel.model}, {100 * fraction:g} % of the data"
            name = f"{stem}-gain-{name}"
            figures.append(Figure(name, panel.dataset, where, label, ticks, False, tuple(lines), (), gain=True))
    return figures


def _gains(panel: Panel, fraction: float) -> dict[Student, tuple[Mean, dict[int, float]]]:
    """Step-by-step's accuracy minus that of its standard training: mean over the seeds that both have, and by seed."""
    found = {}
    for one in panel.comparisons:
        if one.fraction == fraction and (one.a.method, one.b.method) == ("step_by_step", "standard"):
            a, b = (panel.cells[student, fraction].runs for student in (one.a, one.b))
            if differences := {seed: a[seed] - b[seed] for seed in a if seed in b}:
                found[one.a] = (mean_over_seeds(list(differences.values())), differences)
    return found


def _over_sizes(panels: Sequence[Panel], name: str, look: _Look) -> Figure:
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
        cells = [(place, panel.cells.get((student, fraction))) for place, panel in zip(places, panels, strict=True)]
        if points := _points(cells):
            lines.append(Line(look.names[student], look.slots[student], points))
    ticks = tuple((place, panel.model) for place, panel in zip(places, panels, strict=True))
    title = f"{panels[0].dataset}, {100 * fraction:g} % of the data"
    label = "size of the student (parameters, logarithmic)" if logarithmic else "size of the student"
    levels = look.levels(panels)
    if logarithmic and fraction == 1.0:
        # At the size that the paper tells, and beside each other to the left of it.
        levels += _paper(panels[0], lambda place: PARAMETERS * 0.92 ** (place - 1))
    return Figure(name, panels[0].dataset, title, label, ticks, bool(logarithmic), tuple(lines), levels)


def _stem(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in name)
