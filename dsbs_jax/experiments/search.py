"""A search (Figures 8 and 9): which cells of a sweep to run to find the smallest model and the least data that beat the
teacher, which is few-shot CoT itself.

All seeds of one student, model and fraction are a group. A group beats the teacher if its mean validation accuracy over
the seeds is above the teacher's share of right labels in the validation rows that it answered; validation, so that what
is reported of the test split was not chosen on it. Only where the teacher answered no validation row are both compared
on test. For each dataset and student:

1. The smallest model begins, with the most data.
2. Where that does not beat the teacher, less data does not either: the next larger model follows.
3. Where it does, the fractions below are bisected for the least that still does.
4. A larger model is tried only with less data than a smaller one needs, and there the same way.

It is over when no cell left could change the answer: for every model that needs less data than all smaller ones, the
least fraction of the grid that beats the teacher. The one assumption is that more data never hurts a model; nothing is
assumed of larger models.

Everything here follows from the cells' rows, so that workers that share nothing but the folder all plan the same.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dsbs_jax.experiments.report_data import TeacherAccuracy, parameters, told_accuracy
from dsbs_jax.experiments.results import Row
from dsbs_jax.experiments.students import Student, titles

RULE = (
    "A search begins with the smallest model and the most data. If the mean accuracy over the seeds is not above the "
    "teacher's, the next larger model follows; if it is, the fractions below are bisected for the least that still is. "
    "Larger models are tried only with less data than smaller ones need. It is over when no cell left could change the "
    "answer, if more data never hurts a model."
)
# Accuracies that differ by less are equal: means of floats are rounded.
_ROUNDING = 1e-9


@dataclasses.dataclass(frozen=True)
class Group:
    """All seeds of one student, model and fraction."""

    model: str
    fraction: float
    rows: tuple[Row, ...]

    def mean(self, split: str) -> float | None:
        """Mean accuracy over the seeds, a share in [0, 1]; None where a seed has none."""
        accuracies = [getattr(row, f"{split}_accuracy") for row in self.rows]
        return None if None in accuracies else statistics.fmean(accuracies)


@dataclasses.dataclass(frozen=True)
class Search:
    """The search of one student on one dataset, as far as it is.

    Attributes:
      dataset: its name.
      student: the way of training.
      teacher: what is to be beaten; None where no finished run tells.
      found: groups that beat the teacher with less data than all smaller models need, the smallest model first; while
        the search goes on, the last model may turn out to need less.
      wanted: the group that must be known next; None at the end.
      skipped: why a cell need not run, by id.
      stopped: why the search cannot go on; empty where it can, or is over.
      doubts: finished cells that speak against the assumption.
    """

    dataset: str
    student: Student
    teacher: TeacherAccuracy | None
    found: tuple[Group, ...]
    wanted: Group | None
    skipped: Mapping[str, str]
    stopped: str
    doubts: tuple[str, ...]

    @property
    def over(self) -> bool:
        """Whether no cell could change what was found."""
        return self.wanted is None

    @property
    def planned(self) -> tuple[str, ...]:
        """Ids of the cells to run next; those being run are among them."""
        if self.wanted is None or self.stopped:
            return ()
        return tuple(row.cell for row in self.wanted.rows if row.status != "finished")


def searches(rows: Sequence[Row]) -> list[Search]:
    """The state of every search of a sweep, in the order of the rows.

    Args:
      rows: of all cells, in any state.
    """
    apart: dict[tuple[str, Student], list[Row]] = {}
    for row in rows:
        apart.setdefault((row.dataset, Student.of(row)), []).append(row)
    return [
        _search(dataset, student, own, _teacher([*own, *(row for row in rows if row.dataset == dataset)]))
        for (dataset, student), own in apart.items()
    ]


def planned(rows: Sequence[Row]) -> frozenset[str]:
    """Ids of the cells that all searches want next; those being run are among them."""
    return frozenset(cell for search in searches(rows) for cell in search.planned)


def skipped(states: Sequence[Search]) -> dict[str, str]:
    """Why a cell need not run, by id."""
    return {cell: why for search in states for cell, why in search.skipped.items()}


def note(states: Sequence[Search], row: Row) -> str:
    """What is to become of a waiting cell, to be added to its line; empty for other cells, and without a search."""
    if row.status != "waiting" or not states:
        return ""
    if any(row.cell in search.planned for search in states):
        return ", planned"
    why = skipped(states).get(row.cell)
    return f", skipped: {why}" if why else ", not yet decided"


def report(states: Sequence[Search]) -> str:
    """What the searches have found, in lines, and the rule by which they stop."""
    names = titles([search.student for search in states])
    return "\n".join([*(line for search in states for line in _lines(search, names[search.student])), RULE])


def _search(dataset: str, student: Student, rows: Sequence[Row], teacher: TeacherAccuracy | None) -> Search:
    models = _groups(rows)
    found, wanted, reasons = _walk(models, lambda group: _beats(group, teacher))
    return Search(
        dataset=dataset,
        student=student,
        teacher=teacher,
        found=tuple(found),
        wanted=wanted,
        skipped={row.cell: why for group, why in reasons for row in group.rows},
        stopped=_obstacle(wanted, teacher) if wanted else "",
        doubts=tuple(_doubts(models, teacher)),
    )


def _groups(rows: Sequence[Row]) -> list[list[Group]]:
    """Those of each model, smallest first, by fraction."""
    configs: dict[str, dict[str, Any]] = {}
    for row in rows:
        configs.setdefault(row.model, row.config)
    models = []
    # Models of one size stay in the sweep's order.
    for model in sorted(configs, key=lambda model: parameters(configs[model]) or 0):
        own = [row for row in rows if row.model == model]
        fractions = sorted({row.fraction for row in own})
        models.append([Group(model, f, tuple(row for row in own if row.fraction == f)) for f in fractions])
    return models


def _walk(
    models: Sequence[Sequence[Group]], beats: Callable[[Group], bool | None]
) -> tuple[list[Group], Group | None, list[tuple[Group, str]]]:
    """Goes the way of the search as far as it is known.

    Args:
      models: groups of each model, smallest first, by fraction.
      beats: whether a group beats the teacher; None where that is not known.

    Returns:
      The groups found, the group that must be known next or None at the end, and those not needed with the reason.
    """
    found: list[Group] = []
    wanted: Group | None = None
    skipped: list[tuple[Group, str]] = []
    for groups in models:
        beaten = [(group, _beaten(group, found)) for group in groups]
        skipped += [(group, why) for group, why in beaten if why]
        left = [group for group, why in beaten if not why]
        won = False
        while left and not wanted:
            at = (len(left) - 1) // 2 if won else len(left) - 1
            group, verdict = left[at], beats(left[at])
            if verdict is None:
                wanted = group
            elif verdict:
                skipped += [(other, _reason(group, "beats")) for other in left[at + 1 :]]
                found[len(found) - won :] = [group]
                won, left = True, left[:at]
            else:
                skipped += [(other, _reason(group, "does not beat")) for other in left[:at]]
                left = left[at + 1 :]
    return found, wanted, skipped


def _beaten(group: Group, found: Sequence[Group]) -> str:
    """Why a group of a larger model cannot matter; empty where it can."""
    better = (other for other in found if other.fraction <= group.fraction)
    return next((_reason(other, "beats") for other in better), "")


def _reason(group: Group, verb: str) -> str:
    return f"{group.model} {verb} the teacher with {group.fraction:g}"


def _beats(group: Group, teacher: TeacherAccuracy | None) -> bool | None:
    """Whether it does; None where that is not known."""
    if teacher is None or any(row.status != "finished" for row in group.rows):
        return None
    mean = group.mean(teacher.split)
    return None if mean is None else mean > teacher.accuracy + _ROUNDING


def _obstacle(group: Group, teacher: TeacherAccuracy | None) -> str:
    """Why running the group's cells would not tell; empty where it would."""
    if failed := [row.cell for row in group.rows if row.status == "failed"]:
        return f"{', '.join(failed)} failed; mend what its error says and give --retry-failed."
    if any(row.status != "finished" for row in group.rows):
        return ""
    if teacher is None:
        return (
            "no run tells how often the teacher is right in the validation or test split; those that ran for another "
            "teacher do not know. Add a method that learns from it, or give the sweep an --output of its own."
        )
    return f"{group.model} with {group.fraction:g} has no {teacher.split} accuracy; evaluation needs that split."


