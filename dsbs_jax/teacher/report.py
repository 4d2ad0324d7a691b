"""The quality report as text and as JSON, and what both and the page (`report_html.py`) say in words."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from dsbs_jax.teacher import parsers
from dsbs_jax.teacher.quality import NO_LABEL, OTHER_LABEL, QUANTILES, Quality, Sample

# A confusion of more classes than these is no table that anyone reads.
WIDEST_CONFUSION = 12
_MOST_CLASSES = 12
# What to do about a failure.
MENDS: Mapping[str, str] = {
    parsers.EMPTY_ANSWER: "the teacher said nothing; see the stop sequences of the prompt",
    parsers.UNFINISHED_THINKING: "the answer ended while the teacher was thinking; raise max_tokens",
    parsers.NO_MARKER: "the answer was cut off or does not follow the layout; raise max_tokens, or show it better",
    parsers.NO_MATCH: "the answer was cut off or does not follow the pattern; raise max_tokens, or change the pattern",
    parsers.SEVERAL_MARKERS: "the answer goes on after its label; add a stop sequence to the prompt",
    parsers.NO_LABEL: "the marker is there and no label follows; raise max_tokens, or show the layout more clearly",
    parsers.NO_RATIONALE: "the teacher gave a label without a reason; ask for the reason first",
    parsers.LABEL_OUTSIDE_SET: "the row has no such label as the teacher gave; name the labels in the instruction",
}


def as_json(quality: Quality, about: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The report as JSON values: the fields of `Quality`, and accuracy, classes, quantiles and findings."""
    return {
        "about": dict(about or {}),
        **dataclasses.asdict(quality),
        "rationale_words": {str(length): rows for length, rows in quality.rationale_words.items()},
        "accuracy": quality.accuracy,
        "classes": {gold: {"rows": rows, "correct": right} for gold, (rows, right) in quality.classes().items()},
        "rationale_word_quantiles": {str(percent): quality.quantile(percent) for percent in QUANTILES},
        "findings": findings(quality),
    }


def as_text(quality: Quality, about: Mapping[str, str] | None = None) -> str:
    """The report for a terminal. What a teacher wrote is shown as Python literals: no escape sequence gets through."""
    lines = [_plain(f"{name}: {value}") for name, value in (about or {}).items()]
    lines += [
        f"rows: {quality.rows}, read in full: {share(quality.read, quality.rows)}",
        f"with a teacher's label: {share(quality.with_label, quality.rows)}, "
        f"with a rationale: {share(quality.with_rationale, quality.rows)}",
    ]
    if quality.judged:
        lines.append(f"teacher's accuracy: {share(quality.correct, quality.judged)} rows with a gold label")
    classes = sorted(quality.classes().items(), key=lambda item: item[1][1] / item[1][0])
    lines += [f"  {gold!r}: {share(right, rows)}" for gold, (rows, right) in classes[:_MOST_CLASSES]]
    if len(classes) > _MOST_CLASSES:
        lines.append(f"  and {len(classes) - _MOST_CLASSES} classes with more")
    if 0 < len(quality.confusion) <= WIDEST_CONFUSION:
        lines += ["", "gold label (rows) against teacher's label (columns)", *_table(quality)]
    if quality.with_rationale:
        words = ", ".join(f"{percent} %: {quality.quantile(percent)}" for percent in QUANTILES)
        repeated = quality.duplicates
        lines += [
            "",
            f"rationale length in words, quantiles: {words}",
            f"rationales equal to an earlier one: {share(repeated.exact, repeated.texts)}, "
            f"nearly equal to one: {share(repeated.near, repeated.texts)}",
            f"rationales that repeat a demonstration: {quality.leaked}, their question: {quality.copied}",
        ]
    for level in quality.agreement:
        right = f", right: {share(level.correct, level.judged)}" if level.judged else ""
        lines.append(
            f"{level.agreement} of {level.samples} samples agree: {share(level.rows, quality.rows)} rows{right}"
        )
    if quality.prompt_tokens or quality.completion_tokens:
        lines.append(f"tokens: {quality.prompt_tokens} in prompts, {quality.completion_tokens} in answers")
    for reason, rows in quality.failures.items():
        lines += ["", f"{_plain(reason)}: {share(rows, quality.rows)} rows"]
        lines += _shown(quality.failure_samples[reason], "answer")
    for title, samples in (("wrong", quality.wrong_samples), ("right", quality.right_samples)):
        if samples:
            lines += ["", f"{title}, for example:", *_shown(samples, "rationale")]
    if found := findings(quality):
        lines += ["", "to look at:", *(f"- {_plain(finding)}" for finding in found)]
    return "\n".join(lines)


