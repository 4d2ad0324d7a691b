"""The journal of a labelling: every answer is on disk before it counts.

A folder of append-only files of JSON lines, one file a writing process, so that several machines may label side by
side. One line is one answer or one failure:

    {"key": "9f...", "row": "train/17", "sample": 0, "text": "...", "finish_reason": "stop", "prompt_tokens": 812,
     "completion_tokens": 61}
    {"key": "07...", "row": "train/18", "sample": 0, "failure": "context_too_long", "message": "...", "final": true}

`append` writes a group of records with one write and one fsync, and only then knows their keys. What a killed process
or a power loss leaves at the end of a file was never counted: a line that is cut off there is removed when the file is
opened for writing. A broken line anywhere else is an error. In memory are keys and offsets (about 200 bytes an answer),
never texts.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from dsbs_jax.teacher.requests import Answer, Failure, Outcome

logger = logging.getLogger(__name__)

# No group that is written at once is longer, in bytes.
GROUP_BYTES = 1 << 20
# A location is file number * _FILE + offset in that file.
_FILE = 1 << 44


class JournalError(RuntimeError):
    """A journal that cannot be read or written: a sentence that names the file and the mend."""


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """One line of the journal.

    Attributes:
      key: `requests.request_key` of the request.
      row: the row it was asked for first; others with the same key share it.
      sample: the request's sample index.
      outcome: the answer or the failure.
    """

    key: str
    row: str
    sample: int
    outcome: Outcome

    def to_json(self) -> str:
        """One line, without its end."""
        fields: dict[str, object] = {"key": self.key, "row": self.row, "sample": self.sample}
        if isinstance(self.outcome, Answer):
            fields |= {
                "text": self.outcome.text,
                "finish_reason": self.outcome.finish_reason,
                "prompt_tokens": self.outcome.prompt_tokens,
                "completion_tokens": self.outcome.completion_tokens,
            }
        else:
            fields |= {
                "failure": self.outcome.reason,
                "message": self.outcome.message,
                "final": self.outcome.final,
            }
        # ASCII: half of a surrogate pair, which a server may send, has no UTF-8.
        return json.dumps(fields, separators=(",", ":"))

    @classmethod
    def from_fields(cls, fields: dict) -> Record:
        """The record in a line's JSON object, which `_check` accepted."""
        outcome: Outcome
        if "failure" in fields:
            outcome = Failure(fields["failure"], fields.get("message", ""), fields.get("final", True))
        else:
            outcome = Answer(
                fields["text"],
                fields.get("finish_reason"),
                fields.get("prompt_tokens"),
                fields.get("completion_tokens"),
            )
        return cls(fields["key"], fields["row"], fields["sample"], outcome)


