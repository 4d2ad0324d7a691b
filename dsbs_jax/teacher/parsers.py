"""Reading a rationale and a label out of a teacher's raw answer.

A teacher that was shown demonstrations writes `rationale, marker, label` and then often runs on into a next question
of its own invention, until its token limit cuts it off. The rules per dataset are those of the paper's reference code;
where they read a valid label, so does this. An answer that breaks a rule is never an error and never a blank target:
it becomes a `TeacherOutput` whose `failure` names what is missing. Nothing here takes more than linear time.

Repairs beyond the reference, for all parsers of this module:
- what a reasoning model thinks, up to the last `</think>` or `</thinking>`, is no part of the answer; an answer that
  ends while still thinking is `unfinished_thinking`;
- Markdown's bold marks are removed where they come in pairs (`**Answer:** neutral`), so that no `2 ** 3` is touched;
- white space around rationale and label is removed.
And for `MarkerParser`:
- the prompt's cue, echoed at the start of the answer, is removed;
- a marker that is missing as it is written is looked for in any letter case;
- a label that is a `line` ends at its line, and loses punctuation around it and quotes (`entailment\\n\\nPre`, cut off
  inside the next `Premise`, reads as `entailment`).
None of them changes what is read of any answer of PaLM in the reference's data. (The first two cannot: no such answer
holds a tag or a bold mark.) Labels are checked against a row's choices where the answers are joined with the rows
(`data/dataset.py`).
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

from dsbs_jax.schema import TeacherOutput

EMPTY_ANSWER = "empty_answer"
UNFINISHED_THINKING = "unfinished_thinking"
NO_MARKER = "no_marker"
NO_MATCH = "no_match"
SEVERAL_MARKERS = "several_markers"
NO_LABEL = "no_label"
NO_RATIONALE = "no_rationale"
# Of an answer that was read: the row, or the label set, does not have this label (`data/dataset.py`).
LABEL_OUTSIDE_SET = "label_outside_set"

_THINKING = ("<think>", "<thinking>")
_THOUGHT = ("</think>", "</thinking>")
# A pair of bold marks within a line: the first opens a word, the second ends one. Linear: a search that fails has read
# no further than the next `**`, where the next one may begin.
_BOLD = re.compile(r"""(?<![^\s(\["':])\*\*(?=[^\s*])((?:[^*\n]|\*(?!\*))*)(?<=[^\s*])\*\*(?![^\s.,;:!?)\]"'])""")
_CHOICE = re.compile(r"\(.\)")
_QUOTES = ('""', "''", "``", "\u201c\u201d", "\u2018\u2019")


def _spoken(answer: str) -> tuple[str, str | None]:
    """The answer without what was thought before it and without bold marks; or a reason why there is none."""
    end = max(answer.rfind(tag) + len(tag) if tag in answer else 0 for tag in _THOUGHT)
    if not end and answer.lstrip().startswith(_THINKING):
        return "", UNFINISHED_THINKING
    text = answer[end:]
    if "**" in text:
        text = _BOLD.sub(r"\1", text)
    return text, None if text.strip() else EMPTY_ANSWER


def _rest(text: str) -> str:
    return text.strip().removesuffix(".").rstrip()


def _line(text: str) -> str:
    lines = text.strip().lstrip(": \t\r\n").splitlines()
    label = lines[0].rstrip(" \t.,;:!") if lines else ""
    if label[:1] + label[-1:] in _QUOTES and len(label) > 1:
        label = label[1:-1].strip(" \t.,;:!")
    return label


def _choice(text: str) -> str:
    parts = _CHOICE.split(text, maxsplit=2)
    return _rest(parts[1]) if len(parts) > 1 else ""


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
        line without punctuation around it (`line`), the text after `(x)` without a final full stop (`choice`), or the
        expression in parentheses, with them (`parentheses`).
      stop_in_label: look for `stop` after the first marker only, and let a second marker end the label too. Otherwise
        the answer is cut at `stop` first, and what is left must hold the marker once.
      cue: what the prompt ends with, e.g. `A:`; removed where the answer begins with it.
    """

    marker: str
    stop: str = ""
    label: Literal["rest", "line", "choice", "parentheses"] = "rest"
    stop_in_label: bool = False
    cue: str = ""

    def __post_init__(self) -> None:
        if not self.marker:
            raise ValueError("MarkerParser: marker is empty; give the text that stands between rationale and label.")
        if self.label not in _READERS:
            raise ValueError(f"MarkerParser: label is {self.label!r}; it must be one of {', '.join(_READERS)}.")

    def __call__(self, answer: str) -> TeacherOutput:
        """Reads one raw answer; any string gives a result."""
        answer, failure = _spoken(answer)
        if failure:
            return TeacherOutput(None, None, failure)
        if self.cue and answer.lstrip().startswith(self.cue):
            answer = answer.lstrip()[len(self.cue) :]
        text = answer if self.stop_in_label or not self.stop else answer.partition(self.stop)[0]
        if self.marker not in text:
            text = re.sub(re.escape(self.marker), lambda match: self.marker, text, flags=re.IGNORECASE)
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


@dataclasses.dataclass(frozen=True)
class RegexParser:
    """Reads answers with a regular expression.

    The expression is RE2's (https://github.com/google/re2/wiki/Syntax): Python's without look-around and
    back-references, and in exchange its time is linear in the answer, whatever the pattern and the answer.

    Attributes:
      pattern: searched for in the answer; its groups `(?P<rationale>...)` and `(?P<label>...)` are what is read. `(?s)`
        at its start lets a full stop match line breaks too, `(?i)` ignores letter case.
      stop: the text that begins the invented next question; empty where answers never run on. The answer is cut there
        first.
    """

    pattern: str
    stop: str = ""

    def __post_init__(self) -> None:
        missing = {"rationale", "label"} - set(_re2(self.pattern).groupindex)
        if missing:
            raise ValueError(
                f"RegexParser: the pattern {self.pattern!r} has no group {sorted(missing)[0]}; write "
                f"(?P<{sorted(missing)[0]}>...) around what is to be read."
            )

    def __call__(self, answer: str) -> TeacherOutput:
        """Reads one raw answer; any string gives a result."""
        text, failure = _spoken(answer)
        if failure:
            return TeacherOutput(None, None, failure)
        if self.stop:
            text = text.partition(self.stop)[0]
        # RE2 reads UTF-8, which has no lone surrogates.
        match = _re2(self.pattern).search(text.encode("utf-8", "replace").decode("utf-8"))
        if match is None:
            return TeacherOutput(None, None, NO_MATCH)
        rationale, label = ((match.group(name) or "").strip() or None for name in ("rationale", "label"))
        if label is None:
            return TeacherOutput(rationale, None, NO_LABEL)
        return TeacherOutput(rationale, label, None if rationale else NO_RATIONALE)


@functools.cache
def _re2(pattern: str) -> Any:
    try:
        import re2
    except ImportError:
        raise ImportError("RegexParser needs the package google-re2: pip install google-re2.") from None
    options = re2.Options()
    options.log_errors = False
    try:
        return re2.compile(pattern, options)
    except re2.error as error:
        reason = error.args[0].decode() if isinstance(error.args[0], bytes) else error
        raise ValueError(
            f"RegexParser: the pattern {pattern!r} is not one of RE2 ({reason}), which knows neither look-around nor "
            f"back-references."
        ) from None


Parser = MarkerParser | RegexParser


def parser_from_json(fields: Mapping[str, Any]) -> Parser:
    """The parser that `dataclasses.asdict` made these fields from."""
    return RegexParser(**fields) if "pattern" in fields else MarkerParser(**fields)


PARSERS: dict[str, MarkerParser] = {
    "cqa": MarkerParser("So the answer is", stop="Q:", label="choice", cue="A:"),
    "svamp": MarkerParser("The answer is", stop="Q:", label="parentheses", cue="A:"),
    "asdiv": MarkerParser("The answer is", stop="Q:", label="parentheses", cue="A:"),
    "esnli": MarkerParser("Answer:", stop="Premise", label="line", stop_in_label=True, cue="Reasoning:"),
    "anli1": MarkerParser("So the answer is", stop="Premise:", label="line", cue="Reasoning:"),
    "bestiary": MarkerParser("So the answer is", stop="Q:", label="line", cue="A:"),
}
