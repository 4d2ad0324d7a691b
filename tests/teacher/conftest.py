"""Servers that teachers' tests talk to, each in a process of its own."""

import contextlib
import dataclasses
import importlib.util
import json
import pathlib
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator

import pytest

FAULT_SERVER = pathlib.Path(__file__).with_name("fault_server.py")


@dataclasses.dataclass(frozen=True)
class Server:
    """A running server."""

    url: str
    process: subprocess.Popen

    def control(self, **settings) -> None:
        """Changes its settings."""
        data = json.dumps(settings).encode()
        with _OPENER.open(urllib.request.Request(f"{self.url}/control", data), timeout=30):
            pass

    def state(self) -> dict:
        """What it did so far."""
        with _OPENER.open(f"{self.url}/log", timeout=30) as answer:
            return json.load(answer)

    def log(self) -> dict[str, list[str]]:
        """For each prompt, what happened each time it was asked."""
        return self.state()["log"]


# The environment's proxies do not know this machine's loopback address.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@contextlib.contextmanager
def running(command: list[str], **options) -> Iterator[Server]:
    """A process that prints its base URL, ended after the block."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            assert url.startswith("http://127.0.0.1:"), "the server did not start"
            yield Server(url, process)
        finally:
            process.kill()


@pytest.fixture
def fault_server() -> Iterator[Callable[..., Server]]:
    """Starts fault servers: `fault_server(rate=0.2)`."""
    with contextlib.ExitStack() as stack:

        def start(**settings) -> Server:
            return stack.enter_context(running([sys.executable, str(FAULT_SERVER), json.dumps(settings)]))

        yield start


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> pathlib.Path:
    """A folder with a tiny causal language model; skips where what makes it is not installed."""
    for name in ("torch", "transformers", "tokenizers"):
        pytest.importorskip(name, reason="needs the extra `teacher`")
    specification = importlib.util.spec_from_file_location("tiny_model", FAULT_SERVER.with_name("tiny_model.py"))
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module.make(tmp_path_factory.mktemp("teacher") / "tiny-teacher")
