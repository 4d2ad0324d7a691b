"""Which of a teacher's rows a student is trained on."""

from __future__ import annotations

import dataclasses

from dsbs_jax.teacher.agreement import SameLabel
from dsbs_jax.teacher.labelled import LabelledRow

NO_TEACHER_LABEL = "no_teacher_label"
NO_GOLD_LABEL = "no_gold_label"
DIFFERS_FROM_GOLD = "teacher_label_differs_from_gold"
SHORT_RATIONALE = "rationale_too_short"
LONG_RATIONALE = "rationale_too_long"
LITTLE_AGREEMENT = "too_little_agreement"


@dataclasses.dataclass(frozen=True)
class Filter:
    """What a labelled row must be like to be kept; by default every row is.

    Attributes:
      teacher_label_equals_gold: keep a row only where the teacher's label is the gold label. Rows without either go.
      min_rationale_words: the shortest rationale, in words; a row without a rationale has 0.
      max_rationale_words: the longest rationale, in words; None for any length.
      min_agreement: how many of a row's samples must agree on the teacher's label.

    Raises:
      ValueError: for bounds that no row can meet.
    """

    teacher_label_equals_gold: bool = False
    min_rationale_words: int = 0
    max_rationale_words: int | None = None
    min_agreement: int = 0

    def __post_init__(self) -> None:
        for name in ("min_rationale_words", "max_rationale_words", "min_agreement"):
            if (value := getattr(self, name)) is not None and value < 0:
                raise ValueError(f"Filter: {name} is {value}; it must be at least 0.")
        if self.max_rationale_words is not None and self.max_rationale_words < self.min_rationale_words:
            raise ValueError(
                f"Filter: max_rationale_words is {self.max_rationale_words}, which is less than min_rationale_words, "
                f"{self.min_rationale_words}; no row could be kept."
            )

    def reason(self, row: LabelledRow, same: SameLabel) -> str | None:
        """Why a row goes, or None for one that stays. The first rule it breaks, in the order of the attributes.

        Args:
          row: a row of a labelled folder; see `dsbs_jax/teacher/labelled.py`.
          same: whether two labels are one; see `dsbs_jax.teacher.agreement.same_label`.
        """
        if self.teacher_label_equals_gold:
            if row["label"] is None:
                return NO_GOLD_LABEL
            if row["teacher_label"] is None:
                return NO_TEACHER_LABEL
            if not same(row["teacher_label"], row["label"]):
                return DIFFERS_FROM_GOLD
        words = len((row["rationale"] or "").split())
        if words < self.min_rationale_words:
            return SHORT_RATIONALE
        if self.max_rationale_words is not None and words > self.max_rationale_words:
            return LONG_RATIONALE
        return LITTLE_AGREEMENT if row["agreement"] < self.min_agreement else None