class Journal:
    """A folder of records: those of all its files are known, one file is written.

        with Journal(folder, "shard-0") as journal:
            journal.append([Record(...)])
            "9f..." in journal

    Attributes:
      folder: where the files lie.
      path: the file that this process writes, `{folder}/{name}.jsonl`; None when only reading.
      torn_bytes: what was cut off the end of that file when it was opened: of records that had never counted.
      duplicates: answers beyond the first with the same key, e.g. of machines that labelled the same rows.
    """

    def __init__(self, folder: str | Path, name: str = "answers", *, read_only: bool = False):
        """Opens the journal, making the folder and the file where they are missing.

        Args:
          folder: the journal's folder.
          name: of this process's own file. Two processes that write at the same time need two names.
          read_only: writes nothing, cuts nothing, takes no lock; other processes may be writing.

        Raises:
          JournalError: another process is writing this file, or a line is broken.
        """
        self.folder = Path(folder)
        self.path = None if read_only else self.folder / f"{name}.jsonl"
        self.torn_bytes = 0
        self.duplicates = 0
        self._descriptor = -1
        self._number = -1
        self._size = 0
        self._locations: dict[str, int] = {}
        # Keys whose record is a final failure: an answer takes their place.
        self._failed: set[str] = set()
        self._readers: dict[Path, BinaryIO] = {}
        self._files: list[Path] = []
        try:
            if self.path is not None:
                self._lock()
            self._files = sorted(self.folder.glob("*.jsonl"))
            for number, path in enumerate(self._files):
                self._load(number, path)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Gives the lock back; what was appended is on disk already."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        for reader in self._readers.values():
            reader.close()
        self._readers.clear()

    def __len__(self) -> int:
        """The number of keys that need not be asked again: answers and final failures."""
        return len(self._locations)

    def __contains__(self, key: object) -> bool:
        return key in self._locations

    @property
    def answers(self) -> int:
        """The number of keys with an answer."""
        return len(self._locations) - len(self._failed)

    def failed(self, key: str) -> bool:
        """Whether the key's record is a final failure."""
        return key in self._failed

    def get(self, key: str) -> Record | None:
        """The record of a key, read from its file, or None."""
        location = self._locations.get(key)
        if location is None:
            return None
        path = self._files[location // _FILE]
        if path not in self._readers:
            self._readers[path] = path.open("rb")
        reader = self._readers[path]
        reader.seek(location % _FILE)
        return Record.from_fields(json.loads(reader.readline()))

    def append(self, records: Sequence[Record]) -> None:
        """Writes records; when this returns they are on disk and known.

        One fsync for each group of at most GROUP_BYTES.

        Raises:
          JournalError: the disk is full or fails. The file is as it was before the group that failed.
        """
        group: list[tuple[Record, bytes]] = []
        size = 0
        for record in records:
            line = record.to_json().encode("ascii") + b"\n"
            if group and size + len(line) > GROUP_BYTES:
                self._write(group)
                group, size = [], 0
            group.append((record, line))
            size += len(line)
        if group:
            self._write(group)

    def _write(self, group: list[tuple[Record, bytes]]) -> None:
        if self._descriptor < 0:
            raise JournalError(f"{self.folder} is open for reading only, or closed.")
        try:
            left = memoryview(b"".join(line for _, line in group))
            while left:
                left = left[os.write(self._descriptor, left) :]
            os.fsync(self._descriptor)
        except OSError as error:
            # After a failed fsync nobody knows what is on disk: back to what is.
            try:
                os.ftruncate(self._descriptor, self._size)
                os.fsync(self._descriptor)
            except OSError:
                logger.warning("%s could not be cut back; the next start does it", self.path)
            raise JournalError(
                f"{self.path}: {len(group)} answers could not be written ({error.strerror}); make room there and "
                f"start again: the {len(self)} known answers are on disk and are not asked again."
            ) from None
        for record, line in group:
            self._know(record.key, record.outcome, self._number * _FILE + self._size)
            self._size += len(line)

    def _know(self, key: str, outcome: Outcome, location: int) -> None:
        if isinstance(outcome, Failure):
            if outcome.final and key not in self._locations:
                self._locations[key] = location
                self._failed.add(key)
        elif key in self._locations and key not in self._failed:
            self.duplicates += 1
        else:
            self._locations[key] = location
            self._failed.discard(key)

    def _lock(self) -> None:
        assert self.path is not None
        self.folder.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise JournalError(
                f"{self.path} is being written by another process; wait for it to end, or give this one another "
                f"shard and so another file."
            ) from None
        except OSError:
            logger.warning("%s: this file system has no locks; make sure that one process alone writes it", self.path)
        # The file's name must survive a power loss as well as what is in it.
        sync_folder(self.folder)

    def _load(self, number: int, path: Path) -> None:
        end = 0
        whole = True
        for offset, line, fields in _lines(path):
            outcome = Failure("", "", fields.get("final", True)) if "failure" in fields else _ANSWERED
            self._know(fields["key"], outcome, number * _FILE + offset)
            end = offset + len(line)
            whole = line.endswith(b"\n")
        if path == self.path:
            self._number = number
            self.torn_bytes = os.fstat(self._descriptor).st_size - end
            if self.torn_bytes:
                os.ftruncate(self._descriptor, end)
            if not whole:
                # The record is complete, only its line's end is missing: it was paid for, so it stays.
                os.write(self._descriptor, b"\n")
                end += 1
            if self.torn_bytes or not whole:
                os.fsync(self._descriptor)
            self._size = end


_ANSWERED = Answer("")


def sync_folder(folder: Path) -> None:
    """The names of the folder's files are on disk when this returns."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_records(folder: str | Path) -> Iterator[Record]:
    """The records of a journal's files in alphabetical order, one at a time, without opening it as a whole.

    Also those that are not final, and all of a key.

    Args:
      folder: the journal's folder.

    Raises:
      JournalError: for a broken line that is not the end of its file.
    """
    for path in sorted(Path(folder).glob("*.jsonl")):
        for _, _, fields in _lines(path):
            yield Record.from_fields(fields)


def _check(fields: object) -> None:
    if not (
        isinstance(fields, dict)
        and isinstance(fields.get("key"), str)
        and isinstance(fields.get("row"), str)
        and isinstance(fields.get("sample"), int)
        and isinstance(fields.get("failure", fields.get("text")), str)
    ):
        raise ValueError("not a record of a journal")


def _lines(path: Path) -> Iterator[tuple[int, bytes, dict]]:
    """(offset, line, fields) of each record, up to the end or to what a killed writer left there."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        offset = 0
        for number, line in enumerate(file, start=1):
            try:
                fields = json.loads(line)
                _check(fields)
            except ValueError:
                # A power loss may leave blocks of zeros anywhere in the last group, which had not been synced.
                unsynced = b"\0" in line and size - offset <= GROUP_BYTES
                if offset + len(line) >= size or unsynced:
                    return
                raise JournalError(
                    f"{path}, line {number} is not a record of a journal, and lines follow it: the file was changed "
                    f"or damaged; take it from a backup, or remove that line and its row is asked again."
                ) from None
            yield offset, line, fields
            offset += len(line)
