"""Fixtures shared by all tests."""

import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import socket
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

# A shell's background job ignores Ctrl-C, and so would every process that a test starts and sends one.
signal.signal(signal.SIGINT, signal.default_int_handler)

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


@pytest.fixture(scope="module")
def quick_compilation() -> Iterator[None]:
    """Half the compile time, for modules whose tests do not depend on how well a program is optimised."""
    import jax

    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    """A port of this machine that nobody listens on."""

    def find() -> int:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            return listener.getsockname()[1]

    return find


@pytest.fixture(scope="session")
def two_processes() -> Callable[..., list[str]]:
    """Runs a command in two processes of two devices each; returns what they print once both end well.

    `command` and `variables` give a process's words and further environment, by its number.
    """

    def run(command: Callable[[int], list[object]], variables: Callable[[int], dict[str, str]]) -> list[str]:
        devices = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
        processes = [
            subprocess.Popen(
                [sys.executable, *map(str, command(number))],
                env=os.environ | devices | variables(number),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for number in range(2)
        ]
        try:
            outputs = [process.communicate(timeout=120)[0] for process in processes]
        finally:
            for process in processes:
                process.kill()
        for process, output in zip(processes, outputs, strict=True):
            assert process.returncode == 0, output
        return outputs

    return run


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


def _huggingface_shapes(config: Any) -> dict[str, tuple[int, ...]]:
    inner, gated = config.num_heads * config.d_kv, config.feed_forward == "gated-gelu"
    shapes: dict[str, tuple[int, ...]] = {"shared.weight": (config.vocab_size, config.d_model)}
    if not config.tie_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, config.d_model)
    for stack, depth in (("encoder", config.num_layers), ("decoder", config.num_decoder_layers)):
        attentions = ("SelfAttention",) if stack == "encoder" else ("SelfAttention", "EncDecAttention")
        for layer in range(depth):
            for number, name in enumerate((*attentions, "DenseReluDense")):
                sublayer = f"{stack}.block.{layer}.layer.{number}"
                shapes[f"{sublayer}.layer_norm.weight"] = (config.d_model,)
                inward = ("wi_0", "wi_1") if gated else ("wi",)
                if name != "DenseReluDense":
                    shapes |= {f"{sublayer}.{name}.{p}.weight": (inner, config.d_model) for p in "qkv"}
                    shapes[f"{sublayer}.{name}.o.weight"] = (config.d_model, inner)
                else:
                    shapes |= {f"{sublayer}.{name}.{p}.weight": (config.d_ff, config.d_model) for p in inward}
                    shapes[f"{sublayer}.{name}.wo.weight"] = (config.d_model, config.d_ff)
        bias = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        shapes |= {
            f"{stack}.final_layer_norm.weight": (config.d_model,),
            bias: (config.num_buckets, config.num_heads),
        }
    return shapes


def _huggingface_config(config: Any) -> str:
    names = ("d_model", "d_kv", "d_ff", "num_layers", "num_decoder_layers", "num_heads", "vocab_size")
    raw = {name: getattr(config, name) for name in names} | {
        "model_type": "t5",
        "feed_forward_proj": config.feed_forward,
        "tie_word_embeddings": config.tie_embeddings,
        "relative_attention_num_buckets": config.num_buckets,
        "relative_attention_max_distance": config.max_distance,
    }
    return json.dumps(raw)


@pytest.fixture(scope="session")
def huggingface_files() -> tuple[Callable[[Any], dict[str, tuple[int, ...]]], Callable[[Any], str]]:
    """What a Hugging Face folder of a `T5Config` holds: shapes by name, and the text of its `config.json`."""
    return _huggingface_shapes, _huggingface_config


@pytest.fixture(scope="session")
def write_huggingface() -> Callable[..., dict[str, Any]]:
    """Writes a Hugging Face folder of random numbers without torch, and returns its tensors by name."""
    import numpy as np
    from safetensors.numpy import save_file

    def write(folder: pathlib.Path, config: Any, seed: int = 0) -> dict[str, Any]:
        generator = np.random.default_rng(seed)
        shapes = _huggingface_shapes(config)
        tensors = {name: generator.standard_normal(shape, np.float32) / 4 for name, shape in shapes.items()}
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / "model.safetensors")
        (folder / "config.json").write_text(_huggingface_config(config))
        return tensors

    return write


