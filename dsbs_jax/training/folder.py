"""What a run finds before it is built: the other processes' configurations, its folder, its result if it is done."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import socket
import time
import uuid
from collections.abc import Iterator
from typing import Any

import jax

import dsbs_jax
from dsbs_jax.data.folders import CELL, SUMMARY, held
from dsbs_jax.sharding.agreement import from_first, gathered, is_first, together
from dsbs_jax.training.config import MAY_CHANGE, TrainConfig, as_read, changed_fields

# Where things lie on a host is the host's own matter.
_HOSTS_OWN = frozenset(
    {"model_dir", "store_root", "data.data_dir", "data.vocabulary.path", "initial_weights", "progress"}
)
_SHARED_SECONDS = 10.0  # A network file system may show a new file late.


def check_agreement(config: TrainConfig) -> None:
    """Raises ValueError where the processes of a run were given different configurations or versions."""

    def own() -> dict[str, Any]:
        return config.to_json() | {"version": {"dsbs_jax": dsbs_jax.__version__, "jax": jax.__version__}}

    configs = gathered("config", own)
    for process, other in enumerate(configs):
        if differ := changed_fields(configs[0], other, _HOSTS_OWN, ("in process 0", f"in process {process}")):
            raise ValueError(
                f"The processes of this run were started differently: {'; '.join(differ)}. Give all the same flags."
            )


def finished_result(config: TrainConfig) -> dict[str, Any] | None:
    """The result of a run that is done, or None; also None where it is done but for the steps it now has more.

    Raises:
      ValueError: the folder holds a finished run of another configuration; names the fields.
    """

    def read() -> dict[str, Any] | None:
        path = pathlib.Path(config.model_dir) / SUMMARY
        if not path.is_file():
            return None
        summary = json.loads(path.read_text())
        check_same(config, summary["config"], config.model_dir)
        return summary["result"] if summary["config"]["steps"] == config.steps else None

    # Process 0 writes the file: another might see it too late, or too early.
    return from_first("finished", read)


def check_same(config: TrainConfig, before: dict[str, Any], model_dir: str) -> None:
    """Raises ValueError where a run that was configured as `before` cannot go on as `config`; names the fields.

    It may go on to more steps, unless it is a cell of a sweep.
    """
    longer = config.steps > before["steps"]
    may_change = MAY_CHANGE | {"steps"} if longer else MAY_CHANGE
    if changed := changed_fields(as_read(before), as_read(config.to_json()), may_change):
        raise ValueError(
            f"{model_dir} holds a run with another configuration, which cannot go on with this one: "
            f"{'; '.join(changed)}. Choose another model_dir, or the old values."
        )
    if longer and _is_cell(pathlib.Path(model_dir)):
        raise ValueError(
            f"{model_dir} is a cell of a sweep, named by its {before['steps']} steps and all else that it is: for "
            f"{config.steps} steps copy it elsewhere, under another name (cp -r), and continue the copy."
        )


def leave_sweep(folder: pathlib.Path) -> None:
    """Of a copied cell that is continued: it is no cell of its sweep any more."""
    (folder / CELL).unlink(missing_ok=True)


def _is_cell(folder: pathlib.Path) -> bool:
    """A cell's folder has the cell's name; a copy of it, another."""
    path = folder / CELL
    return path.is_file() and json.loads(path.read_text())["cell"] == folder.absolute().name


@contextlib.contextmanager
def reserved_folder(model_dir: str) -> Iterator[pathlib.Path]:
    """The run's folder, made where it is missing, for this run alone while the block runs.

    Process 0 holds its lock for all processes, which must see the same folder: all of them save into it.

    Raises:
      OSError: it cannot be written.
      ValueError: another run trains in it, or a process of this one does not see it.
    """
    folder = pathlib.Path(model_dir)
    with contextlib.ExitStack() as stack:
        mark = from_first("folder", lambda: _reserve(folder, stack))
        try:
            together("folder/shared", lambda: None if is_first() else _await_mark(folder, mark))
        finally:
            if is_first():
                (folder / mark).unlink()
        yield folder


def _reserve(folder: pathlib.Path, stack: contextlib.ExitStack) -> str:
    """In process 0: makes and locks the folder; returns the name of a new file in it."""
    mark = f".mark-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    _probe(folder, mark)
    try:
        stack.enter_context(held(folder / ".lock"))
    except BlockingIOError:
        (folder / mark).unlink()
        raise ValueError(f"Another process trains in {folder}: choose another MODEL_DIR, or stop it.") from None
    return mark


def _await_mark(folder: pathlib.Path, mark: str) -> None:
    deadline = time.monotonic() + _SHARED_SECONDS
    while not (folder / mark).exists():
        if time.monotonic() > deadline:
            raise ValueError(
                f"{folder} on {socket.gethostname()} is not the folder that process 0 writes: MODEL_DIR must be on a "
                "file system that all hosts share."
            )
        time.sleep(0.1)
    probe = f".probe-{jax.process_index()}-{os.getpid()}"
    _probe(folder, probe)
    (folder / probe).unlink()


def _probe(folder: pathlib.Path, name: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(bytes(4096))
    except OSError as error:
        with contextlib.suppress(OSError):
            (folder / name).unlink()
        raise OSError(
            f"Cannot write to the output folder {folder} ({error.strerror}): choose another MODEL_DIR."
        ) from None
