"""The process that makes a token store: `python -m dsbs_jax.data.prepare_worker`, a job as JSON on standard input.

The only part of training that loads SeqIO and TensorFlow. Errors of the user's making end it with status 1 and one
sentence on standard error; see `data/prepare.py`, which starts it.
"""

from __future__ import annotations

import collections
import dataclasses
import difflib
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dsbs_jax.data.accounts import LoadedSplit
from dsbs_jax.data.dataset import SPLITS, Dataset
from dsbs_jax.data.find import OWN_TASKS, find_dataset
from dsbs_jax.data.prepare import PROGRESS, StoreRequest, read_job
from dsbs_jax.data.store import Pair, StoreMeta, StoreWriter, Stream, TeacherScore
from dsbs_jax.data.vocabulary import EOS_ID
from dsbs_jax.schema import Example, TaskFormat

if TYPE_CHECKING:
    import seqio
    import tensorflow as tf

# Of foreign tasks: whose single kind of pair takes the place of the evaluated task.
FOREIGN_TASK = "label"
_ROWS_PER_ELEMENT = 1024
# What other registries call our splits.
_FOREIGN_SPLITS = {"train": ("train",), "validation": ("validation", "valid", "dev"), "test": ("test",)}


@dataclasses.dataclass(frozen=True)
class Ragged:
    """Token rows: row i is `tokens[offsets[i]:offsets[i + 1]]`. int32 [sum of lengths], int64 [rows + 1]."""

    tokens: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        return self.tokens[self.offsets[row] : self.offsets[row + 1]]

    def trimmed(self, row: int, length: int) -> tuple[np.ndarray, bool]:
        """(a row of at most `length` ids, whether it was cut); a row that is cut still ends with EOS."""
        ids = self[row]
        if len(ids) <= length:
            return ids, False
        return np.append(ids[: length - 1], EOS_ID), True


def main() -> int:
    """Makes the store that the job on standard input asks for."""
    # Before TensorFlow is imported: its notices would drown the one sentence.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.getLogger("absl").setLevel(logging.ERROR)
    request, root, key = read_job(sys.stdin.read())
    try:
        prepare(request, root, key)
    except (OSError, ValueError) as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 1
    return 0


def prepare(request: StoreRequest, root: Path, key: str) -> Path:
    """Writes the store of a request under its key.

    Raises:
      OSError, ValueError: in one sentence, for everything a user can mend.
    """
    dataset = find_dataset(request.name, request.module, request.custom, request.dataset_arguments)
    if dataset is not None:
        return _prepare_dataset(dataset, request, root, key)
    return _prepare_foreign(request, root, key)


def _report(text: str) -> None:
    print(PROGRESS + text, file=sys.stderr, flush=True)


# -- Our datasets ------------------------------------------------------------------------------------------------------


def _prepare_dataset(dataset: Dataset, request: StoreRequest, root: Path, key: str) -> Path:
    if not request.tasks:
        raise ValueError(f"The request for {dataset.name!r} names no tasks; give it those of a method.")
    # Reading and checking the rows first: an error in them should not wait for TensorFlow.
    loaded = {split: load_split(dataset, request, split) for split in SPLITS}
    for split in SPLITS:
        _check_usable(dataset, split, loaded[split], request)
    counts: dict[str, dict[str, int]] = {}
    with StoreWriter(root, key) as writer:
        for split in SPLITS:
            counts[split] = _write_split(writer, split, loaded[split], request)
        judged = {split: loaded[split].counts for split in SPLITS if loaded[split].counts.teacher_judged}
        meta = _meta(request, dataset.name, dataset.metric, tuple(t.name for t in request.tasks), counts)
        teacher = {split: TeacherScore(each.teacher_judged, each.teacher_right) for split, each in judged.items()}
        return writer.commit(dataclasses.replace(meta, teacher=teacher))


def load_split(dataset: Dataset, request: StoreRequest, split: str) -> LoadedSplit:
    """A split as the request wants it.

    Raises:
      FileNotFoundError, ValueError: as `Dataset.load`.
    """
    return dataset.load(
        split,
        request.data_dir,
        teacher=request.teacher,
        teacher_filter=request.teacher_filter,
        rationale_noise=request.rationale_noise,
        holdout_seed=request.holdout_seed,
    )


def _check_usable(dataset: Dataset, split: str, loaded: LoadedSplit, request: StoreRequest) -> None:
    if not loaded.examples:
        reasons = ", ".join(f"{count} with {reason}" for reason, count in loaded.counts.skipped.items())
        raise ValueError(f"Dataset {dataset.name!r}: no row of the split {split!r} can be used ({reasons or 'none'}).")
    if split != "train":
        return
    for task in request.tasks:
        if all(task.render(example, request.label_source) is None for example in loaded.examples):
            needs = " and ".join(
                what
                for field, what in (("label", f"a {request.label_source} label"), ("rationale", "a rationale"))
                if task.needs(field)
            )
            raise ValueError(
                f"Dataset {dataset.name!r}: none of the {len(loaded.examples)} train rows has {needs}, which the task "
                f"{task.name!r} needs; are the answers of the teacher {request.teacher!r} there?"
            )


