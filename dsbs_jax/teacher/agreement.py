"""Self-consistency: several samples of one row become one output of the teacher (Wang et al., 2023)."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Sequence

from dsbs_jax.metrics.accuracy import METRICS
from dsbs_jax.schema import TeacherOutput
from dsbs_jax.teacher.parsers import NO_RATIONALE

SameLabel = Callable[[str, str], bool]


@dataclasses.dataclass(frozen=True, slots=True)
class Agreement:
    """What the samples of one row say together.

    Attributes:
      output: the label of most samples and a rationale that leads to it.
      agreement: how many samples have that label; 0 where none has a label.
      samples: how many there were.
    """

    output: TeacherOutput
    agreement: int
    samples: int


def same_label(metric: str) -> SameLabel:
    """Whether two labels are one: equal values for `equation`; for `exact` equal texts, letter case apart.

    Raises:
      ValueError: for an unknown metric.
    """
    if metric not in METRICS:
        raise ValueError(f"There is no metric {metric!r}; the metrics are {', '.join(METRICS)}.")
    match = METRICS[metric]
    return match if metric == "equation" else lambda a, b: match(a.casefold(), b.casefold())


def agree(outputs: Sequence[TeacherOutput], same: SameLabel) -> Agreement:
    """The majority label of a row's samples.

    Samples without a label have no vote. Of labels with equally many votes, the one that was seen first wins, spelled
    as it was then. The rationale is that of the first sample which has this label and a rationale. Where no sample has
    a label, the first rationale stands alone, with the failure that most samples have.

    Args:
      outputs: the parsed samples in order of their sample index, their labels already checked against the label set.
      same: whether two labels are one; see `same_label`.

    Raises:
      ValueError: without a sample.
    """
    if not outputs:
        raise ValueError("There are no samples to agree on; a row that nobody answered has no output.")
    groups: list[list[TeacherOutput]] = []
    for output in outputs:
        if output.label is None:
            continue
        for group in groups:
            if same(output.label, str(group[0].label)):
                group.append(output)
                break
        else:
            groups.append([output])
    if not groups:
        failure = collections.Counter(output.failure for output in outputs).most_common(1)[0][0]
        rationale = next((output.rationale for output in outputs if output.rationale), None)
        return Agreement(TeacherOutput(rationale, None, failure), 0, len(outputs))
    # The first of the largest: groups stand in the order in which they were first seen.
    majority = max(groups, key=len)
    rationale = next((output.rationale for output in majority if output.rationale), None)
    failure = None if rationale else majority[0].failure or NO_RATIONALE
    return Agreement(TeacherOutput(rationale, majority[0].label, failure), len(majority), len(outputs))
