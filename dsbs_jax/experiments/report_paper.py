"""The report's tables that the paper has, too: teachers (Table 1), one task or two (Table 2), data (Table 3)."""

from __future__ import annotations

import json
from collections.abc import Sequence

from dsbs_jax.experiments.analysis import Panel, Tested
from dsbs_jax.experiments.published import published
from dsbs_jax.experiments.report_content import Titles, difference, p_values, where, with_error
from dsbs_jax.experiments.report_data import read_data, shown
from dsbs_jax.experiments.report_tables import Cell, Table
from dsbs_jax.experiments.results import Row
from dsbs_jax.experiments.students import Student, teacher_name


def teacher_table(panel: Panel, titles: Titles) -> Table | None:
    """Step-by-step with the rationales of several teachers, at the largest fraction; None where there is only one."""
    lines = [one for one in _largest(panel) if (one.a.method, one.b.method) == ("step_by_step", "standard")]
    right = {teacher: one.accuracy for teacher, told in panel.teachers.items() if (one := shown(told))}
    lines.sort(key=lambda one: right.get(one.a.teacher or "", 0.0))
    teachers = [one.a.teacher for one in lines if one.a.teacher]
    if len(set(teachers)) < 2:
        return None
    distinct = len(set(teachers)) == len(lines)
    rows = tuple(
        (
            Cell(teacher_name(one.a.teacher) if distinct else titles[one.a]),
            _of_teacher(panel, one.a.teacher),
            *(_mean(panel, student) for student in (one.a, one.b)),
            *(difference(one), *p_values(one)),
        )
        for one in lines
    )
    note = (
        "As the paper's Table 1: the same student with the rationales of different teachers. A teacher's accuracy is "
        f"that of its labels, before any filter. Test accuracy with {100 * panel.fractions[-1]:g} % of the data, mean "
        "± standard error over the seeds; standard is what the line is compared with. Differences and p as in the "
        "table of comparisons, corrected over the lines of that."
    )
    header = ("rationales of", "teacher right", "step-by-step", "standard", "difference", "p, examples", "p, seeds")
    return Table(f"Rationales from different teachers, {where(panel)}", header, rows, note)


def _of_teacher(panel: Panel, teacher: str | None) -> Cell:
    told = panel.teachers.get(teacher or "", {})
    texts = [f"{split} {100 * told[split].accuracy:.2f}" for split in ("train", "test") if split in told]
    rows = ", ".join(f"{one.rows:,} rows of {one.split}" for one in told.values())
    return Cell(" / ".join(texts) or "unknown", rows)


def _largest(panel: Panel) -> list[Tested]:
    return [one for one in panel.comparisons if one.fraction == panel.fractions[-1]]


def _mean(panel: Panel, student: Student) -> Cell:
    cell = panel.cells.get((student, panel.fractions[-1]))
    return Cell(with_error(cell.mean)) if cell is not None and cell.mean else Cell("missing")


def single_task_tables(panels: Sequence[Panel], titles: Titles) -> list[Table]:
    """Standard training, a single task on [rationale, label], and two tasks, at the largest fraction.

    A table for each size and label source that has a single task, in it a column a dataset.
    """
    groups: dict[tuple[str, str], list[tuple[Panel, Tested]]] = {}
    for panel in panels:
        for one in _largest(panel):
            if (one.a.method, one.b.method) == ("step_by_step", "single_task"):
                groups.setdefault((panel.model, one.a.label_source), []).append((panel, one))
    return [_single_task(*key, columns, titles) for key, columns in groups.items()]


def _single_task(model: str, source: str, columns: Sequence[tuple[Panel, Tested]], titles: Titles) -> Table:
    datasets = [panel.dataset for panel, _ in columns]
    header = tuple(
        panel.dataset if datasets.count(panel.dataset) == 1 else f"{panel.dataset}, {titles[one.a]}"
        for panel, one in columns
    )
    tests = [p_values(one) for _, one in columns]
    lines = [
        ("standard training", [_standard(panel, one.a) for panel, one in columns]),
        ("single task, [rationale, label]", [_mean(panel, one.b) for panel, one in columns]),
        ("multi-task, step-by-step", [_mean(panel, one.a) for panel, one in columns]),
        ("multi-task minus single task", [difference(one) for _, one in columns]),
        *(("p, examples", [test[0] for test in tests]), ("p, seeds", [test[1] for test in tests])),
    ]
    if source == "gold" and any(map(published, datasets)):
        for method, name in (("standard", "standard"), ("single_task", "single task"), ("step_by_step", "multi-task")):
            values = [[one.accuracy for one in published(each) if one.method == method] for each in datasets]
            # The last one is with the rationales of PaLM 540B, as in the paper's Table 2.
            lines.append((f"paper, {name}", [Cell(f"{100 * each[-1]:.2f}" if each else "none") for each in values]))
    note = (
        "As the paper's Table 2. Test accuracy with the largest share of the data, mean ± standard error over the "
        "seeds. Differences and p as in the tables of comparisons, corrected over the lines of those."
    )
    rows = tuple((Cell(name), *cells) for name, cells in lines)
    return Table(f"Single task or multi-task, {model}, {source} labels", ("method", *header), rows, note)


def _standard(panel: Panel, student: Student) -> Cell:
    """The mean of the standard training that the student is compared with."""
    found = (one.b for one in _largest(panel) if (one.a, one.b.method) == (student, "standard"))
    return next((_mean(panel, baseline) for baseline in found), Cell("none"))


def data_table(rows: Sequence[Row], titles: Titles) -> Table | None:
    """How many rows each dataset's splits hold, and what became of the others; None where no finished run tells."""
    groups: dict[str, tuple[Row, dict, list[str]]] = {}
    for row in rows:
        if (told := read_data(row)) is not None:
            key = json.dumps([row.dataset, told["splits"], told["rows"]], sort_keys=True)
            groups.setdefault(key, (row, told, []))[2].append(titles[Student.of(row)])
    if not groups:
        return None
    datasets = [row.dataset for row, _, _ in groups.values()]
    lines = []
    for row, told, students in groups.values():
        skipped = [
            f"{split}: " + ", ".join(f"{count:,} {reason}" for reason, count in counts.items())
            for split, counts in told["rows"].items()
            if counts
        ]
        name = row.dataset
        if datasets.count(name) > 1:
            name += f" ({'; '.join(dict.fromkeys(students))})"
        splits = (Cell(f"{told['splits'].get(split, 0):,}") for split in ("train", "validation", "test"))
        lines.append((Cell(name), *splits, Cell("; ".join(skipped) or "nothing")))
    note = (
        "As the paper's Table 3: rows that the splits hold, and what was skipped, cut or missing, by reason. Where "
        "the runs of a dataset do not all read the same rows, each line names its own."
    )
    return Table("Data", ("dataset", "train", "validation", "test", "noted"), tuple(lines), note)
