"""cuDNN's attention: what is handed to it, against einsum, on any platform; the real one where there is a GPU."""

import dataclasses
import functools
import types

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsbs_jax.models.config import t5_config
from dsbs_jax.models.platform import check_platform
from dsbs_jax.models.t5 import T5

pytestmark = pytest.mark.usefixtures("quick_compilation")

EINSUM = t5_config(
    "v1_1",
    "small",
    vocab_size=53,
    d_model=24,
    d_kv=8,
    d_ff=20,
    num_layers=2,
    num_decoder_layers=2,
    num_heads=3,
    num_buckets=8,
    max_distance=12,
    dropout_rate=0.0,
)
FUSED = dataclasses.replace(EINSUM, attention="cudnn")


@pytest.fixture
def xla_for_cudnn(monkeypatch):
    """JAX's own implementation of the same function in place of cuDNN's."""
    fused, calls = jax.nn.dot_product_attention, []

    def attention(*args, implementation, **options):
        assert implementation == "cudnn"
        calls.append(args[0].shape)
        return fused(*args, implementation="xla", **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", attention)
    return calls


@functools.cache
def first_params():
    tokens = jnp.ones((1, 2), jnp.int32)
    params = nn.unbox(jax.jit(T5(EINSUM).init)(jax.random.key(0), tokens, tokens))["params"]
    # Initial biases are too small to matter: an error in theirs would hide behind rounding.
    for stack in ("encoder", "decoder"):
        table = params[stack]["relative_bias"]["embedding"]
        params[stack]["relative_bias"]["embedding"] = 5.0 * jnp.sqrt(EINSUM.d_model) * table
    return params


def batch():
    """Rows of three segments and padding, of one and padding, of one that fills the inputs but not the targets."""
    rng = np.random.default_rng(0)
    source, target = np.zeros((3, 32), np.int32), np.zeros((3, 16), np.int32)
    for row, (lengths, target_lengths) in enumerate([((7, 5, 9), (4, 1, 6)), ((11,), (9,)), ((32,), (5,))]):
        source[row, : sum(lengths)] = np.repeat(np.arange(1, len(lengths) + 1), lengths)
        target[row, : sum(target_lengths)] = np.repeat(np.arange(1, len(target_lengths) + 1), target_lengths)
    draw = lambda segments: rng.integers(2, 53, segments.shape).astype(np.int32) * (segments > 0)  # noqa: E731
    return draw(source), draw(target), source, target


def loss_and_gradients(config):
    """The logits of the real target tokens, and the gradient of a loss over these."""
    tokens, inputs, source, target = batch()
    real = (target > 0)[..., None]

    @jax.jit
    def run(params):
        def loss(params):
            logits = T5(config).apply({"params": params}, tokens, inputs, source, target, deterministic=False)
            chosen = jnp.take_along_axis(logits, inputs[..., None], -1)
            return jnp.sum(jnp.where(real, jax.nn.logsumexp(logits, -1, keepdims=True) - chosen, 0.0)), logits

        (_, logits), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        return {"logits": jnp.where(real, logits, 0.0), **gradients}

    return flax.traverse_util.flatten_dict(jax.device_get(run(first_params())), sep="/")


@functools.cache
def expected(dtype="float32"):
    return loss_and_gradients(dataclasses.replace(EINSUM, dtype=dtype))


def errors(found, dtype="float32"):
    """The largest error of each array, as a share of its largest value."""
    return {name: np.abs(found[name] - value).max() / np.abs(value).max() for name, value in expected(dtype).items()}


def test_outputs_and_every_gradient_are_einsums_packed_and_padded(xla_for_cudnn):
    found = loss_and_gradients(FUSED)
    assert {shape[1:] for shape in xla_for_cudnn} == {(32, 3, 8), (16, 3, 8)}
    assert expected().keys() >= {"encoder/relative_bias/embedding", "decoder/relative_bias/embedding"}
    # Float32 sums in another order.
    assert {name: error for name, error in errors(found).items() if error > 1e-5} == {}


def assert_as_near_as_einsum(found):
    """In bfloat16 both ways round, each at other places: neither may be much further from float32 than the other."""
    by_einsum = errors(expected("bfloat16"))
    for name, error in errors(found).items():
        # Maxima over few entries scatter; a wrong mask or a lost gradient is off by a tenth of the largest or more.
        assert error < 2.5 * by_einsum[name] + 0.01, name


@pytest.mark.slow
def test_bfloat16_is_as_near_to_float32_as_einsums(xla_for_cudnn):
    assert_as_near_as_einsum(loss_and_gradients(dataclasses.replace(FUSED, dtype="bfloat16")))


def test_decoding_steps_take_einsum(xla_for_cudnn):
    tokens, _, source, _ = batch()
    alone = jnp.asarray(tokens * (source == 1)), jnp.asarray((source == 1).astype(np.int32))

    @functools.partial(jax.jit, static_argnums=0)
    def first_logits(config, params):
        model = T5(config)
        encoded = model.apply({"params": params}, *alone, method="encode")
        cache = model.apply({"params": params}, encoded, alone[1], 4, method="start_cache")
        calls = len(xla_for_cudnn)
        start = jnp.zeros(3, jnp.int32)
        logits, _ = model.apply({"params": params}, start, jnp.int32(0), cache, method="decode_step")
        assert len(xla_for_cudnn) == calls
        return logits

    by_einsum = first_logits(EINSUM, first_params())
    assert not xla_for_cudnn
    np.testing.assert_allclose(first_logits(FUSED, first_params()), by_einsum, atol=1e-5)
    assert xla_for_cudnn, "the inputs were encoded without it"


def test_a_gpus_outputs_and_every_gradient():
    try:
        device = jax.devices("cuda")[0]
    except RuntimeError:
        pytest.skip("needs an NVIDIA GPU: JAX_PLATFORMS=cuda,cpu")
    config = dataclasses.replace(FUSED, dtype="bfloat16")
    check_platform(config, device, (32, 16))
    # As a user's program is compiled.
    jax.config.update("jax_disable_most_optimizations", False)
    with jax.default_device(device):
        assert_as_near_as_einsum(loss_and_gradients(config))


def a_device(capability="9.0", platform="gpu", version="PJRT C API\ncuda 12090", memories=("device", "pinned_host")):
    """What is asked of a device."""
    return types.SimpleNamespace(
        platform=platform,
        device_kind="a card",
        compute_capability=capability,
        client=types.SimpleNamespace(platform_version=version),
        addressable_memories=lambda: [types.SimpleNamespace(kind=kind) for kind in memories],
    )


BFLOAT16 = dataclasses.replace(FUSED, dtype="bfloat16")


@pytest.mark.parametrize(
    ("config", "device", "lengths", "message"),
    [
        (BFLOAT16, a_device(platform="cpu"), (), "needs an NVIDIA GPU, but the device is 'a card' [(]cpu[)]: set"),
        (BFLOAT16, a_device(version="rocm 6"), (), "needs an NVIDIA GPU"),
        (BFLOAT16, a_device("7.5"), (), "needs an Ampere GPU or a newer one"),
        (FUSED, a_device(), (), "dtype is 'float32': set dtype to 'bfloat16', or attention to 'einsum'"),
        (dataclasses.replace(BFLOAT16, d_kv=12), a_device(), (), "multiple of 8 and at most 256 here, but d_kv is 12"),
        (dataclasses.replace(BFLOAT16, d_kv=256), a_device("8.9"), (), "at most 128 here, but d_kv is 256"),
        (BFLOAT16, a_device(), (26, 13), "even lengths, but one has 13 tokens: set pack_lengths"),
        (
            dataclasses.replace(EINSUM, remat_policy="offload"),
            a_device(memories=("device", "unpinned_host")),
            (),
            "cannot address the memory 'pinned_host' of its host .it knows device, unpinned_host.: set remat_policy",
        ),
    ],
)
def test_what_a_platform_lacks_is_refused(config, device, lengths, message):
    with pytest.raises(ValueError, match=message):
        check_platform(config, device, lengths)


@pytest.mark.parametrize(
    ("config", "device"),
    [
        (BFLOAT16, a_device()),
        (BFLOAT16, a_device("12.0")),
        (dataclasses.replace(BFLOAT16, d_kv=256), a_device("10.0")),
        (EINSUM, a_device(platform="cpu", memories=())),
        (dataclasses.replace(EINSUM, remat_policy="offload"), a_device(platform="tpu")),
    ],
)
def test_what_a_platform_can_do_is_left_alone(config, device):
    check_platform(config, device, (26, 14))


def test_rematerialisation_does_not_matter_where_nothing_is_differentiated():
    config = dataclasses.replace(EINSUM, remat_policy="offload")
    check_platform(config, a_device(memories=("device",)), training=False)


def test_dropout_is_refused_with_it():
    with pytest.raises(ValueError, match=r"cannot drop attention probabilities, but dropout_rate is 0\.1: set dropout"):
        dataclasses.replace(FUSED, dropout_rate=0.1)


@pytest.mark.parametrize(
    ("binding", "sentence"),
    [
        ("DROPOUT_RATE=0.1", "cannot drop attention probabilities, but dropout_rate is 0.1"),
        ("DROPOUT_RATE=0.0", "attention is 'cudnn', which needs an NVIDIA GPU, but the device is 'cpu' (cpu)"),
    ],
)
def test_a_run_that_asks_for_what_is_not_there_ends_in_a_sentence(dsbs, tmp_path, binding, sentence):
    process = dsbs(
        *("train", "--gin_file", "datasets/bestiary", "--gin_file", "models/tiny", "--model_dir", tmp_path / "run"),
        *("--gin.T5Config.attention='cudnn'", f"--gin.{binding}"),
        env={"DSBS_STORE_DIR": str(tmp_path / "stores")},
    )
    assert process.returncode == 1
    assert sentence in process.stderr.splitlines()[-1]
    # Said before even the data is read.
    assert not (tmp_path / "stores").exists()