def _teacher(rows: Sequence[Row]) -> TeacherAccuracy | None:
    """That of validation as the first of the rows tells it; of test where none tells it of validation."""
    told = [told_accuracy(row) for row in rows]
    return next((each[split] for split in ("validation", "test") for each in told if split in each), None)


def _doubts(models: Sequence[Sequence[Group]], teacher: TeacherAccuracy | None) -> list[str]:
    """What finished cells, of an earlier and larger plan, say against the assumption that more data never hurts."""
    doubts = []
    for groups in models:
        wins = [group for group in groups if _beats(group, teacher)]
        losses = [group for group in groups if _beats(group, teacher) is False]
        if wins and losses and wins[0].fraction < losses[-1].fraction:
            doubts.append(
                f"more data did hurt: {wins[0].model} beats the teacher with {wins[0].fraction:g} and not with "
                f"{losses[-1].fraction:g}"
            )
    return doubts


def _lines(search: Search, name: str) -> list[str]:
    """What one search has found, and where it is."""
    teacher = search.teacher
    if teacher is None:
        return [
            f"{search.dataset}, {name}: the first finished run will tell how often the teacher is right.",
            _place(search),
        ]
    share = f"{teacher.accuracy:.3f} of {teacher.rows} {teacher.split} rows"
    lines = [f"{search.dataset}, {name}: the teacher is right in {share}."]
    if teacher.split == "test":
        lines.append(
            "  It answered no validation row: students are chosen on test, and do better there than elsewhere."
        )
    if search.found:
        smallest, least = search.found[0], search.found[-1]
        far = "" if search.over else " so far"
        lines.append(f"  smallest model that beats it: {_numbers(smallest)}")
        lines.append(f"  least data that beats it{far}: {_numbers(least)}")
    else:
        lines.append("  no model beats it" + ("" if search.over else " yet"))
    return [*lines, *(f"  but {doubt}" for doubt in search.doubts), _place(search)]


def _place(search: Search) -> str:
    if search.stopped:
        return f"  stopped: {search.stopped}"
    if search.wanted is None:
        return "  over"
    return f"  next: {search.wanted.model} with {search.wanted.fraction:g} ({', '.join(search.planned)})"


def _numbers(group: Group) -> str:
    means = ((split, group.mean(split)) for split in ("validation", "test"))
    told = ", ".join(f"{split} {mean:.3f}" for split, mean in means if mean is not None)
    return f"{group.model} with {group.fraction:g}: {told} ({len(group.rows)} seed{'s' * (len(group.rows) > 1)})"