@pytest.fixture(scope="session")
def write_t5x() -> Callable[..., None]:
    """Writes tensors with Hugging Face's names as a T5X checkpoint.

    The names, shapes and orders of axes are those that transformers' converter of T5X checkpoints reads; the files are
    those that `t5x/checkpoints.py` writes: a msgpack file beside zarr folders (`t5x`), or items of Orbax, as folders
    (`orbax`), in one store (`ocdbt`) or as before 2023, without metadata (`placeholders`).
    """
    import flax.serialization
    import flax.traverse_util
    import numpy as np
    import tensorstore

    norms = {
        "encoder": ("pre_attention_layer_norm", "pre_mlp_layer_norm"),
        "decoder": ("pre_self_attention_layer_norm", "pre_cross_attention_layer_norm", "pre_mlp_layer_norm"),
    }
    modules = {
        "encoder": ("attention", "mlp"),
        "decoder": ("self_attention", "encoder_decoder_attention", "mlp"),
    }
    projections = {"q": "query", "k": "key", "v": "value", "o": "out"}

    def target(tensors: dict[str, Any], scanned: bool) -> dict[str, Any]:
        flat = {"token_embedder/embedding": tensors["shared.weight"]}
        if "lm_head.weight" in tensors:
            flat["decoder/logits_dense/kernel"] = tensors["lm_head.weight"].T
        depths: dict[str, int] = {}
        for name, values in tensors.items():
            stack, *words = name.split(".")
            if words[0] == "final_layer_norm":
                flat[f"{stack}/{stack}_norm/scale"] = values
            elif words[0] == "block":
                layer, sublayer, module, *rest = f"layers_{words[1]}", int(words[3]), words[4], words[5]
                depths[stack] = max(depths.get(stack, 0), int(words[1]) + 1)
                if module == "layer_norm":
                    flat[f"{stack}/{layer}/{norms[stack][sublayer]}/scale"] = values
                elif rest == ["relative_attention_bias"]:
                    flat[f"{stack}/relpos_bias/rel_embedding"] = values.T
                else:
                    projection = projections.get(rest[0], rest[0])
                    flat[f"{stack}/{layer}/{modules[stack][sublayer]}/{projection}/kernel"] = values.T
        if not scanned:
            return flat
        for stack, depth in depths.items():
            bias = flat.pop(f"{stack}/relpos_bias/rel_embedding")
            for layer in range(depth):
                flat[f"{stack}/layers_{layer}/relpos_bias/rel_embedding"] = bias
            for name in [name for name in flat if name.startswith(f"{stack}/layers_0/")]:
                layers = [flat.pop(name.replace("layers_0", f"layers_{layer}")) for layer in range(depth)]
                flat[name.replace("layers_0", stack)] = np.stack(layers, axis=1)
        return flat

    def zarr(folder: pathlib.Path, name: str, values: Any, dtype: str, gzip: bool) -> dict[str, Any]:
        chunks = [-(-size // 2) for size in values.shape]
        spec = {
            "driver": "zarr",
            "dtype": dtype,
            "kvstore": {"driver": "file", "path": f"{folder}/{name}"},
            "metadata": {"compressor": {"id": "gzip"} if gzip else None, "shape": list(values.shape), "chunks": chunks},
        }
        store = tensorstore.open(spec, create=True).result()
        store.write(values.astype(store.dtype.numpy_dtype)).result()
        # What T5X puts into its msgpack file: the same with a path that holds wherever the folder is, and, from a
        # bucket, with a name of a bucket that says nothing.
        bucket = {"driver": "gcs", "bucket": "t5x-dummy-bucket"} if gzip else {"driver": "gfile"}
        return spec | {"kvstore": bucket | {"path": name}}

    def write(
        folder: pathlib.Path,
        tensors: dict[str, Any],
        scanned: bool = False,
        layout: str = "t5x",
        dtype: str = "float32",
        gzip: bool = True,
        change: Callable[[dict[str, Any]], None] = lambda flat: None,
    ) -> None:
        flat = target(tensors, scanned)
        change(flat)
        moments = {f"state/param_states/{name}/v_row": np.zeros(3, np.float32) for name in flat}
        tree = {f"target/{name}": values for name, values in flat.items()} | moments | {"state/step": np.int32(7)}
        folder.mkdir(parents=True)
        if layout in ("orbax", "ocdbt"):
            import orbax.checkpoint

            handler = orbax.checkpoint.PyTreeCheckpointHandler(use_ocdbt=layout == "ocdbt", use_zarr3=False)
            arrays = {name: np.asarray(values).astype(dtype) for name, values in tree.items()}
            item = flax.traverse_util.unflatten_dict(arrays, sep="/")
            orbax.checkpoint.Checkpointer(handler).save(folder.absolute() / "state", item)
            return
        place = folder / "state" if layout == "placeholders" else folder
        place.mkdir(exist_ok=True)
        for name, values in tree.items():
            if name.startswith("target/") and values.ndim > 1:
                dots = name.replace("/", ".")
                spec = zarr(place, dots, values, dtype, gzip)
                tree[name] = spec if layout == "t5x" else f"PLACEHOLDER://{dots}"
        nested = flax.traverse_util.unflatten_dict(tree, sep="/")
        contents = {"version": 3, "optimizer": nested} if layout == "t5x" else nested
        (place / "checkpoint").write_bytes(flax.serialization.msgpack_serialize(contents))

    return write


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
