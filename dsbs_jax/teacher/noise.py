"""Rationales spoiled on purpose: how much noise does the gain of step-by-step survive?"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from dsbs_jax.schema import Example

WRONG = "rationale exchanged for another row's"
MISSING = "rationale removed"


@dataclasses.dataclass(frozen=True)
class RationaleNoise:
    """Which share of the rationales is spoiled, and how. Labels stay as they are.

    A wrong rationale is that of another row, so that texts, lengths and words are those of the teacher, but it explains
    something else. Larger shares of one seed contain smaller ones, and no rationale is both wrong and missing.

    Attributes:
      wrong: share of the rationales that is exchanged for another row's, in [0, 1]; rounded down to whole rows.
      missing: share of the rationales that is removed; likewise.
      seed: which ones.

    Raises:
      ValueError: for shares that do not exist, or that sum to more than 1.
    """

    wrong: float = 0.0
    missing: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.wrong, self.missing) < 0 or self.wrong + self.missing > 1:
            raise ValueError(
                f"Of the rationales {self.wrong} shall be wrong and {self.missing} missing; these are shares between 0 "
                "and 1, together at most 1."
            )

    def apply(self, examples: Sequence[Example]) -> tuple[list[Example], dict[str, int]]:
        """The examples, in their order, with spoiled rationales; and how many of each kind.

        Raises:
          ValueError: rationales shall be exchanged, but all are the same.
        """
        rows = [i for i, example in enumerate(examples) if example.rationale]
        order = [rows[i] for i in np.argsort(np.random.Philox(key=self.seed).random_raw(len(rows)), kind="stable")]
        # The inner rounding guards against 0.07 * 100 = 7.000000000000001.
        wrong, missing = (math.floor(round(share * len(order), 6)) for share in (self.wrong, self.missing))
        if wrong and len({examples[row].rationale for row in rows}) < 2:
            raise ValueError("No rationale can be exchanged for another: all rows have the same one.")
        out = list(examples)
        for place in range(wrong):
            # Half the way round: whose rationale a row gets does not depend on the share.
            donor = (place + len(order) // 2) % len(order)
            while examples[order[donor]].rationale == examples[order[place]].rationale:
                donor = (donor + 1) % len(order)
            out[order[place]] = _with_rationale(examples[order[place]], examples[order[donor]].rationale)
        for row in order[len(order) - missing :]:
            out[row] = _with_rationale(examples[row], None)
        return out, {what: count for what, count in ((WRONG, wrong), (MISSING, missing)) if count}


def _with_rationale(example: Example, rationale: str | None) -> Example:
    assert example.teacher is not None
    return dataclasses.replace(example, teacher=dataclasses.replace(example.teacher, rationale=rationale))
