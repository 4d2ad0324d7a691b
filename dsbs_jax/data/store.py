"""The token store: every (task, feature) of a dataset as ragged token arrays on disk, one folder per content key.

    {root}/{key}/meta.json                                       StoreMeta; written last
    {root}/{key}/{split}/{task}.{inputs,targets}.tokens.npy      uint16 or int32 [sum of lengths]
    {root}/{key}/{split}/{task}.{inputs,targets}.offsets.npy     int64 [examples + 1]
    {root}/{key}/{split}/examples.jsonl, examples.offsets.npy    one JSON object per example, found by byte offset

Row i of every task belongs to example i, so a label and its rationale stay together; a length of 0 says that the
example has no such pair. A foreign SeqIO mixture is one task whose rows lie stream after stream (`StoreMeta.streams`).

A store appears under its key by one rename of a complete, synced folder: what can be opened is whole.
"""

from __future__ import annotations

import array
import contextlib
import dataclasses
import errno
import functools
import json
import os
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from dsbs_jax.data.folders import AtomicFolder

Feature = Literal["inputs", "targets"]
Pair = tuple[Sequence[int], Sequence[int]]

# Part of every content key: raise it when the layout or the meaning of the files changes.
STORE_VERSION = 1
FEATURES: tuple[Feature, ...] = ("inputs", "targets")
_WRITE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*")


@dataclasses.dataclass(frozen=True)
class Stream:
    """One sub-task of a foreign mixture.

    Attributes:
      name: the sub-task's SeqIO name.
      rate: its share of the mixture, up to a common factor.
      sizes: its number of rows in each split; streams lie in the split in the order of `StoreMeta.streams`.
    """

    name: str
    rate: float
    sizes: Mapping[str, int]


class TeacherScore(NamedTuple):
    """How often a teacher is right: of `rows` rows of a split that it answered, `right` have the gold label."""

    rows: int
    right: int


@dataclasses.dataclass(frozen=True)
class StoreMeta:
    """What a store says about itself.

    Attributes:
      name: the dataset, task or mixture.
      metric: `exact` or `equation`, a key of `metrics.accuracy.METRICS`.
      tasks: task names; the position of a name is its per-token task id, the first task is the evaluated one.
      vocabulary_fingerprint: `Vocabulary.fingerprint` of the vocabulary that made the tokens.
      vocabulary_size: pieces plus sentinels; every token is below it.
      feature_lengths: longest allowed (inputs, targets), EOS included; longer rows were cut to it.
      counts: split -> reason -> number of rows that were skipped or truncated.
      teacher: split -> how often the teacher is right there, before any filter; without splits that it did not answer.
      streams: sub-tasks of a foreign mixture; empty where every row belongs to one dataset.
      request: the request that made the store, for people who read it.
      splits: split -> number of examples. Filled in by the writer.
      key: the content key. Filled in by the writer.
      version: `STORE_VERSION`.
    """

    name: str
    metric: str
    tasks: tuple[str, ...]
    vocabulary_fingerprint: str
    vocabulary_size: int
    feature_lengths: tuple[int, int]
    counts: Mapping[str, Mapping[str, int]] = dataclasses.field(default_factory=dict)
    teacher: Mapping[str, TeacherScore] = dataclasses.field(default_factory=dict)
    streams: tuple[Stream, ...] = ()
    request: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    splits: Mapping[str, int] = dataclasses.field(default_factory=dict)
    key: str = ""
    version: int = STORE_VERSION

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> StoreMeta:
        fields = json.loads(text)
        fields["tasks"] = tuple(fields["tasks"])
        fields["feature_lengths"] = tuple(fields["feature_lengths"])
        fields["teacher"] = {split: TeacherScore(*score) for split, score in fields["teacher"].items()}
        fields["streams"] = tuple(Stream(**stream) for stream in fields["streams"])
        return cls(**fields)


