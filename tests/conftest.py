"""Fixtures shared by all tests."""

import contextlib
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest

# Tests compile much and compute little: compiling without optimisations takes a third of the time.
QUICK_COMPILE = "--xla_backend_optimization_level=0"
# Eight simulated devices for the sharding tests; must be set before JAX starts.
os.environ.setdefault("XLA_FLAGS", f"--xla_force_host_platform_device_count=8 {QUICK_COMPILE}")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Triton and TensorFlow each bring an LLVM: a process that loads both may crash. No test needs triton.
sys.modules.setdefault("triton", None)  # type: ignore[arg-type]

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """The folder with the real datasets and the T5 vocabulary; tests that need it skip where it is absent."""
    folder = pathlib.Path(os.environ.get("DSBS_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "dss").is_dir():
        pytest.skip(f"needs the real data: set DSBS_SHARED_DATA (looked in {folder})")
    return folder


@pytest.fixture(scope="session")
def store_root(tmp_path_factory) -> pathlib.Path:
    """One folder of token stores for the whole session: each store is made once."""
    return tmp_path_factory.mktemp("stores")


@pytest.fixture(scope="session")
def environment(store_root, tmp_path_factory) -> dict[str, str]:
    """The environment of a user's process on one device, with its caches inside the session's folder."""
    kept = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "DSBS_DATA_DIR")}
    return kept | {
        "DSBS_STORE_DIR": str(store_root),
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("compiled")),
        "JAX_PLATFORMS": "cpu",
        "PYTHONUNBUFFERED": "1",
        "XLA_FLAGS": QUICK_COMPILE,
    }


@pytest.fixture(scope="session")
def dsbs(environment, tmp_path_factory) -> Callable[..., subprocess.CompletedProcess]:
    """Runs `dsbs` as a user does, in a process of its own and a folder that is not the checkout."""
    folder = tmp_path_factory.mktemp("somewhere")

    def run(*words: object, env: dict[str, str] | None = None, **options) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "dsbs_jax", *map(str, words)]
        options = {"cwd": folder, "capture_output": True, "text": True, "timeout": 300} | options
        return subprocess.run(command, env=environment | (env or {}), **options)

    return run


@dataclasses.dataclass(frozen=True)
class TorchT5:
    """A transformers model and the folder it was saved to."""

    model: Any
    folder: pathlib.Path


@pytest.fixture(scope="session")
def save_torch_t5() -> Callable[..., TorchT5]:
    """Makes and saves a random model of given sizes: `v1_0` (ReLU, tied, scaled), `v1_1` (gated, own head) or
    `v1_1_tied` (gated, tied, unscaled)."""
    torch = pytest.importorskip("torch", reason="parity needs the extra `parity` (torch, transformers)")
    transformers = pytest.importorskip("transformers")

    def save(version: str, folder: pathlib.Path, **sizes: Any) -> TorchT5:
        torch.manual_seed(0)
        gated = version != "v1_0"
        config = transformers.T5Config(
            **sizes,
            feed_forward_proj="gated-gelu" if gated else "relu",
            tie_word_embeddings=not gated,
            decoder_start_token_id=0,
        )
        model = transformers.T5ForConditionalGeneration(config).eval()
        for name, parameter in model.named_parameters():
            if "layer_norm" in name:
                parameter.data.uniform_(0.5, 1.5)
        if version == "v1_1":
            # Transformers 5 makes every new T5 tied; published v1.1 weights have a matrix of their own.
            model.lm_head.weight = torch.nn.Parameter(torch.randn(model.shared.weight.shape))
        model.save_pretrained(folder)
        return TorchT5(model, folder)

    return save


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
def _running(command: list[str], **options) -> Iterator[Server]:
    """A process that prints its base URL, ended after the block."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            assert url.startswith("http://127.0.0.1:"), "the server did not start"
            yield Server(url, process)
        finally:
            process.kill()


@pytest.fixture(scope="session")
def serving() -> Callable[..., contextlib.AbstractContextManager[Server]]:
    """Runs a server of the tests: `with serving([sys.executable, "server.py"]) as server`."""
    return _running


@pytest.fixture(scope="session")
def label_server(serving) -> Iterator[Server]:
    """One server of `label_server.py` for the session; each test that uses it resets it by `control`."""
    with serving([sys.executable, str(pathlib.Path(__file__).with_name("label_server.py"))]) as server:
        yield server
