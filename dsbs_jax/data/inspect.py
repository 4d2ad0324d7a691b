"""Looking at datasets: which there are, what their examples become, and whether their files are in order."""

from __future__ import annotations

import collections
import dataclasses
import importlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from dsbs_jax.data.accounts import LoadedSplit
from dsbs_jax.data.dataset import SPLITS, Dataset
from dsbs_jax.data.find import require_dataset
from dsbs_jax.data.prepare import StoreRequest
from dsbs_jax.data.prepare_worker import load_split, tokenise
from dsbs_jax.data.vocabulary import EOS_ID, EOS_TEXT
from dsbs_jax.schema import Example

# Labels beyond this many are counted together.
_MOST_LABELS = 10


def list_datasets() -> str:
    """One line for each dataset that comes with the package: its name, and what it is."""
    tasks = importlib.import_module("dsbs_jax.tasks")
    lines = []
    for name, dataset in sorted(tasks.DATASETS.items()):
        about = (importlib.import_module(f"dsbs_jax.tasks.{name}").__doc__ or "").strip().splitlines()[0]
        lines.append(f"{name:<10} {dataset.metric:<9} {about}")
    return "\n".join(lines)


def show(request: StoreRequest, split: str = "train", n: int = 3) -> str:
    """The first `n` examples of a split: their fields, and each task's texts and token ids, as training reads them.

    Args:
      request: names the dataset, the tasks and the vocabulary.
      split: `train`, `validation` or `test`.
      n: how many.

    Raises:
      OSError, ValueError: for files or rows that are missing or wrong.
    """
    if n < 1:
        raise ValueError(f"n is {n}; it must be at least 1.")
    dataset = _dataset(request)
    examples = load_split(dataset, request, split).examples[:n]
    pairs = [tokenise(task, split, examples, request, collections.Counter()) for task in request.tasks]
    lines = []
    for index, example in enumerate(examples):
        lines += [example.id, *_fields(example)]
        for task, of_task in zip(request.tasks, pairs, strict=True):
            pair = of_task[index]
            if pair is None:
                lines.append(f"  [{task.name}] has no pair: the example lacks what this task reads.")
                continue
            for feature, ids in zip(("inputs", "targets"), pair, strict=True):
                numbers = [int(token) for token in ids]
                lines.append(f"  [{task.name}] {feature}, {len(numbers)} tokens: {numbers}")
                lines.append(f"    {_text(request, numbers)!r}")
        lines.append("")
    return "\n".join(lines).rstrip()


def check(request: StoreRequest, as_json: bool = False) -> str:
    """Reads all splits of a dataset and reports on them; stops at the first wrong file or row.

    Args:
      request: names the dataset and the vocabulary.
      as_json: the report as one JSON object instead of text.

    Raises:
      OSError, ValueError: for files or rows that are missing or wrong.
    """
    dataset = _dataset(request)
    report = {split: describe(load_split(dataset, request, split), request) for split in SPLITS}
    if as_json:
        return json.dumps(report, indent=1, ensure_ascii=False)
    lines = [f"{dataset.name}: labels compared by {'value' if dataset.metric == 'equation' else 'exact match'}"]
    for split, of_split in report.items():
        lines += ["", f"{split}: {of_split['kept']} of {of_split['rows']} rows"]
        lines += [f"  {line}" for line in _lines(of_split)]
    return "\n".join(lines)


def statistics(requests: Sequence[StoreRequest]) -> str:
    """The paper's Table 3: examples of each dataset's splits, and how often its teacher is right; in Markdown.

    A dataset whose files are not there is named below the table, with the reason.

    Raises:
      ValueError: for rows that are wrong, or a dataset that does not exist.
    """
    lines = [f"| dataset | {' | '.join(SPLITS)} | {' | '.join(f'teacher right, {split}' for split in SPLITS)} |"]
    lines.append(f"|---|{'---:|' * 2 * len(SPLITS)}")
    absent = []
    for request in requests:
        dataset = _dataset(request)
        try:
            counts = [load_split(dataset, request, split).counts for split in SPLITS]
        except FileNotFoundError as error:
            absent.append(f"{dataset.name}: {error}")
            continue
        right = [f"{one.teacher_right / one.teacher_judged:.4f}" if one.teacher_judged else "" for one in counts]
        lines.append(f"| {' | '.join([dataset.name, *(f'{one.kept:,}' for one in counts), *right])} |")
    return "\n".join([*lines, *absent])


