"""The watch's decisions, against a store in this process; real processes end in tests/training/test_many_hosts.py."""

import json
import subprocess
import sys

import pytest

from dsbs_jax.sharding import watch
from dsbs_jax.sharding.watch import Watch


class Store:
    """What of JAX's client the watch uses."""

    def __init__(self):
        self.entries: dict[str, str] = {}

    def key_value_set(self, key: str, value: str, allow_overwrite: bool = False) -> None:
        if key in self.entries and not allow_overwrite:
            raise RuntimeError(f"ALREADY_EXISTS: {key}")
        self.entries[key] = value

    def key_value_dir_get(self, folder: str) -> list[tuple[str, str]]:
        return [(key, value) for key, value in self.entries.items() if key.startswith(f"{folder}/")]


class Ended(BaseException):
    """Instead of this process's end."""


@pytest.fixture
def ends(monkeypatch):
    def end(code: int) -> None:
        raise Ended(code)

    monkeypatch.setattr(watch.os, "_exit", end)


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(watch.time, "monotonic", lambda: now[0])
    return now


def failure(store: Store) -> dict:
    return json.loads(store.entries["dsbs/failed/first"])


def test_a_process_is_gone_after_the_timeout_and_not_before(clock):
    store = Store()
    first = Watch(store, 0, 3, "127.0.0.1:1", timeout=10)
    store.entries |= {"dsbs/alive/1": "1", "dsbs/alive/2": "1"}
    first._look_for_the_gone()
    clock[0] = 9.0
    store.entries["dsbs/alive/2"] = "2"
    first._look_for_the_gone()
    assert "dsbs/failed/first" not in store.entries
    clock[0] = 10.5
    first._look_for_the_gone()
    assert failure(store)["process"] == 1
    assert "process 1 of 3 is gone (no sign of life for 10 s)" in failure(store)["sentence"]


def test_a_process_that_never_gave_a_sign_is_gone_too(clock):
    store = Store()
    first = Watch(store, 0, 2, "127.0.0.1:1", timeout=10)
    first._look_for_the_gone()
    clock[0] = 10.5
    first._look_for_the_gone()
    assert failure(store)["process"] == 1


def test_the_first_failure_is_what_all_are_told():
    store = Store()
    Watch(store, 1, 2, "127.0.0.1:1", 10).failed(ValueError("bad row 7"))
    Watch(store, 0, 2, "127.0.0.1:1", 10).failed(SystemExit(143))
    assert failure(store) == {"process": 1, "sentence": "process 1 of 2 stopped: bad row 7", "code": 1}


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [(KeyboardInterrupt(), 130, "Ctrl-C"), (SystemExit(143), 143, "SIGTERM"), (OSError("full disk"), 1, "full disk")],
)
def test_all_end_with_the_code_of_the_one_that_ended(error, code, reason, ends, capsys):
    store = Store()
    Watch(store, 1, 2, "127.0.0.1:1", 10).failed(error)
    with pytest.raises(Ended) as ended:
        Watch(store, 0, 1, "127.0.0.1:1", 10)._end_by(failure(store))
    assert ended.value.args == (code,)
    assert capsys.readouterr().err == f"dsbs: process 1 of 2 stopped: {reason}\n"


def test_a_broken_collective_waits_for_the_news_of_who_is_gone():
    store = Store()
    mine = Watch(store, 0, 2, "127.0.0.1:1", timeout=0.1)
    mine._stopped.wait = lambda seconds: store.key_value_set("dsbs/failed/first", json.dumps({"process": 1}))
    try:
        raise OSError("The checkpoint could not be written") from ValueError("UNKNOWN: Gloo all-reduce failed")
    except OSError as error:
        mine.failed(error)
    assert failure(store) == {"process": 1}
    # Memory that is too small is a process's own failure.
    store.entries.clear()
    mine = Watch(store, 0, 2, "127.0.0.1:1", timeout=0.1)
    mine._stopped.wait = lambda seconds: pytest.fail("nothing to wait for")
    mine.failed(RuntimeError("RESOURCE_EXHAUSTED: Out of memory"))
    assert "Out of memory" in failure(store)["sentence"]


def test_an_abort_ends_with_the_sentence_instead_of_a_signal():
    script = (
        "import ctypes, threading; from dsbs_jax.sharding.watch import on_abort; on_abort(lambda: 'the last words'); "
        # As in JAX's runtime: in a thread that is not Python's own, while Python is busy.
        "threading.Thread(target=ctypes.CDLL(None).abort).start()\nwhile True: pass"
    )
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (process.returncode, process.stderr) == (1, "dsbs: the last words\n")
