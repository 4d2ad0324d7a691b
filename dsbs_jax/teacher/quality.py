"""How good a teacher's labels and rationales are: one pass over the labelled rows.

Memory does not grow with the rows but for what finds duplicates (`duplicates.py`).
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Sequence

from dsbs_jax.teacher.agreement import SameLabel
from dsbs_jax.teacher.duplicates import DuplicateFinder, Duplicates, shingles, words_of
from dsbs_jax.teacher.labelled import LabelledRow
from dsbs_jax.teacher.prompts import Prompt

# Gold labels beyond this many are no classes to report one by one: without a label set, and with one.
_MOST_CLASSES = 24
_LARGEST_LABEL_SET = 200
NO_LABEL = "(no label)"
OTHER_LABEL = "(other)"
# A rationale that holds half of the three-word sequences of a demonstration's has been copied from it, and one that
# holds little else than the question's says nothing new. Short texts share theirs by chance.
_LEAKED = 0.5
_COPIED = 0.8
_FEWEST_SHINGLES = 4
_SHOWN_CHARACTERS = 600
QUANTILES = (0, 5, 25, 50, 75, 95, 100)


@dataclasses.dataclass(frozen=True)
class Sample:
    """A row to look at; long texts are cut.

    Attributes:
      id: the row's.
      input: its input.
      label: its gold label, or None.
      teacher_label: the teacher's, or None.
      rationale: the teacher's, or None.
      answer: the first raw answer, or None.
    """

    id: str
    input: str
    label: str | None
    teacher_label: str | None
    rationale: str | None
    answer: str | None


@dataclasses.dataclass(frozen=True)
class AgreementLevel:
    """The rows of which `agreement` of `samples` samples agree with the label: how many, and how many are right."""

    agreement: int
    samples: int
    rows: int
    judged: int
    correct: int


@dataclasses.dataclass(frozen=True)
class Quality:
    """The report's numbers.

    Attributes:
      rows: all rows.
      read: rows whose rationale and label were both read.
      with_label: rows with a teacher's label.
      with_rationale: rows with a rationale.
      judged: rows with a gold label and an answer.
      correct: of those, the ones whose teacher's label is the gold label. A row without a teacher's label is wrong.
      confusion: gold label -> teacher's label (or `(no label)`, `(other)`) -> rows; empty where labels are no classes.
      failures: rows by reason code.
      failure_samples: some rows for each reason.
      wrong_samples: some rows with another label than the gold one.
      right_samples: some rows with the gold label.
      rationale_words: rationale length in words -> rows.
      duplicates: rationales that repeat others.
      leaked: rows whose rationale repeats one of the prompt's demonstrations.
      leaked_samples: some of them.
      copied: rows whose rationale repeats the question.
      copied_samples: some of them.
      agreement: how the samples agreed, from most to least; empty where every row has one sample.
      prompt_tokens: of all answers that told.
      completion_tokens: of all answers that told.
    """

    rows: int
    read: int
    with_label: int
    with_rationale: int
    judged: int
    correct: int
    confusion: dict[str, dict[str, int]]
    failures: dict[str, int]
    failure_samples: dict[str, list[Sample]]
    wrong_samples: list[Sample]
    right_samples: list[Sample]
    rationale_words: dict[int, int]
    duplicates: Duplicates
    leaked: int
    leaked_samples: list[Sample]
    copied: int
    copied_samples: list[Sample]
    agreement: list[AgreementLevel]
    prompt_tokens: int
    completion_tokens: int

    @property
    def accuracy(self) -> float | None:
        """Of the judged rows, the fraction with the gold label; None where no row has one."""
        return self.correct / self.judged if self.judged else None

    def classes(self) -> dict[str, tuple[int, int]]:
        """Gold label -> (rows, of them with that label of the teacher's); empty where labels are no classes."""
        return {gold: (sum(row.values()), row.get(gold, 0)) for gold, row in self.confusion.items()}

    def quantile(self, percent: int) -> int:
        """The smallest length in words that `percent` % of the rationales do not exceed; 0 where there is none."""
        total = sum(self.rationale_words.values())
        below = 0
        for length in sorted(self.rationale_words):
            below += self.rationale_words[length]
            if 100 * below >= percent * total and below:
                return length
        return 0


def measure(
    rows: Iterable[LabelledRow],
    same: SameLabel,
    *,
    label_set: Sequence[str] = (),
    prompt: Prompt | None = None,
    examples: int = 5,
) -> Quality:
    """Measures labelled rows, which may be read from disk as they are asked for.

    Args:
      rows: rows of a labelled folder.
      same: whether two labels are one; see `dsbs_jax.teacher.agreement.same_label`.
      label_set: the classes; empty to take the gold labels as classes, if they are few.
      prompt: what the teacher was shown, to find demonstrations in its rationales; None not to look.
      examples: how many rows to show for each finding.

    Raises:
      ValueError: for a row that is none of a labelled folder.
    """
    counts: collections.Counter[str] = collections.Counter()
    failures: collections.Counter[str] = collections.Counter()
    samples = _Samples(examples)
    confusion = _Confusion(label_set, same)
    lengths: collections.Counter[int] = collections.Counter()
    levels: dict[tuple[int, int], collections.Counter[str]] = collections.defaultdict(collections.Counter)
    finder = DuplicateFinder()
    shown = _Demonstrations(prompt)
    for number, row in enumerate(rows):
        try:
            gold, label, rationale = row["label"], row["teacher_label"], row["rationale"]
            failure, agreement, answered, question = row["failure"], row["agreement"], row["samples"], row["input"]
        except (KeyError, TypeError):
            raise ValueError(f"Row {number} is no row of a labelled folder: {str(row)[:120]}.") from None
        correct = gold is not None and label is not None and same(label, gold)
        found = {
            "rows": True,
            "read": label is not None and rationale is not None,
            "with_label": label is not None,
            "with_rationale": rationale is not None,
            "judged": gold is not None and answered > 0,
            "correct": correct,
        }
        counts.update(name for name, is_so in found.items() if is_so)
        counts["prompt_tokens"] += row.get("prompt_tokens") or 0
        counts["completion_tokens"] += row.get("completion_tokens") or 0
        levels[agreement, answered].update(name for name in ("rows", "judged", "correct") if found[name])
        if failure:
            failures[failure] += 1
            samples.add(f"failure {failure}", row)
        if found["judged"]:
            confusion.add(gold, label)
            if label is not None:
                samples.add("right" if correct else "wrong", row)
        if rationale is not None:
            lengths[len(rationale.split())] += 1
            words = words_of(rationale)
            hashes = shingles(words)
            finder.add(rationale, words, hashes)
            if shown.leaked(hashes):
                counts["leaked"] += 1
                samples.add("leaked", row)
            if _copied(hashes, question):
                counts["copied"] += 1
                samples.add("copied", row)
    several = any(answered > 1 for _, answered in levels)
    return Quality(
        **{name: counts[name] for name in ("rows", "read", "with_label", "with_rationale", "judged", "correct")},
        confusion=confusion.table(),
        failures=dict(failures.most_common()),
        failure_samples={code: samples[f"failure {code}"] for code, _ in failures.most_common()},
        wrong_samples=samples["wrong"],
        right_samples=samples["right"],
        rationale_words=dict(sorted(lengths.items())),
        duplicates=finder.result(),
        leaked=counts["leaked"],
        leaked_samples=samples["leaked"],
        copied=counts["copied"],
        copied_samples=samples["copied"],
        agreement=[
            AgreementLevel(agreement, answered, of["rows"], of["judged"], of["correct"])
            for (agreement, answered), of in sorted(levels.items(), key=lambda level: level[0][::-1], reverse=True)
        ]
        if several
        else [],
        prompt_tokens=counts["prompt_tokens"],
        completion_tokens=counts["completion_tokens"],
    )


class _Samples:
    """The first rows of each kind."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._rows: dict[str, list[Sample]] = collections.defaultdict(list)

    def __getitem__(self, kind: str) -> list[Sample]:
        return self._rows.get(kind, [])

    def add(self, kind: str, row: LabelledRow) -> None:
        if len(self._rows[kind]) < self._most:
            answer = next(iter(row.get("answers") or ()), None)
            texts = (row["label"], row["teacher_label"], row["rationale"], answer)
            cut = (None if text is None else _cut(str(text)) for text in texts)
            self._rows[kind].append(Sample(str(row.get("id")), _cut(str(row["input"])), *cut))


class _Confusion:
    """Gold against teacher's labels, as long as the gold labels are few."""

    def __init__(self, label_set: Sequence[str], same: SameLabel) -> None:
        self._same = same
        self._most = _LARGEST_LABEL_SET if label_set else _MOST_CLASSES
        self._table: dict[str, collections.Counter[str]] = {label: collections.Counter() for label in label_set}

    def add(self, gold: str, label: str | None) -> None:
        if len(self._table) > self._most:
            return
        row = self._table.setdefault(gold, collections.Counter())
        # Spelled differently or not, the gold label is one column; labels outside the classes are not bounded.
        column = NO_LABEL if label is None else gold if self._same(label, gold) else label
        row[column if column in row or len(row) < _LARGEST_LABEL_SET else OTHER_LABEL] += 1

    def table(self) -> dict[str, dict[str, int]]:
        if len(self._table) > self._most:
            return {}
        table = {}
        for gold, row in self._table.items():
            columns: collections.Counter[str] = collections.Counter()
            for label, rows in row.items():
                columns[label if label in self._table or label == NO_LABEL else OTHER_LABEL] += rows
            if columns:
                table[gold] = dict(columns)
        return table


class _Demonstrations:
    """Which demonstration's rationale a rationale repeats, in time that does not grow with their number."""

    def __init__(self, prompt: Prompt | None) -> None:
        self._sizes: list[int] = []
        self._holders: dict[int, list[int]] = collections.defaultdict(list)
        for demonstration in prompt.demonstrations if prompt else ():
            hashes = shingles(words_of(demonstration.rationale))
            for value in hashes:
                self._holders[value].append(len(self._sizes))
            self._sizes.append(max(len(hashes), _FEWEST_SHINGLES))

    def leaked(self, hashes: list[int]) -> bool:
        shared = collections.Counter(number for value in hashes for number in self._holders.get(value, ()))
        return any(count >= _LEAKED * self._sizes[number] for number, count in shared.items())


def _copied(hashes: list[int], question: str) -> bool:
    if len(hashes) < _FEWEST_SHINGLES:
        return False
    asked = set(shingles(words_of(question)))
    return sum(value in asked for value in hashes) >= _COPIED * len(hashes)


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]} ..."
