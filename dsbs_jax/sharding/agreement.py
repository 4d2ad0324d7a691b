"""What the processes of one run tell each other on the host, over the key-value store of JAX's coordination service.

No device takes part: it works before the first compilation, lasts as long as the slowest process takes, and carries an
error as well as it carries a value.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any, TypeVar

import jax

T = TypeVar("T")

# Every process asks in the same order, so that equal numbers are one question.
_questions = itertools.count()
_WAIT_MILLISECONDS = 1000


class AgreedEnd(Exception):
    """Raised by every process at the same point of the run: none of them ends the others."""


def is_first() -> bool:
    """Whether this process is the one that writes what a run writes once: metrics, predictions, summary."""
    return jax.process_index() == 0


def client() -> Any:
    """The client of the coordination service, or None where `distributed.initialize` joined nothing.

    JAX has no public name for it; Orbax reads it there, too.
    """
    from jax._src import distributed

    return distributed.global_state.client


def coordinator_address_in_use() -> str:
    """`host:port` of process 0, which a cluster may have told JAX."""
    from jax._src import distributed

    return distributed.global_state.coordinator_address or ""


def place() -> tuple[int, int]:
    """(number of this process, number of processes) of the run that was joined; asks no device."""
    from jax._src import distributed

    return distributed.global_state.process_id, distributed.global_state.num_processes


def gathered(name: str, function: Callable[[], Any]) -> list[Any]:
    """Calls `function` in every process at once; returns what it returned in each, as JSON values.

    Waits as long as it takes: a process that ends instead is told of by `watch`.

    Args:
      name: what is asked, the same in every process.
      function: returns something that JSON can hold.

    Raises:
      ValueError, OSError, RuntimeError: `function` raised in one process; its sentence is raised in all.
    """
    count, index = jax.process_count(), jax.process_index()
    if count == 1:
        return [function()]
    store = client()
    if store is None:
        raise ValueError(
            f"JAX sees {count} processes, which were not started as one run: set DSBS_DISTRIBUTED=1, or give "
            "--coordinator_address, --num_processes and --process_id."
        )
    key = f"dsbs/{next(_questions)}/{name}"
    try:
        answer = {"value": function()}
    except Exception as error:
        store.key_value_set(f"{key}/{index}", json.dumps({"error": str(error), "kind": _kind(error).__name__}))
        if index == 0:
            _publish(store, key, count)
        raise
    store.key_value_set(f"{key}/{index}", json.dumps(answer))
    answers = _publish(store, key, count) if index == 0 else json.loads(_wait_for(store, f"{key}/all"))
    for process, told in answers.items():
        if "error" in told:
            where = f"process {process} of {count}: " if process != "0" else ""
            raise _KINDS[told["kind"]](where + told["error"])
    return [answers[str(process)]["value"] for process in range(count)]


def together(name: str, function: Callable[[], T]) -> T:
    """Calls `function` in every process at once; returns this process's own value, or raises any process's error.

    Raises:
      ValueError, OSError, RuntimeError: as `gathered`.
    """
    own: list[T] = []
    gathered(name, lambda: own.append(function()))
    return own[0]


def from_first(name: str, function: Callable[[], Any]) -> Any:
    """Calls `function` in process 0 alone; returns its value, which JSON must hold, in all.

    Raises:
      ValueError, OSError, RuntimeError: as `gathered`.
    """
    return gathered(name, lambda: function() if is_first() else None)[0]


_KINDS: dict[str, type[Exception]] = {kind.__name__: kind for kind in (OSError, ValueError, RuntimeError)}


def _kind(error: Exception) -> type[Exception]:
    return next((kind for kind in (OSError, ValueError) if isinstance(error, kind)), RuntimeError)


def _publish(store: Any, key: str, count: int) -> dict[str, Any]:
    """In process 0: every process's answer, or those there are as soon as one is an error; the others read it."""
    answers: dict[str, Any] = {}
    for process in range(count):
        while str(process) not in answers:
            text = _wait(store, f"{key}/{process}")
            if text is not None:
                answers[str(process)] = json.loads(text)
            else:
                there = {name.rpartition("/")[2]: json.loads(told) for name, told in store.key_value_dir_get(key)}
                if any("error" in told for told in there.values()):
                    answers = there
                    break
        if any("error" in told for told in answers.values()):
            break
    store.key_value_set(f"{key}/all", json.dumps(answers))
    return answers


def _wait_for(store: Any, key: str) -> str:
    while (text := _wait(store, key)) is None:
        pass
    return text


def _wait(store: Any, key: str) -> str | None:
    """The key's value, or None if it is not there within a second."""
    try:
        return store.blocking_key_value_get(key, _WAIT_MILLISECONDS)
    except RuntimeError as error:
        # Waiting in portions lets Ctrl-C and SIGTERM through.
        if "DEADLINE_EXCEEDED" not in str(error):
            raise
        return None
