"""What a dataset is: where its rows come from, and how they become `Example`s with a teacher's answers joined.

A module of `tasks/` describes one dataset as a `Dataset`. Everything that holds for all datasets is done here, once:
joining the teacher's answers row by row, checking labels against the label set, holding out the splits that a source
lacks, and counting every row that is skipped, with its reason.
"""

from __future__ import annotations

import collections
import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from dsbs_jax.data.accounts import LoadedSplit, account
from dsbs_jax.metrics import equation
from dsbs_jax.metrics.accuracy import score
from dsbs_jax.schema import Example, TeacherOutput
from dsbs_jax.teacher.agreement import same_label
from dsbs_jax.teacher.answers import answer_files, read_answers
from dsbs_jax.teacher.filters import Filter
from dsbs_jax.teacher.labelled import labelled_file, output_of, read_labelled
from dsbs_jax.teacher.noise import RationaleNoise
from dsbs_jax.teacher.parsers import LABEL_OUTSIDE_SET

SPLITS = ("train", "validation", "test")
DEFAULT_TEACHER = "llm"
Value = int | float | str


@dataclasses.dataclass(frozen=True)
class Rows:
    """The rows of one split as a source holds them, before hold-out and without a teacher.

    Attributes:
      examples: in the order of the source; a generated dataset may set their `teacher` itself.
      where: the file or hub name, for messages.
      folder: the dataset's folder, in which teachers' answers lie; None where there can be none.
      answers_split: the split whose answer files belong to these rows.
      extra: unlabelled inputs from elsewhere, added to `train` after the hold-out.
      skipped: rows the source already left out, by reason.
      answers: of a generated dataset: the raw answers of the teacher of a name to these rows; it raises ValueError for
        a name that it does not know.
    """

    examples: Sequence[Example]
    where: str
    folder: Path | None = None
    answers_split: str = "train"
    extra: Rows | None = None
    skipped: Mapping[str, int] = dataclasses.field(default_factory=dict)
    answers: Callable[[str], Sequence[str]] | None = None


