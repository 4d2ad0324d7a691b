"""Servers that teachers' tests talk to, each in a process of its own."""

import contextlib
import importlib.util
import json
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

FAULT_SERVER = pathlib.Path(__file__).with_name("fault_server.py")


@pytest.fixture
def fault_server(serving) -> Iterator[Callable[..., Any]]:
    """Starts fault servers: `fault_server(rate=0.2)`."""
    with contextlib.ExitStack() as stack:

        def start(**settings) -> Any:
            return stack.enter_context(serving([sys.executable, str(FAULT_SERVER), json.dumps(settings)]))

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
