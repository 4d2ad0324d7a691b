"""`dsbs report --watch`: the report of a sweep that goes on, written again whenever one of its runs is done."""

from __future__ import annotations

import os
import pathlib
import sys
import time

from dsbs_jax.data.folders import CELL, SUMMARY
from dsbs_jax.experiments.report import contents, write_report
from dsbs_jax.experiments.results import ERROR, PLAN, Row

_OVER = ("finished", "failed")


def watch(root: str | os.PathLike[str], output: str | os.PathLike[str] | None, every: float) -> pathlib.Path:
    """Writes the report as `write_report` does, again and again, until no cell is left to run.

    Before the first result it waits. Its pages load themselves anew while it goes on; figures for print come at the
    end, also where that is Ctrl-C.

    Args:
      root: a sweep's folder, which may not be there yet.
      output: where to; None takes `report` in it.
      every: seconds between two looks, and two times that the pages are loaded.

    Returns:
      The path of `report.html`.
    """
    seen, written = None, False
    try:
        while True:
            # Looked at before it is read: what changes meanwhile is a change for the next time.
            state = _state(pathlib.Path(root))
            if state != seen:
                rows, over = _read(root)
                if any(row.status in _OVER for row in rows):
                    path = write_report(root, output, reload=None if over else every)
                    written = True
                    counts = [sum(row.status == one for row in rows) for one in _OVER]
                    print(f"{path}: {counts[0]} of {len(rows)} cells finished, {counts[1]} failed.", file=sys.stderr)
                    if over:
                        return path
                elif seen is None:
                    print(f"Waiting for the first result in {root}.", file=sys.stderr)
                seen = state
            time.sleep(every)
    except KeyboardInterrupt:
        if written:
            write_report(root, output)
        raise


def _read(root: str | os.PathLike[str]) -> tuple[list[Row], bool]:
    """The rows, none before the sweep begins; and whether nothing is left to run."""
    try:
        rows, states, _ = contents(root)
    except FileNotFoundError:
        return [], False
    if any(row.status == "running" for row in rows):
        return rows, False
    if states:
        return rows, not any(state.planned for state in states)
    return rows, all(row.status in _OVER for row in rows)


def _state(root: pathlib.Path) -> dict[str, tuple[int, int]]:
    """When the files that tell a sweep's state changed, and their sizes: cheap, whatever the runs hold."""
    paths = [root / PLAN]
    if (root / "runs").is_dir():
        paths += [folder / name for folder in (root / "runs").iterdir() for name in (CELL, SUMMARY, ERROR)]
    found = {}
    for path in paths:
        try:
            told = path.stat()
        except OSError:
            continue
        found[str(path)] = (told.st_mtime_ns, told.st_size)
    return found
