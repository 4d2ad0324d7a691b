"""Ways of training a student: what is one line in a figure, how it is called, and what it is compared with."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import NamedTuple

from dsbs_jax.experiments.results import Row

TITLES = {
    ("standard", "gold"): "standard finetuning",
    ("standard", "teacher"): "standard distillation",
    ("step_by_step", "gold"): "step-by-step",
    ("step_by_step", "teacher"): "step-by-step (teacher labels)",
    ("single_task", "gold"): "single task",
    ("rationale_input", "gold"): "rationale as input",
}

# Traits that a baseline shares with what it is compared with where there is one that does, and else has not.
_SHARED = {"variant": "", "teacher": None, "wrong_rationales": 0.0, "missing_rationales": 0.0}


class Student(NamedTuple):
    """A way of training, whatever the dataset, size, fraction and seed. The fields are those of `Row`."""

    method: str
    label_source: str
    teacher: str | None
    rationale_weight: float | None
    variant: str
    wrong_rationales: float
    missing_rationales: float

    @classmethod
    def of(cls, row: Row) -> Student:
        """That of a run."""
        return cls(*(getattr(row, name) for name in cls._fields))

    @property
    def as_in_the_paper(self) -> bool:
        """Whether nothing about it is what the paper's students of its method are not: lambda, noise, a variant."""
        return (self.rationale_weight in (None, 1.0)) and not (
            self.variant or self.wrong_rationales or self.missing_rationales
        )

    @property
    def order(self) -> tuple[int | float | str, ...]:
        """The order in tables and of colours: the paper's methods first."""
        key = (self.method, self.label_source)
        place = list(TITLES).index(key) if key in TITLES else len(TITLES)
        noise = (self.wrong_rationales, self.missing_rationales)
        return place, *key, self.teacher or "", self.variant, self.rationale_weight or 0.0, *noise


def point(row: Row) -> tuple[object, ...]:
    """All that a report tells runs apart by: two with the same would be one run in it."""
    return row.dataset, row.model, Student.of(row), row.fraction, row.seed


def titles(students: Sequence[Student]) -> dict[Student, str]:
    """A title for each: a teacher or a lambda only where it tells two of them apart, but always a variant and noise."""
    named: dict[Student, str] = {}
    for student in students:
        alike = [other for other in students if other[:2] == student[:2]]
        parts = [TITLES.get(student[:2], f"{student.method.replace('_', ' ')} ({student.label_source} labels)")]
        if student.teacher and len({other.teacher for other in alike}) > 1:
            parts.append(teacher_name(student.teacher))
        if len({other.rationale_weight for other in alike}) > 1 and student.rationale_weight is not None:
            parts.append(f"λ = {student.rationale_weight:g}")
        parts += [student.variant.replace("_", " ")] if student.variant else []
        for share, what in ((student.wrong_rationales, "wrong"), (student.missing_rationales, "missing")):
            parts += [f"{100 * share:g} % of rationales {what}"] if share else []
        named[student] = ", ".join(parts)
    return named


def teacher_name(teacher: str | None) -> str:
    """The last part of a labelled folder's path, or the name itself."""
    return pathlib.PurePath(teacher).name if teacher else "no teacher"


def pairs(students: Sequence[Student]) -> list[tuple[Student, Student]]:
    """What is compared: step-by-step with every other method, those with standard training.

    The other one has the same label source and no other teacher. It is told the same (`variant`, spoiled rationales)
    where one of its method is; else it is the plain one.
    """
    found = []
    for a in students:
        others = dict.fromkeys(b.method for b in students if b.method not in ("step_by_step", a.method))
        against = others if a.method == "step_by_step" else ["standard"] if a.method != "standard" else []
        found += [(a, b) for method in against for b in _baselines(a, method, students)]
    return found


def _baselines(a: Student, method: str, students: Sequence[Student]) -> list[Student]:
    found = [b for b in students if b[:2] == (method, a.label_source) and b.teacher in (a.teacher, None)]
    for trait, plain in _SHARED.items():
        own = getattr(a, trait)
        same = [b for b in found if getattr(b, trait) == own]
        found = same or [b for b in found if getattr(b, trait) == plain]
    return found