@dataclasses.dataclass(frozen=True)
class Split:
    """One split of an open store; arrays are memory-mapped on first use.

    Attributes:
      path: the split's folder.
      tasks: task names, as in `StoreMeta.tasks`.
      num_examples: rows.
      feature_lengths: longest allowed (inputs, targets).
      stream_sizes: rows of each stream that has any, one after the other; (num_examples,) where there are no streams.
      stream_rates: the rate of each stream.
    """

    path: pathlib.Path
    tasks: tuple[str, ...]
    num_examples: int
    feature_lengths: tuple[int, int]
    stream_sizes: tuple[int, ...]
    stream_rates: tuple[float, ...]

    @functools.cached_property
    def _arrays(self) -> dict[tuple[str, str], tuple[np.ndarray, np.ndarray]]:
        return {}

    def ragged(self, task: str, feature: Feature) -> tuple[np.ndarray, np.ndarray]:
        """(tokens [sum of lengths], offsets int64 [num_examples + 1]); row i is `tokens[offsets[i]:offsets[i + 1]]`."""
        if (task, feature) not in self._arrays:
            if task not in self.tasks:
                raise ValueError(f"{self.path} has no task {task!r}; its tasks are {', '.join(self.tasks)}.")
            stem = f"{task}.{feature}"
            tokens = _load(self.path / f"{stem}.tokens.npy")
            offsets = _load(self.path / f"{stem}.offsets.npy")
            if len(offsets) != self.num_examples + 1 or offsets[-1] != len(tokens):
                raise _damaged(self.path / stem)
            self._arrays[task, feature] = tokens, offsets
        return self._arrays[task, feature]

    def lengths(self, task: str, feature: Feature) -> np.ndarray:
        """Tokens per row, EOS included: int32 [num_examples]; 0 where the example has no such pair."""
        return np.diff(self.ragged(task, feature)[1]).astype(np.int32)

    def tokens(self, task: str, feature: Feature, index: int) -> np.ndarray:
        """The ids of one row, EOS included: int32 [length]."""
        tokens, offsets = self.ragged(task, feature)
        return tokens[offsets[index] : offsets[index + 1]].astype(np.int32)

    def examples(self, indices: Iterable[int]) -> list[dict[str, Any]]:
        """The examples' texts (id, input, label, ...), read from disk when asked for."""
        offsets = _load(self.path / "examples.offsets.npy")
        found = []
        with (self.path / "examples.jsonl").open("rb") as file:
            for index in indices:
                file.seek(offsets[index])
                found.append(json.loads(file.read(offsets[index + 1] - offsets[index])))
        return found


@dataclasses.dataclass(frozen=True)
class TokenStore:
    """A finished store, opened for reading."""

    path: pathlib.Path
    meta: StoreMeta

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> TokenStore:
        """Opens the store in the folder `path`.

        Raises:
          FileNotFoundError: there is no finished store.
          ValueError: another format version wrote it.
        """
        path = pathlib.Path(path)
        try:
            text = (path / "meta.json").read_text(encoding="utf-8")
        except OSError as error:
            raise FileNotFoundError(f"{path} is no token store ({error.strerror}): run `dsbs prepare`.") from None
        version = json.loads(text).get("version")
        if version != STORE_VERSION:
            raise ValueError(f"{path} has store version {version}, this program reads {STORE_VERSION}: delete it.")
        return cls(path, StoreMeta.from_json(text))

    def split(self, name: str) -> Split:
        """One split. Raises ValueError, naming those there are, where it is missing or empty."""
        if name not in self.meta.splits:
            raise ValueError(
                f"{self.meta.name} has no split {name!r}; its splits are {', '.join(self.meta.splits)} ({self.path})."
            )
        num_examples = self.meta.splits[name]
        if not num_examples:
            raise ValueError(f"The split {name!r} of {self.meta.name} is empty ({self.path}).")
        streams = [stream for stream in self.meta.streams if stream.sizes[name]]
        return Split(
            path=self.path / name,
            tasks=self.meta.tasks,
            num_examples=num_examples,
            feature_lengths=self.meta.feature_lengths,
            stream_sizes=tuple(stream.sizes[name] for stream in streams) or (num_examples,),
            stream_rates=tuple(stream.rate for stream in streams) or (1.0,),
        )


class SplitWriter:
    """Appends the rows of one split; made by `StoreWriter.split`."""

    def __init__(self, path: pathlib.Path, tasks: Sequence[str], vocabulary_size: int):
        path.mkdir()
        self.num_examples = 0
        self._path = path
        self._tasks = tuple(tasks)
        self._vocabulary_size = vocabulary_size
        self._files = contextlib.ExitStack()
        dtype = np.dtype(np.uint16 if vocabulary_size <= 2**16 else np.int32)
        self._columns = [
            {feature: _Column(path / f"{task}.{feature}", dtype, self._files) for feature in FEATURES}
            for task in self._tasks
        ]
        self._examples = self._files.enter_context((path / "examples.jsonl").open("wb"))
        self._example_offsets = array.array("q", [0])

    def add(self, pairs: Sequence[Pair | None], example: Mapping[str, Any]) -> None:
        """Appends one example.

        Args:
          pairs: per task the ids of (inputs, targets), each with its EOS; None where the example has no such pair. In
            evaluation splits targets may be empty.
          example: what `Split.examples` gives back: JSON values, at least `id`, `input` and `label`.

        Raises:
          ValueError: for another number of pairs, or an id outside the vocabulary.
        """
        if len(pairs) != len(self._tasks):
            raise ValueError(f"Row {self.num_examples} has {len(pairs)} pairs for the tasks {', '.join(self._tasks)}.")
        for task, columns, pair in zip(self._tasks, self._columns, pairs, strict=True):
            for feature, ids in zip(FEATURES, pair or ((), ()), strict=True):
                row = np.asarray(ids, np.int64)
                if row.size and (row.min() < 0 or row.max() >= self._vocabulary_size):
                    raise ValueError(
                        f"Row {self.num_examples}, {task} {feature}: ids reach from {row.min()} to {row.max()}; the "
                        f"vocabulary has {self._vocabulary_size}."
                    )
                columns[feature].append(row)
        line = json.dumps(example, ensure_ascii=False).encode() + b"\n"
        self._examples.write(line)
        self._example_offsets.append(self._example_offsets[-1] + len(line))
        self.num_examples += 1

    def complete(self) -> None:
        """Brings everything to its files."""
        for columns in self._columns:
            for column in columns.values():
                column.complete()
        np.save(self._path / "examples.offsets.npy", np.frombuffer(self._example_offsets, np.int64))
        self.close()

    def close(self) -> None:
        """Closes the files as they are."""
        self._files.close()


