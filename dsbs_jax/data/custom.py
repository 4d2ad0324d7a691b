"""Bring your own dataset: files, columns and templates, as plain values that a gin file can hold."""

from __future__ import annotations

import dataclasses
import re
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dsbs_jax.data.dataset import DEFAULT_TEACHER, SPLITS, Dataset, Rows
from dsbs_jax.data.sources import Row, convert, read_file, read_hub
from dsbs_jax.metrics.accuracy import METRICS
from dsbs_jax.schema import Example, TeacherOutput
from dsbs_jax.teacher.answers import answer_files
from dsbs_jax.teacher.parsers import NO_RATIONALE, Parser, parser_from_json

_NAME = re.compile(r"[A-Za-z0-9_]+")
_TEMPLATES = ("input", "label", "rationale", "teacher_label", "teacher_answer")


@dataclasses.dataclass(frozen=True)
class CustomDataset:
    """A dataset described by values alone.

    Templates are texts with columns in braces, e.g. `{question}\\n(a) {option_a}`; two braces stand for one.

    Attributes:
      name: letters, digits and underscores; names the token store and the results.
      train: a JSON-lines, JSON, Parquet or CSV file, absolute or relative to the data folder; or `hub:NAME` or
        `disk:FOLDER` for the split of that name of a Hugging Face dataset.
      validation: like `train`; empty to hold out 10 % of train.
      test: like `train`; empty to hold out 10 % of train.
      input: template of the student's input.
      label: template of the gold label. A row has no gold label where it names a column whose value is missing.
      rationale: template of the rationale, where the rows bring one; empty otherwise.
      teacher_label: template of the teacher's label, where the rows bring one; empty otherwise.
      teacher_answer: template of the teacher's raw answer, which `parser` reads; empty where the rows have none.
      parser: reads raw answers, from `teacher_answer` or from `{teacher}/{split}_CoT_{i}.json` beside the train file.
      label_mapping: from the label's text to the label to learn, e.g. {"0": "no", "1": "yes"}; empty to leave it.
      label_set: the labels that exist; empty for free text.
      metric: `exact`, or `equation` for labels compared by value.
    """

    name: str
    train: str
    validation: str = ""
    test: str = ""
    input: str = "{input}"
    label: str = "{label}"
    rationale: str = ""
    teacher_label: str = ""
    teacher_answer: str = ""
    parser: Parser | None = None
    label_mapping: Mapping[str, str] | tuple[tuple[str, str], ...] = ()
    label_set: tuple[str, ...] = ()
    metric: str = "exact"

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"CustomDataset: the name {self.name!r} must be letters, digits and underscores.")
        if not self.train:
            raise ValueError(f"CustomDataset {self.name!r}: train is empty; name the file with the training rows.")
        if self.metric not in METRICS:
            raise ValueError(
                f"CustomDataset {self.name!r}: metric is {self.metric!r}; it must be one of {', '.join(METRICS)}."
            )
        if self.teacher_answer and self.parser is None:
            raise ValueError(
                f"CustomDataset {self.name!r}: teacher_answer needs a parser; give it a MarkerParser or a RegexParser."
            )
        if self.teacher_answer and (self.rationale or self.teacher_label):
            raise ValueError(
                f"CustomDataset {self.name!r}: give either teacher_answer, or rationale and teacher_label, not both."
            )
        for field in _TEMPLATES:
            try:
                list(string.Formatter().parse(getattr(self, field)))
            except ValueError as error:
                raise ValueError(
                    f"CustomDataset {self.name!r}: the template {field} {getattr(self, field)!r} is broken ({error})."
                ) from None
        # Lists and mappings, as JSON and gin have them, become values that compare and hash.
        mapping = dict(self.label_mapping)
        pairs = tuple(sorted((str(key), str(value)) for key, value in mapping.items()))
        object.__setattr__(self, "label_mapping", pairs)
        object.__setattr__(self, "label_set", tuple(self.label_set))

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> CustomDataset:
        """The inverse of `dataclasses.asdict`, also after a trip through JSON."""
        parser = fields.get("parser")
        return cls(**{**fields, "parser": parser_from_json(parser) if isinstance(parser, Mapping) else parser})

    def to_dataset(self) -> Dataset:
        """The dataset it describes."""
        return Dataset(
            self.name,
            self._read,
            source_splits=tuple(split for split in SPLITS if getattr(self, split)),
            metric=self.metric,
            label_set=self.label_set,
            # Rows that bring their own teacher's outputs need no answer files.
            parse=None if self.teacher_answer or self.rationale or self.teacher_label else self.parser,
        )

    def input_files(self, data_dir: str | Path | None, teacher: str | None = DEFAULT_TEACHER) -> list[Path]:
        """Every file that shapes the rows, a teacher's answers included; sorted, existing ones only."""
        named = [getattr(self, split) for split in SPLITS]
        paths = {_path(name, data_dir) for name in named if name and not _is_hub(name)}
        if teacher is not None and not _is_hub(self.train):
            folder = _path(self.train, data_dir).parent
            for split in SPLITS:
                paths.update(answer_files(folder, teacher, split))
        return sorted(path for path in paths if path.is_file())

    def _read(self, split: str, data_dir: str | Path | None) -> Rows:
        source = getattr(self, split)
        if _is_hub(source):
            splits = read_hub(source)
            if split not in splits:
                raise FileNotFoundError(f"{source} has no split {split!r}; it has {', '.join(sorted(splits))}.")
            rows, where, folder = list(enumerate(splits[split])), source, None
        else:
            path = _path(source, data_dir)
            rows, where, folder = list(read_file(path)), str(path), _path(self.train, data_dir).parent
        examples = [convert(self._example, f"{split}/{number}", row, where) for number, row in rows]
        return Rows(examples, where, folder, split)

    def _example(self, example_id: str, row: Row) -> Example:
        text = fill(self.input, row)
        if not text:
            raise ValueError(f"the input template {self.input!r} gives no text.")
        label = fill(self.label, row)
        if label is not None and (mapping := dict(self.label_mapping)):
            if label not in mapping:
                raise ValueError(f"the label {label!r} is not in label_mapping, which has {', '.join(mapping)}.")
            label = mapping[label]
        return Example(example_id, text, label or None, self._teacher(row))

    def _teacher(self, row: Row) -> TeacherOutput | None:
        if self.teacher_answer:
            assert self.parser is not None
            return self.parser(fill(self.teacher_answer, row) or "")
        if not (self.rationale or self.teacher_label):
            return None
        rationale = fill(self.rationale, row) or None
        label = fill(self.teacher_label, row) or None
        if label is not None:
            label = dict(self.label_mapping).get(label, label)
        return TeacherOutput(rationale, label, NO_RATIONALE if self.rationale and not rationale else None)


def fill(template: str, row: Row) -> str | None:
    """A template with a row's columns in place, stripped; None where a column it names has no value.

    Raises:
      KeyError: for a column that the row does not have.
    """
    parts = []
    for literal, column, _, _ in string.Formatter().parse(template):
        parts.append(literal)
        if column is not None:
            value = row[column]
            if value is None:
                return None
            parts.append(str(value))
    return "".join(parts).strip()


def _is_hub(source: str) -> bool:
    return source.startswith(("hub:", "disk:"))


def _path(name: str, data_dir: str | Path | None) -> Path:
    return Path(data_dir, name) if data_dir is not None else Path(name)