def _write_split(writer: StoreWriter, split: str, loaded: LoadedSplit, request: StoreRequest) -> dict[str, int]:
    """Writes one split and returns the number of rows to report, by reason."""
    counts: collections.Counter[str] = collections.Counter()
    for reason, count in loaded.counts.skipped.items():
        counts[f"skipped: {reason}"] += count
    for reason, count in loaded.counts.teacher_failures.items():
        counts[f"teacher's answer: {reason}"] += count
    counts.update(loaded.counts.noise)
    pairs = [tokenise(task, split, loaded.examples, request, counts) for task in request.tasks]
    split_writer = writer.split(split, [task.name for task in request.tasks], request.vocabulary.size)
    for row, example in enumerate(loaded.examples):
        split_writer.add([of_task[row] for of_task in pairs], _texts(example))
    _report(f"{split}: {len(loaded.examples)} examples")
    return dict(counts)


def tokenise(
    task: TaskFormat,
    split: str,
    examples: Sequence[Example],
    request: StoreRequest,
    counts: collections.Counter[str],
) -> list[Pair | None]:
    """Each example's pair of one task through SeqIO, None where it has none; cut to the request's lengths."""
    import seqio

    from dsbs_jax.data import seqio_tasks

    vocabulary = seqio.SentencePieceVocabulary(request.vocabulary.path, extra_ids=request.vocabulary.extra_ids)
    seqio_task = seqio_tasks.make_task(
        f"dsbs_store_{task.name}",
        task,
        lambda _: examples,
        vocabulary,
        request.label_source,
        rows_per_element=_ROWS_PER_ELEMENT,
    )
    elements = list(seqio_task.get_dataset(None, split, shuffle=False))
    inputs, targets = (_ragged([element[feature] for element in elements]) for feature in ("inputs", "targets"))
    rows, has_target = (np.concatenate([element[key].numpy() for element in elements]) for key in ("row", "has_target"))

    pairs: list[Any] = [None] * len(examples)
    for index, (row, complete) in enumerate(zip(rows.tolist(), has_target.tolist(), strict=True)):
        input_ids, input_cut = inputs.trimmed(index, request.feature_lengths[0])
        target_ids, target_cut = targets.trimmed(index, request.feature_lengths[1])
        counts[f"{task.name} inputs truncated to {request.feature_lengths[0]} tokens"] += input_cut
        counts[f"{task.name} targets truncated to {request.feature_lengths[1]} tokens"] += target_cut
        pairs[row] = (input_ids, target_ids if complete else ())
    counts[f"without a {task.name} target"] += len(examples) - int(has_target.sum())
    for reason in [reason for reason, count in counts.items() if not count]:
        del counts[reason]
    return pairs


def _ragged(parts: Sequence[tf.RaggedTensor]) -> Ragged:
    lengths = np.concatenate([part.row_lengths().numpy() for part in parts])
    tokens = np.concatenate([part.flat_values.numpy() for part in parts])
    return Ragged(tokens, np.concatenate([[0], np.cumsum(lengths)]))


def _texts(example: Example) -> dict[str, object]:
    texts = {
        "id": example.id,
        "input": example.input,
        "label": example.label,
        "rationale": example.rationale,
        "teacher_label": example.target_label("teacher"),
    }
    return texts | ({"choices": list(example.choices)} if example.choices else {})


def _meta(
    request: StoreRequest,
    name: str,
    metric: str,
    tasks: tuple[str, ...],
    counts: Mapping[str, Mapping[str, int]],
    streams: tuple[Stream, ...] = (),
) -> StoreMeta:
    return StoreMeta(
        name=name,
        metric=metric,
        tasks=tasks,
        vocabulary_fingerprint=request.vocabulary.fingerprint,
        vocabulary_size=request.vocabulary.size,
        feature_lengths=request.feature_lengths,
        counts=counts,
        streams=streams,
        request=request.to_json(),
    )


# -- Any other SeqIO task or mixture -----------------------------------------------------------------------------------


