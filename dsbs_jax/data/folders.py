"""Folders that appear whole or not at all, whoever else is writing them and however a writer ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
import shutil
import socket
import time
import uuid
from collections.abc import Iterator
from typing import BinaryIO

# In the folder of a sweep's run: which cell it is. Training only asks whether it is one; `experiments/` writes it.
CELL = "cell.json"
# In the folder of any run, once it is finished: result, data, configuration.
SUMMARY = "summary.json"
_STALE_SECONDS = 24 * 3600.0


class AtomicFolder:
    """Fills a temporary folder beside its final place; `commit` syncs it and renames it there.

        with AtomicFolder(root, name) as folder:
            (folder.path / "data").write_bytes(...)
            final = folder.commit()

    Leaving the block without `commit` removes the temporary folder. One left behind by a killed writer is removed by a
    later writer.

    Attributes:
      path: the temporary folder, inside the block.
    """

    path: pathlib.Path

    def __init__(self, root: pathlib.Path, name: str):
        self._root = root
        self._name = name

    def __enter__(self) -> AtomicFolder:
        self._root.mkdir(parents=True, exist_ok=True)
        remove_stale(self._root)
        process = f"{socket.gethostname()}@{os.getpid()}@{uuid.uuid4().hex[:8]}"
        self.path = self._root / f".tmp-{self._name}@{process}"
        self.path.mkdir()
        # Held until this process ends, however it ends: see `remove_stale`.
        self._lock = (self.path / "lock").open("wb")
        _try_lock(self._lock)
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()

    def commit(self) -> pathlib.Path:
        """Makes the folder appear and returns it: this one, or that of another writer which was faster."""
        (self.path / "lock").unlink()
        for path in (*self.path.rglob("*"), self.path):
            _sync(path)
        final = self._root / self._name
        try:
            self.path.rename(final)
        except OSError:
            # A folder that is not empty cannot be renamed over.
            if not final.is_dir():
                raise
        _sync(self._root)
        return final


@contextlib.contextmanager
def held(path: pathlib.Path) -> Iterator[None]:
    """Holds the lock file `path` while the block runs; it ends with this process, however that ends.

    Raises:
      BlockingIOError: another process holds it.
    """
    with path.open("ab") as file:
        if not _try_lock(file):
            raise BlockingIOError(f"{path} is held by another process.")
        yield


def remove_stale(root: pathlib.Path) -> None:
    """Removes the temporary folders in `root` whose writers are gone.

    A folder goes when its writer's lock is free, and its process is dead on this host or nothing in it has changed for
    a day. (The lock alone would not do on file systems that do not share locks between hosts.)
    """
    for folder in root.glob(".tmp-*@*@*@*"):
        _, host, process, _ = folder.name.rsplit("@", 3)
        # Another writer may be removing the same folder.
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            if host == socket.gethostname():
                if _is_alive(int(process)):
                    continue
            elif time.time() - max(path.stat().st_mtime for path in (folder, *folder.rglob("*"))) < _STALE_SECONDS:
                continue
            lock = folder / "lock"
            if not lock.exists() or _try_lock(stack.enter_context(lock.open("rb"))):
                shutil.rmtree(folder, ignore_errors=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it lives, and is someone else's
        pass
    return True


def _try_lock(file: BinaryIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        pass
    return True


def _sync(path: pathlib.Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