def findings(quality: Quality) -> list[str]:
    """What deserves a look, in sentences; empty where nothing does."""
    found = []
    rows = max(1, quality.rows)
    for reason, count in quality.failures.items():
        if count >= 0.02 * rows:
            mend = MENDS.get(reason)
            found.append(f"{percent(count, rows)} of the rows failed with {reason}{f': {mend}' if mend else ''}.")
    if not quality.judged and quality.rows:
        found.append(
            "No row has a gold label, so nobody knows how often the teacher is right; label some rows by hand."
        )
    classes = quality.classes()
    if len(classes) > 1 and quality.accuracy is not None:
        worst, (total, right) = min(classes.items(), key=lambda item: item[1][1] / item[1][0])
        if right / total < quality.accuracy - 0.1:
            often = max(
                ((label, n) for label, n in quality.confusion[worst].items() if label != worst),
                key=lambda item: item[1],
            )
            found.append(
                f"The teacher is right on {percent(right, total)} of the rows whose gold label is {worst!r}, against "
                f"{percent(quality.correct, quality.judged)} of all; most often it says {often[0]!r} instead."
            )
    if quality.leaked:
        found.append(
            f"{quality.leaked} rationales repeat a good part of one of the prompt's demonstrations; see the examples."
        )
    texts = max(1, quality.duplicates.texts)
    if quality.copied >= 0.02 * texts:
        found.append(f"{percent(quality.copied, texts)} of the rationales say little more than their question.")
    if quality.duplicates.exact + quality.duplicates.near >= 0.1 * texts:
        repeated = percent(quality.duplicates.exact + quality.duplicates.near, texts)
        found.append(f"{repeated} of the rationales repeat an earlier one; a student learns little from them.")
    unanimous = [level for level in quality.agreement if level.judged and level.agreement == level.samples > 1]
    others = [level for level in quality.agreement if level.judged and level.agreement < level.samples]
    if unanimous and others:
        together = percent(sum(level.correct for level in unanimous), sum(level.judged for level in unanimous))
        apart = percent(sum(level.correct for level in others), sum(level.judged for level in others))
        found.append(
            f"Where all samples agree the teacher is right on {together} of the rows, elsewhere on {apart}; the "
            f"filter's min_agreement keeps the former."
        )
    return found


def percent(part: int, whole: int) -> str:
    """`12.3 %`; a part that is not nothing never reads as 0, nor one that is not all as 100."""
    value = 100 * part / whole if whole else 0.0
    text = f"{value:.1f}"
    if text == "0.0" and part:
        text = "< 0.1"
    if text == "100.0" and part < whole:
        text = "> 99.9"
    return f"{text.removesuffix('.0')} %"


def share(part: int, whole: int) -> str:
    """`1,221 (12.3 %) of 9,900`."""
    return f"{part:,} ({percent(part, whole)}) of {whole:,}"


def confusion_columns(quality: Quality) -> list[str]:
    """The columns of the confusion table: the classes, then what is none of them, where it occurs."""
    used = {column for row in quality.confusion.values() for column in row}
    extra = [column for column in (OTHER_LABEL, NO_LABEL) if column in used]
    classes = [*quality.confusion, *sorted(used - set(quality.confusion) - set(extra))]
    return [*classes, *extra]


def _table(quality: Quality) -> list[str]:
    columns = confusion_columns(quality)
    rows = [["", *map(_plain, columns)]]
    for gold, row in quality.confusion.items():
        rows.append([_plain(gold), *(f"{row.get(column, 0):,}" for column in columns)])
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]


def _shown(samples: list[Sample], field: str) -> list[str]:
    lines = []
    for sample in samples:
        text = getattr(sample, field)
        labels = f"gold {sample.label!r}, teacher {sample.teacher_label!r}: " if field == "rationale" else ""
        lines.append(f"  {_plain(sample.id)}: {labels}{None if text is None else text[:200]!r}")
    return lines


def _plain(text: str) -> str:
    """A text as it is if it can be printed on one line, else as a literal."""
    return text if text.isprintable() else repr(text)
