"""Reading a rationale and a label out of a teacher's raw answer.

A teacher that was shown demonstrations writes `rationale, marker, label` and then often runs on into a next question
of its own invention, until its token limit cuts it off. The rules per dataset are those of the paper's reference code;
where they read a valid label, so does this. An answer that breaks a rule is never an error and never a blank target:
it becomes a `TeacherOutput` whose `failure` names what is missing. Nothing here takes more than linear time.

Repairs beyond the reference: white space around rationale and label is removed; an NLI label ends at its line or at a
full stop that is or is not there (`entailment\\n\\nPre`, cut off inside the next `Premise`, reads as `entailment`).
Labels are checked against a row's choices where the answers are joined with the rows (`data/dataset.py`).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Literal

from dsbs_jax.schema import TeacherOutput

EMPTY_ANSWER = "empty_answer"
NO_MARKER = "no_marker"
SEVERAL_MARKERS = "several_markers"
NO_LABEL = "no_label"
NO_RATIONALE = "no_rationale"

_CHOICE = re.compile(r"\(.\)")


def _rest(text: str) -> str:
    return text.strip().removesuffix(".").rstrip()


def _line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[0].rstrip(" \t.,;:!") if lines else ""


def _choice(text: str) -> str:
    parts = _CHOICE.split(text, maxsplit=2)
    return parts[1].strip().removesuffix(".") if len(parts) > 1 else ""


def _parentheses(text: str) -> str:
    # As the greedy pattern "(.*)" finds it, on the first line that holds a pair; `re.search` would need quadratic time.
    for line in text.split("\n"):
        start, end = line.find("("), line.rfind(")")
        if 0 <= start < end:
            return line[start : end + 1]
    return ""


_READERS: dict[str, Callable[[str], str]] = {
    "rest": _rest,
    "line": _line,
    "choice": _choice,
    "parentheses": _parentheses,
}


@dataclasses.dataclass(frozen=True)
class MarkerParser:
    """Reads answers of the form `rationale, marker, label`.

    Attributes:
      marker: the text between rationale and label, e.g. `So the answer is`.
      stop: the text that begins the invented next question, e.g. `Q:`; empty where answers never run on.
      label: what of the text after the marker is the label: all of it without a final full stop (`rest`), its first
        line without punctuation at the end (`line`), the text after `(x)` without a final full stop (`choice`), or the
        expression in parentheses, with them (`parentheses`).
      stop_in_label: look for `stop` after the first marker only, and let a second marker end the label too. Otherwise
        the answer is cut at `stop` first, and what is left must hold the marker once.
    """

    marker: str
    stop: str = ""
    label: Literal["rest", "line", "choice", "parentheses"] = "rest"
    stop_in_label: bool = False

    def __post_init__(self) -> None:
        if not self.marker:
            raise ValueError("MarkerParser: marker is empty; give the text that stands between rationale and label.")
        if self.label not in _READERS:
            raise ValueError(f"MarkerParser: label is {self.label!r}; it must be one of {', '.join(_READERS)}.")

    def __call__(self, answer: str) -> TeacherOutput:
        """Reads one raw answer; any string gives a result."""
        if not answer.strip():
            return TeacherOutput(None, None, EMPTY_ANSWER)
        text = answer if self.stop_in_label or not self.stop else answer.partition(self.stop)[0]
        parts = text.split(self.marker)
        if len(parts) == 1:
            # Cut off before the marker: what is there is not known to be a whole rationale.
            return TeacherOutput(None, None, NO_MARKER)
        if self.stop_in_label:
            after = self._label_part(text)
        elif len(parts) > 2:
            return TeacherOutput(None, None, SEVERAL_MARKERS)
        else:
            after = parts[1]
        rationale, label = parts[0].strip() or None, _READERS[self.label](after) or None
        if label is None:
            return TeacherOutput(rationale, None, NO_LABEL)
        return TeacherOutput(rationale, label, None if rationale else NO_RATIONALE)

    def _label_part(self, text: str) -> str:
        # The reference looks for the label behind "marker + space"; a marker at the end of a line comes second.
        spaced = self.marker + " "
        after = text.split(spaced if spaced in text else self.marker, maxsplit=2)[1]
        return after.partition(self.stop)[0] if self.stop else after


PARSERS: dict[str, Callable[[str], TeacherOutput]] = {
    "cqa": MarkerParser("So the answer is", stop="Q:", label="choice"),
    "svamp": MarkerParser("The answer is", stop="Q:", label="parentheses"),
    "asdiv": MarkerParser("The answer is", stop="Q:", label="parentheses"),
    "esnli": MarkerParser("Answer:", stop="Premise", label="line", stop_in_label=True),
    "anli1": MarkerParser("So the answer is", stop="Premise:", label="rest"),
}
