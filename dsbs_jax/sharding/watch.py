"""One process of a run that ends takes the others with it: quickly, and with a sentence.

A thread in every process tells the coordination service that the process lives, and reads there whether one has failed;
process 0's also looks who has fallen silent. JAX's runtime has a watch of its own, which aborts a process with a C++
call stack; it stays behind this one, for what this one cannot see: process 0, in which the service lives, gone. Its
abort gets a last sentence.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

from dsbs_jax.sharding.cluster import host_and_port

# Status codes with which a collective fails where another process has ended. Others (RESOURCE_EXHAUSTED) are our own.
_MAY_BE_ANOTHERS = re.compile(r"\b(UNKNOWN|UNAVAILABLE|INTERNAL|ABORTED|CANCELLED|DEADLINE_EXCEEDED): ")
_UNWIND_SECONDS = 5.0  # For a process that has failed to close its files before its own watch ends it.
_FAREWELL_SECONDS = 10.0  # For the others to read why, before process 0 ends and takes the service with it.
# A folder of one entry, because asking for a key that is not there is an error.
_FAILED = "dsbs/failed"
AGAIN = "start the same command again on every host; a run goes on at its last checkpoint"


class Watch:
    """The watch of one process over its run.

    Args:
      client: of JAX's coordination service.
      process: this process's number.
      count: how many there are.
      address: of process 0, in which the coordination service lives.
      timeout: seconds of silence after which a process is held to be gone.
    """

    def __init__(self, client: Any, process: int, count: int, address: str, timeout: float):
        self._client, self._process, self._count = client, process, count
        self._address, self._timeout = address, timeout
        self._period = min(1.0, timeout / 10)
        self._heard: dict[int, tuple[str, float]] = {}
        self._gone: set[int] = set()
        self._stopped = threading.Event()
        self._published = threading.Event()
        self._ending = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="dsbs-watch", daemon=True)

    def start(self) -> None:
        """Begins to watch."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the watch, before the runtime is shut down."""
        self._stopped.set()
        self._thread.join()

    def failed(self, error: BaseException) -> None:
        """Tells the others, once, that this process fails with `error`, which ends them with its sentence.

        An error that may be another's end as it looks from here (a collective that broke) is kept back until it is
        known who failed; this process is ended then, with that sentence.
        """
        if self._published.is_set():
            return
        code = _exit_code(error)
        reason = {130: "Ctrl-C", 143: "SIGTERM"}.get(code) or str(error) or type(error).__name__
        if _may_be_anothers(error):
            first_line = reason.splitlines()[0]
            _say(f"process {self._process} of {self._count} waits {self._timeout:g} s for what is behind: {first_line}")
            self._stopped.wait(self._timeout + 2 * self._period)
        self._publish(self._process, f"process {self._process} of {self._count} stopped: {reason}", code)

    def leave(self, error: BaseException, tell: Callable[[], object]) -> NoReturn:
        """Ends this process, which has failed, after `tell`: at once, for at a barrier nobody would come."""
        self.failed(error)
        self._end(tell, _exit_code(error))

    def last_words(self) -> str:
        """What to say where JAX's runtime aborts this process; nothing where it is ending, and has said why."""
        if self._ending.locked():
            return ""
        if self._process != 0 and not _answers(self._address):
            return f"process 0 of {self._count}, the coordinator at {self._address}, is gone: {AGAIN}."
        return (
            f"process {self._process} of {self._count} was ended by JAX's runtime, whose words stand above, as where a "
            f"process is gone or the network is: {AGAIN}."
        )

    def _run(self) -> None:
        beat = 0
        while not self._stopped.wait(self._period):
            beat += 1
            try:
                self._client.key_value_set(f"dsbs/alive/{self._process}", str(beat), True)
                if self._process == 0:
                    self._look_for_the_gone()
                failures = self._client.key_value_dir_get(_FAILED)
            except RuntimeError:
                continue  # the service is gone: the runtime's own watch ends this process
            if failures:
                self._end_by(json.loads(failures[0][1]))

    def _look_for_the_gone(self) -> None:
        beats = {int(name.rpartition("/")[2]): beat for name, beat in self._client.key_value_dir_get("dsbs/alive")}
        now = time.monotonic()
        for process in range(1, self._count):
            beat, since = beats.get(process, ""), self._heard.get(process)
            if since is None or since[0] != beat:
                self._heard[process] = (beat, now)
            elif now - since[1] > self._timeout:
                self._gone.add(process)
                gone = f"process {process} of {self._count} is gone (no sign of life for {self._timeout:g} s): {AGAIN}."
                self._publish(process, gone, 1)

    def _publish(self, process: int, sentence: str, code: int) -> None:
        self._published.set()
        told = json.dumps({"process": process, "sentence": sentence, "code": code})
        # Another may have been faster, or the service be gone.
        with contextlib.suppress(RuntimeError):
            self._client.key_value_set(f"{_FAILED}/first", told)

    def _end_by(self, failure: dict[str, Any]) -> None:
        """Ends this process for a failure that was told."""
        # Whoever failed has a moment to close its files and to tell its error itself.
        if failure["process"] == self._process and self._stopped.wait(_UNWIND_SECONDS):
            return
        self._end(lambda: _say(failure["sentence"]), failure["code"])

    def _end(self, tell: Callable[[], object], code: int) -> NoReturn:
        # Only one thread ends the process; the other waits for that.
        self._ending.acquire()
        try:
            tell()
            self._say_farewell()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def _say_farewell(self) -> None:
        with contextlib.suppress(RuntimeError):
            self._client.key_value_set(f"dsbs/left/{self._process}", "1")
            deadline = time.monotonic() + _FAREWELL_SECONDS
            while self._process == 0 and time.monotonic() < deadline:
                if len(self._client.key_value_dir_get("dsbs/left")) >= self._count - len(self._gone):
                    break
                time.sleep(0.05)


def _answers(address: str) -> bool:
    try:
        with socket.create_connection(host_and_port(address), timeout=2):
            return True
    except OSError:
        return False


def _may_be_anothers(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, Exception) and _MAY_BE_ANOTHERS.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def _exit_code(error: BaseException) -> int:
    if isinstance(error, KeyboardInterrupt):
        return 130
    return error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 1


def _say(sentence: str) -> None:
    print(f"dsbs: {sentence}", file=sys.stderr, flush=True)


_abort_handler: Any = None  # ctypes does not keep it


def on_abort(sentence: Callable[[], str]) -> None:
    """Lets an abort of this process (a fatal error of JAX's runtime) end with a sentence, and exit code 1.

    Python's own handlers would never run: `abort` comes back before the interpreter does. JAX's callback for lost
    processes is no way either: the status it is called with has no Python type, which is a second fatal error.
    """
    global _abort_handler

    def handle(_: int) -> None:
        signal.alarm(10)  # whatever goes wrong from here, the process ends
        try:
            if words := sentence():
                _say(words)
        finally:
            os._exit(1)

    _abort_handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(handle)
    install = ctypes.CDLL(None).signal
    install.argtypes, install.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    install(signal.SIGABRT, ctypes.cast(_abort_handler, ctypes.c_void_p))
