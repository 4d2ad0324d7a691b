"""Files that appear whole or not at all, whoever else is writing them and however a writer ends."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """A path to write to; it becomes `path` when the block ends, whole, or disappears where the block fails."""
    # Processes and machines that share the folder may write it at the same time, each by a name of its own.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Writes a small file in UTF-8 that appears whole."""
    with appearing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