@dataclasses.dataclass(frozen=True)
class Dataset:
    """One dataset: how to read it, and what its labels are.

    Attributes:
      name: as in `dsbs_NAME_label` and in folder names.
      read: `read(split, data_dir, **arguments) -> Rows` for a split of `source_splits`. Arguments it understands are
        its keyword-only parameters, whose defaults must be an int, a float or a str.
      source_splits: the splits that the source has. Of the others, `test` then `validation` is held out of `train`.
      metric: how predictions are compared with labels, `exact` or `equation`.
      label_set: the labels that exist; empty where each example has its own `choices`, or where labels are equations.
      parse: reads one raw answer of a teacher; None where the rows bring the teacher's outputs themselves.
      arguments: (name, value) pairs passed to `read`; see `with_arguments`.
      holdout_percent: how much of the labelled train rows is held out for a split that the source lacks, rounded up.
      vocabulary_file: a SentencePiece model of the dataset's own, without sentinels; None for T5's.
    """

    name: str
    read: Callable[..., Rows]
    source_splits: tuple[str, ...] = SPLITS
    metric: str = "exact"
    label_set: tuple[str, ...] = ()
    parse: Callable[[str], TeacherOutput] | None = None
    arguments: tuple[tuple[str, Value], ...] = ()
    holdout_percent: int = 10
    vocabulary_file: str | None = None

    def __post_init__(self) -> None:
        if "train" not in self.source_splits or not set(self.source_splits) <= set(SPLITS):
            raise ValueError(
                f"Dataset {self.name!r}: source_splits is {self.source_splits}; it must hold 'train' and only names "
                f"of {', '.join(SPLITS)}."
            )

    def argument_defaults(self) -> dict[str, Value]:
        """The arguments that `read` understands, with their defaults."""
        parameters = inspect.signature(self.read).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}

    def with_arguments(self, arguments: Sequence[tuple[str, Value]] = (), **more: Value) -> Dataset:
        """This dataset with other arguments for its `read`.

        Raises:
          ValueError: for an argument that `read` does not have, or a value of another type than its default's.
        """
        defaults = self.argument_defaults()
        merged = dict(self.arguments)
        for name, value in (*arguments, *more.items()):
            if name not in defaults:
                known = ", ".join(sorted(defaults)) or "none"
                raise ValueError(f"Dataset {self.name!r} has no argument {name!r}; its arguments are: {known}.")
            wanted = type(defaults[name])
            if not isinstance(value, wanted) and not (wanted is float and isinstance(value, int)):
                raise ValueError(
                    f"Dataset {self.name!r}: argument {name} is {value!r}; it must be of type {wanted.__name__}."
                )
            merged[name] = value
        return dataclasses.replace(self, arguments=tuple(sorted(merged.items())))

    def load(
        self,
        split: str,
        data_dir: str | Path | None = None,
        *,
        teacher: str | None = DEFAULT_TEACHER,
        teacher_filter: Filter | None = None,
        rationale_noise: RationaleNoise = RationaleNoise(),
        holdout_seed: int = 0,
    ) -> LoadedSplit:
        """The examples of a split, with the teacher's outputs joined and every row accounted for.

        Args:
          split: `train`, `validation` or `test`.
          data_dir: the folder that holds one folder per dataset.
          teacher: the name of the folder with the teacher's answers, in the dataset's folder; or the path of a folder
            that `dsbs label` wrote; or a generated dataset's own name for one; or None for no teacher.
          teacher_filter: which rows of train are kept for what the teacher said of them; None for all.
          rationale_noise: which rationales of train are spoiled on purpose.
          holdout_seed: which rows of train become the validation split where the source has none. (A missing test
            split is held out with seed 0 always: which rows test a student must not depend on a run's seed.)

        Raises:
          FileNotFoundError: for files that are not there.
          ValueError: for a split that does not exist or is empty, for a number of answers that differs from the number
            of rows, and for a gold label outside the label set.
        """
        if split not in SPLITS:
            raise ValueError(f"There is no split {split!r}; the splits are {', '.join(SPLITS)}.")
        source_split = split if split in self.source_splits else "train"
        rows = self._source(source_split, data_dir)
        examples = self._join(rows, teacher, required=split == "train")
        if source_split == "train":
            examples = self._held_out(examples, holdout_seed)[split]
        skipped = collections.Counter(rows.skipped if split == source_split else {})
        if split == "train" and rows.extra is not None:
            skipped.update(rows.extra.skipped)
            extra = self._join(rows.extra, teacher, required=False)
            examples = examples + [dataclasses.replace(example, label=None) for example in extra]
        judged = self._judged(examples)
        noise: Mapping[str, int] = {}
        if split == "train" and teacher_filter is not None:
            examples = self._filtered(examples, teacher_filter, skipped)
        if split == "train":
            examples, noise = rationale_noise.apply(examples)
        return account(examples, skipped, training=split == "train", noise=noise, judged=judged)

    def source_rows(self, split: str, data_dir: str | Path | None = None) -> list[Example]:
        """The rows of a split as its source holds them, extra inputs included: what a teacher is asked.

        Raises:
          FileNotFoundError, ValueError: see `load`; also for a split that the source lacks.
        """
        if split not in self.source_splits:
            raise ValueError(
                f"Dataset {self.name!r} has no split {split!r} of its own (its splits are "
                f"{', '.join(self.source_splits)}); where it is held out of train, label train."
            )
        rows = self._source(split, data_dir)
        extra = rows.extra.examples if rows.extra else ()
        return [
            *(Example(row.id, row.input, row.label, choices=row.choices) for row in rows.examples),
            *(Example(row.id, row.input, None, choices=row.choices) for row in extra),
        ]

    def examples(self, split: str, data_dir: str | Path | None = None, **options) -> list[Example]:
        """`load(...)` without the counts."""
        return self.load(split, data_dir, **options).examples

    def _source(self, split: str, data_dir: str | Path | None) -> Rows:
        """The rows of a split that the source has: some, with gold labels of the label set."""
        rows = self.read(split, data_dir, **dict(self.arguments))
        # A generated dataset makes its examples anew each time they are looked at.
        rows = dataclasses.replace(rows, examples=list(rows.examples))
        if not rows.examples:
            raise ValueError(f"Dataset {self.name!r}: the split {split!r} in {rows.where} has no rows.")
        self._check_gold(rows)
        return rows

    def _check_gold(self, rows: Rows) -> None:
        for example in rows.examples:
            if example.label is not None and self._fit(example.label, example) != example.label:
                raise ValueError(
                    f"{rows.where}, row {example.id}: the label {example.label!r} is not {self._allowed(example)}."
                )

    def _allowed(self, example: Example) -> str:
        if self.metric == "equation":
            return "an expression that has a value"
        return "one of " + ", ".join(repr(label) for label in example.choices or self.label_set)

    def _fit(self, label: str, example: Example) -> str | None:
        """The label as the label set spells it (letter case apart), or None where it is outside of it."""
        if self.metric == "equation":
            return label if equation.evaluate(label) is not None else None
        allowed = example.choices or self.label_set
        if not allowed or label in allowed:
            return label
        return next((known for known in allowed if known.casefold() == label.casefold()), None)

    def _join(self, rows: Rows, teacher: str | None, required: bool) -> list[Example]:
        """The rows with the teacher's answers, which lie in the order of the rows of the whole source split."""
        if teacher is None:
            return [dataclasses.replace(e, teacher=None) if e.teacher else e for e in rows.examples]
        if (path := find_labelled(rows.folder, teacher, rows.answers_split)) is not None:
            return self._with_labelled(rows, path, required)
        has_files = rows.folder is not None and answer_files(rows.folder, teacher, rows.answers_split)
        if required and "/" in teacher and not has_files:
            raise FileNotFoundError(
                f"{teacher} holds no labelled rows of the split {rows.answers_split!r}: name the folder that "
                "`dsbs label` printed last, which lies in its output."
            )
        examples = [self.with_teacher(e, e.teacher) if e.teacher else e for e in rows.examples]
        if rows.answers is not None and self.parse is not None and teacher != DEFAULT_TEACHER:
            answers = rows.answers(teacher)
            return [self.with_teacher(e, self.parse(answer)) for e, answer in zip(examples, answers, strict=True)]
        if self.parse is None or rows.folder is None:
            return examples
        if not answer_files(rows.folder, teacher, rows.answers_split):
            # A dataset without the default teacher's answers can still be learned from its gold labels, and held-out
            # data needs no teacher; a teacher asked for by another name must be there.
            if required and teacher != DEFAULT_TEACHER:
                known = sorted(path.name for path in rows.folder.iterdir() if path.is_dir()) or ["none"]
                raise FileNotFoundError(
                    f"{rows.folder}: there are no answers of the teacher {teacher!r} for the split "
                    f"{rows.answers_split!r}; folders there: {', '.join(known)}."
                )
            return examples
        answers = read_answers(rows.folder, teacher, rows.answers_split)
        if len(answers) != len(examples):
            files = ", ".join(str(path) for path in answer_files(rows.folder, teacher, rows.answers_split))
            raise ValueError(
                f"{rows.where} has {len(examples)} rows, but the teacher's files hold {len(answers)} answers "
                f"({files}); there must be one answer for each row, in the same order."
            )
        return [
            self.with_teacher(example, self.parse(answer)) for example, answer in zip(examples, answers, strict=True)
        ]

    def _with_labelled(self, rows: Rows, path: Path, required: bool) -> list[Example]:
        """The rows with the outputs of a labelled folder, by id; a row that nobody labelled keeps none."""
        # Without the raw answers, which may be many times as long.
        labelled = {row["id"]: (row["input"], output_of(row)) for row in read_labelled(path)}
        examples = []
        for example in rows.examples:
            text, output = labelled.get(example.id, (example.input, None))
            if text != example.input:
                raise ValueError(
                    f"{path}, row {example.id}: the input {text[:60]!r} is not that of {rows.where}, "
                    f"{example.input[:60]!r}: another dataset was labelled, or with other arguments."
                )
            example = dataclasses.replace(example, teacher=None)
            examples.append(example if output is None else self.with_teacher(example, output))
        if required and not any(example.teacher for example in examples):
            raise ValueError(f"{path} holds none of the rows of {rows.where}; name a folder that labelled them.")
        return examples

    def _filtered(
        self, examples: list[Example], teacher_filter: Filter, skipped: collections.Counter[str]
    ) -> list[Example]:
        same, kept = same_label(self.metric), []
        for example in examples:
            teacher = example.teacher or TeacherOutput(None, None, agreement=0)
            row = {"label": example.label, "teacher_label": teacher.label, "rationale": teacher.rationale}
            reason = teacher_filter.reason(row | {"agreement": teacher.agreement}, same)
            if reason is None:
                kept.append(example)
            else:
                skipped[f"teacher filter: {reason}"] += 1
        return kept

    def _judged(self, examples: list[Example]) -> tuple[int, int]:
        """`teacher_judged` and `teacher_right` of `Counts`."""
        judged = [example for example in examples if example.label is not None and example.teacher is not None]
        labels = [example.target_label("teacher") or "" for example in judged]
        if not any(labels):
            return 0, 0
        return len(judged), int(score(self.metric, labels, [str(example.label) for example in judged]).sum())

    def with_teacher(self, example: Example, output: TeacherOutput) -> Example:
        """The example with a teacher's output: its label as the label set spells it, or none if outside of it."""
        if output.label is not None:
            label = self._fit(output.label, example)
            if label is None:
                output = dataclasses.replace(output, label=None, failure=output.failure or LABEL_OUTSIDE_SET)
            elif label != output.label:
                output = dataclasses.replace(output, label=label)
        return example if output is example.teacher else dataclasses.replace(example, teacher=output)

    def _held_out(self, examples: list[Example], seed: int) -> dict[str, list[Example]]:
        """Train and the splits taken out of it; only labelled rows are held out. Rows keep their order."""
        parts: dict[str, list[Example]] = {}
        labelled = sum(example.label is not None for example in examples)
        size = -(-labelled * self.holdout_percent // 100)
        for split, split_seed in (("test", 0), ("validation", seed)):
            if split in self.source_splits:
                continue
            candidates = [i for i, example in enumerate(examples) if example.label is not None]
            order = np.random.default_rng(split_seed).permutation(len(candidates))
            taken = {candidates[i] for i in order[:size]}
            parts[split] = [example for i, example in enumerate(examples) if i in taken]
            examples = [example for i, example in enumerate(examples) if i not in taken]
        return {**parts, "train": examples}


def find_labelled(folder: Path | None, teacher: str, split: str) -> Path | None:
    """The labelled rows of a split, or None: `teacher` is a folder of `dsbs label`, or names one in the dataset's.

    Raises:
      FileNotFoundError: `teacher` is a path, and no folder is there.
    """
    if folder is not None and (path := labelled_file(folder / teacher, split)) is not None:
        return path
    if "/" in teacher and not Path(teacher).is_dir():
        raise FileNotFoundError(f"There is no folder {teacher} of a teacher; `dsbs label` names the folder it writes.")
    return labelled_file(Path(teacher), split) if Path(teacher).is_dir() else None