def describe(loaded: LoadedSplit, request: StoreRequest) -> dict[str, Any]:
    """Facts about one split, as JSON values: the fields of `Counts`, label counts, lengths, the teacher's accuracy.

    Lengths are in tokens, with EOS and without a task's prefix.
    """
    examples, counts = loaded.examples, loaded.counts
    return {
        **dataclasses.asdict(counts),
        "labels": _most_common(example.label for example in examples if example.label is not None),
        "teacher_labels": _most_common(label for e in examples if (label := e.target_label("teacher"))),
        "teacher_accuracy": counts.teacher_right / counts.teacher_judged if counts.teacher_judged else None,
        "tokens": {
            "inputs": _lengths([example.input for example in examples], request),
            "labels": _lengths([example.label for example in examples if example.label], request),
            "rationales": _lengths([example.rationale for example in examples if example.rationale], request),
        },
    }


def _dataset(request: StoreRequest) -> Dataset:
    return require_dataset(request.name, request.module, request.custom, request.dataset_arguments)


def _fields(example: Example) -> list[str]:
    fields: dict[str, str | None] = {"input": example.input, "label": example.label}
    if example.teacher is not None:
        fields |= {"rationale": example.rationale, "teacher's label": example.teacher.label}
        if example.teacher.failure:
            fields["teacher's answer"] = f"not read in full: {example.teacher.failure}"
    return [f"  {name}: {value!r}" for name, value in fields.items()]


def _most_common(labels: Iterable[str]) -> dict[str, int]:
    counts = collections.Counter(labels)
    found = dict(counts.most_common(_MOST_LABELS))
    others = counts.total() - sum(found.values())
    return found | ({f"{len(counts) - len(found)} other labels": others} if others else {})


def _lengths(texts: Sequence[str], request: StoreRequest) -> dict[str, int] | None:
    if not texts:
        return None
    lengths = np.array([len(request.vocabulary.encode(text)) + 1 for text in texts])
    percentiles = np.percentile(lengths, [50, 90, 99], method="higher").astype(int).tolist()
    return dict(zip(("p50", "p90", "p99"), percentiles, strict=True)) | {"max": int(lengths.max())}


def _lines(report: Mapping[str, Any]) -> list[str]:
    lines = [f"skipped: {count} ({reason})" for reason, count in report["skipped"].items()]
    lines += [f"teacher's answer not read in full: {n} ({why})" for why, n in report["teacher_failures"].items()]
    lines += [f"{what}: {count}" for what, count in report["noise"].items()]
    for key, text in (
        ("unlabelled", "without a gold label"),
        ("no_rationale", "without a rationale"),
        ("no_teacher_label", "without a teacher's label"),
    ):
        if report[key]:
            lines.append(f"{text}: {report[key]}")
    if report["teacher_accuracy"] is not None:
        lines.append(f"teacher's accuracy: {report['teacher_accuracy']:.4f}")
    lines.append("labels: " + ", ".join(f"{label} {count}" for label, count in report["labels"].items()))
    for what, lengths in report["tokens"].items():
        if lengths:
            lines.append(f"tokens of {what}: " + ", ".join(f"{name} {value}" for name, value in lengths.items()))
    return lines


def _text(request: StoreRequest, ids: Sequence[int]) -> str:
    """The text of ids in full: what stands behind an EOS in the middle of an NLI input, too."""
    parts: list[list[int]] = [[]]
    for token in ids:
        if token == EOS_ID:
            parts.append([])
        else:
            parts[-1].append(token)
    return EOS_TEXT.join(map(request.vocabulary.decode, parts))
