"""What a dataset's parser makes of files of raw answers: counts by reason code, and the teacher's accuracy."""

from __future__ import annotations

import collections
import dataclasses
import glob
import importlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dsbs_jax.data.custom import CustomDataset
from dsbs_jax.data.dataset import Dataset
from dsbs_jax.data.find import OWN_TASKS, require_dataset
from dsbs_jax.data.sources import convert, read_file
from dsbs_jax.metrics.accuracy import score
from dsbs_jax.schema import Example
from dsbs_jax.teacher.answers import read_answer_files
from dsbs_jax.teacher.parsers import LABEL_OUTSIDE_SET

# Rows shown for each reason.
_SHOWN = 3


def parse_answers(
    dataset: str | CustomDataset, answers: Sequence[str | Path], data: str | Path | None = None
) -> dict[str, Any]:
    """Parses raw answers and judges them by the rows that they answer.

    Args:
      dataset: the name of a dataset that comes with the package, or one described by values.
      answers: files or glob patterns of JSON lists of strings; read in numeric order, `_10` after `_9`.
      data: the file with the rows, in the order of the answers; None to look at the answers alone.

    Returns:
      JSON values: `dataset`, `rows`, `parsed` (rows whose rationale and label were read), `failures` (the others, by
      reason code), `labels_outside_set` (rows whose label was read and is none of the row's labels, or has no value),
      `teacher_accuracy` (over `judged` rows, those with a gold label; a row without a usable label is wrong; None where
      there is no such row), and `examples`: some answers for each reason.

    Raises:
      FileNotFoundError: for files that are not there.
      ValueError: for an unknown dataset, files that cannot be read, or as many answers as there are not rows.
    """
    files = find_answers(answers)
    raw = read_answer_files(files)
    about, examples = _read(dataset, data)
    if about.parse is None:
        raise ValueError(f"Dataset {about.name!r} has no parser: its rows bring the teacher's outputs themselves.")
    if data is None:
        examples = [Example(f"answer/{index}", "", None) for index in range(len(raw))]
    if len(raw) != len(examples):
        raise ValueError(
            f"{data} has {len(examples)} rows, but the {len(files)} files of answers hold {len(raw)} "
            f"({files[0]}{' ...' if len(files) > 1 else ''}); there must be one answer for each row, in the same order."
        )
    failures: collections.Counter[str] = collections.Counter()
    shown: dict[str, list[dict[str, str | None]]] = collections.defaultdict(list)
    outside = 0
    predictions, references = [], []
    for example, answer in zip(examples, raw, strict=True):
        output = about.parse(answer)
        # Without its row a multiple-choice label cannot be checked; `with_teacher` takes any label then.
        label = about.with_teacher(example, output).target_label("teacher")
        reason = output.failure
        if output.label is not None and label is None:
            outside += 1
            reason = reason or LABEL_OUTSIDE_SET
        if output.failure:
            failures[output.failure] += 1
        if reason and len(shown[reason]) < _SHOWN:
            shown[reason].append({"id": example.id, "label": output.label, "answer": answer})
        if example.label is not None:
            predictions.append(label or "")
            references.append(example.label)
    return {
        "dataset": about.name,
        "rows": len(raw),
        "parsed": len(raw) - failures.total(),
        "failures": dict(failures.most_common()),
        "labels_outside_set": outside,
        "judged": len(references),
        "teacher_accuracy": float(np.mean(score(about.metric, predictions, references))) if references else None,
        "examples": dict(shown),
    }


def find_answers(patterns: Sequence[str | Path]) -> list[Path]:
    """The files that paths and glob patterns name, each once, numbers in their names in numeric order.

    Raises:
      FileNotFoundError: for a pattern that names no file.
    """
    found: dict[str, None] = {}
    for pattern in map(str, patterns):
        names = [pattern] if Path(pattern).is_file() else [name for name in glob.glob(pattern) if Path(name).is_file()]
        if not names:
            raise FileNotFoundError(
                f"There is no file of answers {pattern!r}; quote patterns such as 'test_CoT_*.json'."
            )
        found.update(dict.fromkeys(names))
    return sorted(map(Path, found), key=lambda path: [_number(part) for part in re.split(r"(\d+)", str(path))])


def render(report: Mapping[str, Any], as_json: bool = False) -> str:
    """The report of `parse_answers` as text, or as one JSON object."""
    if as_json:
        return json.dumps(report, indent=1)
    rows = report["rows"]
    lines = [f"{report['dataset']}: {report['parsed']} of {rows} answers read in full"]
    lines += [f"  {reason}: {count}" for reason, count in report["failures"].items()]
    lines.append(f"labels outside the label set: {report['labels_outside_set']}")
    if report["teacher_accuracy"] is not None:
        lines.append(
            f"teacher's accuracy: {report['teacher_accuracy']:.2%} of {report['judged']} rows with a gold label"
        )
    for reason, examples in report["examples"].items():
        lines += ["", f"{reason}, for example:"]
        for example in examples:
            label = f"label {example['label']!r} in " if example["label"] is not None else ""
            lines.append(f"  {example['id']}: {label}{_shortened(example['answer'])!r}")
    return "\n".join(lines)


def _read(dataset: str | CustomDataset, data: str | Path | None) -> tuple[Dataset, list[Example]]:
    """The dataset, and the rows of a file of its kind, wherever that lies and whatever it is called."""
    if isinstance(dataset, CustomDataset):
        if data is not None:
            dataset = dataclasses.replace(dataset, train=str(Path(data).absolute()), validation="", test="")
        about = dataset.to_dataset()
        return about, list(about.read("train", None).examples) if data is not None else []
    about = require_dataset(dataset)
    if data is None:
        return about, []
    to_example = getattr(importlib.import_module(f"{OWN_TASKS}.{about.name}"), "to_example", None)
    if to_example is not None:
        rows = read_file(data)
        return about, [convert(to_example, f"{Path(data).stem}/{number}", row, str(data)) for number, row in rows]
    # A source with a format of its own (ASDiv's XML) reads its file by name from its folder.
    source = about.read("train", Path(data).absolute().parent.parent)
    if Path(source.where) != Path(data).absolute():
        raise ValueError(f"{data} is no file of the dataset {dataset!r}, whose rows come from {source.where}.")
    return about, list(source.examples)


def _number(part: str) -> tuple[int, str]:
    return (int(part), "") if part.isdecimal() else (-1, part)


def _shortened(text: str, length: int = 120) -> str:
    return text if len(text) <= length else f"{text[: length - 30]} ... {text[-25:]}"
