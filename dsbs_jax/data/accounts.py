"""What became of a split's rows: nothing is dropped uncounted."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence

from dsbs_jax.schema import Example

NOTHING_TO_LEARN = "neither a gold label nor a teacher's answer"
NO_GOLD_LABEL = "no gold label to evaluate against"


@dataclasses.dataclass(frozen=True)
class Counts:
    """What became of a split's rows.

    Attributes:
      rows: rows of the split, kept or skipped.
      kept: examples that came out.
      skipped: rows left out, by reason.
      unlabelled: kept examples without a gold label.
      no_rationale: kept examples without a teacher's rationale.
      no_teacher_label: kept examples without a teacher's label.
      teacher_failures: kept examples whose teacher's answer could not be read in full, by reason code.
      noise: kept examples whose rationale was exchanged or removed on purpose, by what was done.
      teacher_judged: rows with a gold label and an answer of the teacher, before any filter; 0 where none of the
        answers has a label (rationales of people): nobody's accuracy.
      teacher_right: those whose teacher's label is the gold one. What could not be read is wrong.
    """

    rows: int
    kept: int
    skipped: dict[str, int]
    unlabelled: int
    no_rationale: int
    no_teacher_label: int
    teacher_failures: dict[str, int]
    noise: dict[str, int]
    teacher_judged: int
    teacher_right: int


@dataclasses.dataclass(frozen=True)
class LoadedSplit:
    """The examples of one split and the account of its rows."""

    examples: list[Example]
    counts: Counts


def account(
    examples: Sequence[Example],
    skipped: collections.Counter[str],
    *,
    training: bool,
    noise: Mapping[str, int],
    judged: tuple[int, int],
) -> LoadedSplit:
    """The examples that can be used, for training or else for evaluation, and what became of all.

    Args:
      examples: what is left of the split's rows.
      skipped: rows that are already left out, by reason; those that are left out here are added.
      training: or evaluation, which needs a gold label.
      noise: of `Counts`.
      judged: `teacher_judged` and `teacher_right` of `Counts`.
    """
    keep = _trainable if training else _has_gold
    kept = []
    for example in examples:
        reason = keep(example)
        if reason is None:
            kept.append(example)
        else:
            skipped[reason] += 1
    failures = collections.Counter(
        example.teacher.failure for example in kept if example.teacher and example.teacher.failure
    )
    counts = Counts(
        rows=len(kept) + skipped.total(),
        kept=len(kept),
        skipped=dict(skipped),
        unlabelled=sum(example.label is None for example in kept),
        no_rationale=sum(not example.rationale for example in kept),
        no_teacher_label=sum(not example.target_label("teacher") for example in kept),
        teacher_failures=dict(failures),
        noise=dict(noise),
        teacher_judged=judged[0],
        teacher_right=judged[1],
    )
    return LoadedSplit(kept, counts)


def _trainable(example: Example) -> str | None:
    teacher = example.teacher
    useful = example.label or (teacher and (teacher.label or teacher.rationale))
    return None if useful else NOTHING_TO_LEARN


def _has_gold(example: Example) -> str | None:
    return None if example.label else NO_GOLD_LABEL