def _prepare_foreign(request: StoreRequest, root: Path, key: str) -> Path:
    import seqio

    # The request leaves the prefix of our own registered tasks out.
    prefix = "dsbs_" if request.module == OWN_TASKS else ""
    try:
        provider = seqio.get_mixture_or_task(prefix + request.name)
    except ValueError:
        raise ValueError(_unknown_name(request)) from None
    tasks = seqio.get_subtasks(provider)
    for task in tasks:
        _check_features(task, request)
    rates = [float(provider.get_rate(task)) if isinstance(provider, seqio.Mixture) else 1.0 for task in tasks]
    sizes: list[dict[str, int]] = [{} for _ in tasks]
    counts: dict[str, dict[str, int]] = {}
    with StoreWriter(root, key) as writer:
        for split, names in _FOREIGN_SPLITS.items():
            if not any(set(names) & set(task.splits) for task in tasks):
                continue
            split_writer = writer.split(split, [FOREIGN_TASK], request.vocabulary.size)
            full = 0
            for task, of_task in zip(tasks, sizes, strict=True):
                before = split_writer.num_examples
                their_split = next((name for name in names if name in task.splits), None)
                if their_split is not None:
                    full += _write_foreign(split_writer, task, their_split, split, request)
                of_task[split] = split_writer.num_examples - before
            if not split_writer.num_examples:
                raise ValueError(f"The split {split!r} of {request.name!r} is empty.")
            counts[split] = {"at the length limit, perhaps cut by SeqIO": full} if full else {}
            _report(f"{split}: {split_writer.num_examples} rows")
        if "train" not in counts:
            splits = sorted({str(split) for task in tasks for split in task.splits})
            raise ValueError(f"{request.name!r} has no split 'train'; its splits are {', '.join(splits)}.")
        streams = tuple(
            Stream(task.name, rate, of_task) for task, rate, of_task in zip(tasks, rates, sizes, strict=True)
        )
        meta = _meta(request, request.name, "exact", (FOREIGN_TASK,), counts, streams)
        return writer.commit(meta)


def _unknown_name(request: StoreRequest) -> str:
    import seqio

    module = sys.modules[request.module]
    known = [*getattr(module, "DATASETS", {}), *seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()]
    near = difflib.get_close_matches(request.name, known, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(sorted(known)[:20])}."
    return f"The module {request.module!r} has no dataset, SeqIO task or mixture {request.name!r}; {hint}"


def _check_features(task: seqio.Task, request: StoreRequest) -> None:
    """Raises ValueError where a foreign task has other features than ours, or makes other ids of text."""
    import sentencepiece

    pieces = sentencepiece.SentencePieceProcessor(model_file=request.vocabulary.path)
    for feature in ("inputs", "targets"):
        if feature not in task.output_features:
            raise ValueError(
                f"The SeqIO task {task.name!r} has no feature {feature!r}; it has {', '.join(task.output_features)}."
            )
        theirs, ours = task.output_features[feature].vocabulary, request.vocabulary
        if theirs.vocab_size > ours.size:
            raise ValueError(
                f"The SeqIO task {task.name!r} has a vocabulary of {theirs.vocab_size} ids, {ours.path} one of "
                f"{ours.size}: name the task's vocabulary file and its number of sentinels."
            )
        # Ids and pieces one by one: the same vocabulary may lie in two places.
        tokenizer = getattr(theirs, "tokenizer", None)
        if tokenizer is None:
            raise ValueError(
                f"The SeqIO task {task.name!r} has a {type(theirs).__name__} for {feature!r}; only SentencePiece "
                "vocabularies can be decoded here."
            )
        different = next((i for i in range(ours.num_pieces) if tokenizer.IdToPiece(i) != pieces.IdToPiece(i)), None)
        if different is not None:
            raise ValueError(
                f"The vocabulary of the SeqIO task {task.name!r} has {tokenizer.IdToPiece(different)!r} as id "
                f"{different}, {ours.path} has {pieces.IdToPiece(different)!r}: name the task's vocabulary file."
            )


def _write_foreign(writer, task: seqio.Task, their_split: str, split: str, request: StoreRequest) -> int:
    """Writes one sub-task's rows; returns how many fill a feature to the limit, where SeqIO itself cuts."""
    full = 0
    lengths = dict(zip(("inputs", "targets"), request.feature_lengths, strict=True))
    rows = task.get_dataset(lengths, their_split, shuffle=False).as_numpy_iterator()
    for number, row in enumerate(rows):
        texts = {
            name: _foreign_text(row, feature, request) for name, feature in (("input", "inputs"), ("label", "targets"))
        }
        example = {"id": f"{task.name}/{split}/{number}", **texts}
        writer.add([(row["inputs"], row["targets"])], example)
        full += any(len(row[feature]) >= length for feature, length in lengths.items())
    return full


def _foreign_text(row: Mapping[str, np.ndarray], feature: str, request: StoreRequest) -> str:
    text = row.get(f"{feature}_pretokenized")
    if isinstance(text, bytes):
        return text.decode(errors="replace")
    return request.vocabulary.decode(row[feature].tolist())


if __name__ == "__main__":
    sys.exit(main())