class _Column:
    """One ragged array on its way to disk: tokens are appended to an .npy file whose header is completed at the end."""

    def __init__(self, stem: pathlib.Path, dtype: np.dtype, files: contextlib.ExitStack):
        self._stem, self._dtype = stem, dtype
        self._offsets = array.array("q", [0])
        self._file = files.enter_context(stem.with_name(stem.name + ".tokens.npy").open("wb"))
        self._write_header()

    def _write_header(self) -> None:
        # numpy pads the header so that its length does not change with the number of rows.
        header = {"descr": np.lib.format.dtype_to_descr(self._dtype), "fortran_order": False}
        np.lib.format.write_array_header_1_0(self._file, header | {"shape": (self._offsets[-1],)})

    def append(self, row: np.ndarray) -> None:
        self._file.write(row.astype(self._dtype).tobytes())
        self._offsets.append(self._offsets[-1] + len(row))

    def complete(self) -> None:
        self._file.seek(0)
        self._write_header()
        np.save(self._stem.with_name(self._stem.name + ".offsets.npy"), np.frombuffer(self._offsets, np.int64))


class StoreWriter:
    """Writes a store; `commit` makes it appear, whole, under its key.

        with StoreWriter(root, key) as writer:
            train = writer.split("train", tasks, vocabulary.size)
            train.add([(inputs, targets), None], {"id": "train/0", "input": "...", "label": "..."})
            path = writer.commit(StoreMeta(name=..., ...))

    Leaving the block without `commit` leaves nothing. A failed write comes out as one sentence (OSError).
    """

    def __init__(self, root: str | os.PathLike[str], key: str):
        self._root = pathlib.Path(root)
        self._key = key
        self._folder = AtomicFolder(self._root, key)
        self._splits: dict[str, SplitWriter] = {}

    def __enter__(self) -> StoreWriter:
        try:
            self._folder.__enter__()
        except OSError as error:
            raise _unwritable(self._root, error) from None
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        with contextlib.suppress(OSError):
            # A full disk fails here again, on what is still buffered.
            for split in self._splits.values():
                split.close()
        self._folder.__exit__()
        # Only errors of writing: the caller reads files, perhaps from a network, inside the block.
        if isinstance(error, OSError) and error.errno in _WRITE_ERRORS:
            raise _unwritable(self._root, error) from None

    def split(self, name: str, tasks: Sequence[str], vocabulary_size: int) -> SplitWriter:
        """Starts the split `name` with these tasks, whose names become file names."""
        for word in (name, *tasks):
            if not _NAME.fullmatch(word):
                raise ValueError(f"{word!r} cannot name a split or a task: use letters, digits, '_', '-' and '.'.")
        self._splits[name] = SplitWriter(self._folder.path / name, tasks, vocabulary_size)
        return self._splits[name]

    def commit(self, meta: StoreMeta) -> pathlib.Path:
        """Completes the store and returns its folder: this writer's, or that of another writer which was faster."""
        for name, split in self._splits.items():
            split.complete()
            rows = sum(stream.sizes[name] for stream in meta.streams)
            if meta.streams and rows != split.num_examples:
                raise ValueError(f"The streams of {name} hold {rows} rows, the split {split.num_examples}.")
        splits = {name: split.num_examples for name, split in self._splits.items()}
        meta = dataclasses.replace(meta, splits=splits, key=self._key)
        (self._folder.path / "meta.json").write_text(meta.to_json(), encoding="utf-8")
        return self._folder.commit()


def _unwritable(root: pathlib.Path, error: OSError) -> OSError:
    return OSError(
        f"Cannot write the token store in {root} ({error.strerror or error}): free space there, or name another folder "
        "with DSBS_STORE_DIR."
    )


def _damaged(path: pathlib.Path) -> ValueError:
    return ValueError(f"The token store file {path} is damaged: delete the folder {path.parent.parent} and try again.")


def _load(path: pathlib.Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        raise _damaged(path) from None
