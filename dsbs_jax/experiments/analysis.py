"""From rows to what a report says: cells, curves, comparisons between methods, and data saved."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from dsbs_jax.experiments.report_data import TeacherAccuracy, read_answers, teacher_accuracies
from dsbs_jax.experiments.results import Row
from dsbs_jax.experiments.statistics import (
    Answers,
    Comparison,
    DataSaved,
    Mean,
    compare,
    data_saved,
    holm,
    mean_over_seeds,
)
from dsbs_jax.experiments.students import Student, pairs


@dataclasses.dataclass(frozen=True)
class Cell:
    """All seeds of one student at one fraction.

    Attributes:
      runs: test accuracy by seed, of the finished runs, at the step selected on validation.
      mean: over those; None where none is finished.
      expected: seeds that the panel's other cells have or this cell's rows name.
      rows: this cell's, finished or not.
    """

    runs: Mapping[int, float]
    mean: Mean | None
    expected: tuple[int, ...]
    rows: tuple[Row, ...]

    @property
    def missing(self) -> tuple[int, ...]:
        """Seeds without a test accuracy."""
        return tuple(seed for seed in self.expected if seed not in self.runs)


@dataclasses.dataclass(frozen=True)
class Tested:
    """One line of a table of comparisons; `adjusted` are Holm's p-values over the lines of its table.

    `comparison` is None where the runs cannot be paired; `reason` then says why.
    """

    fraction: float
    a: Student
    b: Student
    comparison: Comparison | None
    reason: str = ""
    adjusted: float = float("nan")
    adjusted_seeds: float = float("nan")


@dataclasses.dataclass(frozen=True)
class Saved:
    """How much data `student` needs for the accuracy of `baseline` with all of it."""

    student: Student
    baseline: Student
    saved: DataSaved


@dataclasses.dataclass(frozen=True)
class Panel:
    """Everything about one dataset and one size of the student.

    Attributes:
      dataset: its name.
      model: name of the size.
      students: in the order of tables.
      fractions: from small to large.
      cells: of those that have rows.
      comparisons: paired tests.
      saved: data that one student saves against another.
      teachers: those that students learn from -> split -> how often they are right.
      test_examples: how many; None where no predictions lie there.
    """

    dataset: str
    model: str
    students: tuple[Student, ...]
    fractions: tuple[float, ...]
    cells: Mapping[tuple[Student, float], Cell]
    comparisons: tuple[Tested, ...]
    saved: tuple[Saved, ...]
    teachers: Mapping[str, Mapping[str, TeacherAccuracy]]
    test_examples: int | None


def analyse(rows: Sequence[Row]) -> list[Panel]:
    """One panel a dataset and size, in the order of the rows."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.dataset, row.model), []).append(row)
    return [_panel(*key, group) for key, group in groups.items()]


def all_students(panels: Sequence[Panel]) -> list[Student]:
    """Those of all panels, in their order."""
    return sorted({student for panel in panels for student in panel.students}, key=lambda student: student.order)


def _panel(dataset: str, model: str, rows: Sequence[Row]) -> Panel:
    students = tuple(sorted({Student.of(row) for row in rows}, key=lambda student: student.order))
    fractions = tuple(sorted({row.fraction for row in rows}))
    grouped: dict[tuple[Student, float], list[Row]] = {}
    for row in rows:
        grouped.setdefault((Student.of(row), row.fraction), []).append(row)
    seeds = {row.seed for row in rows}
    cells = {key: _cell(group, seeds) for key, group in grouped.items()}
    answers = {key: _answers(cell) for key, cell in cells.items()}
    return Panel(
        dataset=dataset,
        model=model,
        students=students,
        fractions=fractions,
        cells=cells,
        comparisons=_comparisons(students, fractions, answers),
        saved=_saved(students, cells),
        teachers=teacher_accuracies(rows),
        test_examples=next((len(a.ids) for by_seed in answers.values() for a in by_seed.values()), None),
    )


def _cell(rows: Sequence[Row], seeds: set[int]) -> Cell:
    runs = {row.seed: row.test_accuracy for row in rows if row.test_accuracy is not None}
    mean = mean_over_seeds(list(runs.values())) if runs else None
    return Cell(dict(sorted(runs.items())), mean, tuple(sorted(seeds)), tuple(rows))


def _answers(cell: Cell) -> dict[int, Answers]:
    read = {row.seed: read_answers(row) for row in cell.rows if row.seed in cell.runs}
    return {seed: answers for seed, answers in read.items() if answers is not None}


def _comparisons(
    students: Sequence[Student],
    fractions: Sequence[float],
    answers: Mapping[tuple[Student, float], Mapping[int, Answers]],
) -> tuple[Tested, ...]:
    tested = []
    for fraction in fractions:
        for a, b in pairs([student for student in students if (student, fraction) in answers]):
            if not answers[a, fraction] or not answers[b, fraction]:
                tested.append(Tested(fraction, a, b, None, "no finished run with its answers to the test split"))
                continue
            try:
                tested.append(Tested(fraction, a, b, compare(answers[a, fraction], answers[b, fraction])))
            except ValueError as error:
                tested.append(Tested(fraction, a, b, None, str(error)))
    nan = float("nan")
    examples = holm([one.comparison.test.p_value if one.comparison else nan for one in tested])
    seeds = holm([one.comparison.test.seed_p_value if one.comparison else nan for one in tested])
    return tuple(
        dataclasses.replace(one, adjusted=p, adjusted_seeds=q)
        for one, p, q in zip(tested, examples, seeds, strict=True)
    )


def _saved(students: Sequence[Student], cells: Mapping[tuple[Student, float], Cell]) -> tuple[Saved, ...]:
    found = []
    for a, b in pairs(students):
        curve = {fraction: cell.runs for (student, fraction), cell in cells.items() if student == a and cell.runs}
        # With one share there is no curve, and only all of the data is "full-data accuracy".
        full = cells.get((b, 1.0))
        if len(curve) > 1 and full is not None and full.runs and (saved := data_saved(curve, full.runs)):
            found.append(Saved(a, b, saved))
    return tuple(found)
