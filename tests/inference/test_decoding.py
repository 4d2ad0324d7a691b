"""Greedy decoding against transformers' `generate` and against a loop without a cache."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from dsbs_jax.inference.decoding import greedy_decode
from dsbs_jax.models.config import t5_config
from dsbs_jax.models.hf import config_from_huggingface, load_huggingface
from dsbs_jax.models.t5 import T5

MAX_LENGTH = 12
VOCABULARY = 37
SHAPE = {"d_model": 20, "d_kv": 6, "d_ff": 30, "num_layers": 1, "num_heads": 4, "vocab_size": 40}
CONFIGS = {
    "v1_0": t5_config("v1_0", "small", **SHAPE, num_decoder_layers=3, num_buckets=8, max_distance=10),
    "v1_1": t5_config(
        "v1_1", "small", **SHAPE, num_decoder_layers=2, num_buckets=8, max_distance=10, scan_layers=False
    ),
}
# Compiles 2.5 times faster.
_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
decode = _jit(greedy_decode, static_argnums=(0, 3, 4))


@functools.cache
def _student(version):
    model = T5(CONFIGS[version])
    tokens = jnp.ones((1, 2), jnp.int32)
    params = nn.unbox(_jit(model.init)(jax.random.key(4), tokens, tokens))["params"]
    # Spread the bias of positions, else a random model repeats one token for ever.
    table = params["decoder"]["relative_bias"]["embedding"]
    params["decoder"]["relative_bias"]["embedding"] = 3 * jax.random.normal(jax.random.key(5), table.shape)
    # And let some rows end.
    head = "embedding" if model.config.tie_embeddings else "lm_head"
    params[head] = params[head].at[1].multiply(4)
    return model, params


def _inputs(rows=24):
    generator = np.random.default_rng(0)
    inputs = np.zeros((rows, 9), np.int32)
    for row in range(rows):
        length = generator.integers(1, 10)
        inputs[row, :length] = generator.integers(2, VOCABULARY, length)
    return inputs


def _without_cache(model, params, inputs, max_length, valid_vocabulary):
    apply = _jit(model.apply)
    decoder_inputs = np.zeros((len(inputs), max_length + 1), np.int32)
    ended = np.zeros(len(inputs), bool)
    for step in range(max_length):
        logits = np.array(apply({"params": params}, inputs, decoder_inputs)[:, step])
        logits[:, valid_vocabulary:] = -np.inf
        token = np.where(ended, 0, logits.argmax(-1))
        ended |= token == 1
        decoder_inputs[:, step + 1] = token
    return decoder_inputs[:, 1:]


@pytest.mark.parametrize("version", CONFIGS)
def test_equals_a_loop_without_cache(version):
    model, params = _student(version)
    found = decode(model, params, _inputs(), MAX_LENGTH, VOCABULARY)
    expected = _without_cache(model, params, _inputs(), MAX_LENGTH, VOCABULARY)
    assert found.dtype == jnp.int32
    np.testing.assert_array_equal(found, expected)
    # The case has rows that end early and rows that do not, and different tokens.
    assert 0 < (found == 1).any(axis=1).sum() < len(found)
    assert len(np.unique(found)) >= 8


def test_equals_generate_of_transformers(tmp_path):
    torch = pytest.importorskip("torch", reason="needs the extra `parity`")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(1)
    for kind, tied in (("relu", True), ("gated-gelu", False)):
        shape = SHAPE | {"num_layers": 3, "num_decoder_layers": 2, "relative_attention_num_buckets": 8}
        hf_config = transformers.T5Config(
            **shape, feed_forward_proj=kind, tie_word_embeddings=tied, decoder_start_token_id=0
        )
        model = transformers.T5ForConditionalGeneration(hf_config).eval()
        model.decoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight.data.normal_(std=3)
        if not tied:
            model.lm_head.weight = torch.nn.Parameter(torch.randn(40, 20))
        folder = tmp_path / kind
        model.save_pretrained(folder)
        inputs = torch.tensor(_inputs()).long()
        expected = model.generate(
            inputs, attention_mask=(inputs != 0).long(), max_new_tokens=MAX_LENGTH, do_sample=False, num_beams=1
        )[:, 1:].numpy()
        expected = np.pad(expected, ((0, 0), (0, MAX_LENGTH - expected.shape[1])))
        config = config_from_huggingface(folder)
        # Transformers has no mask of padded rows: every row of the table may be emitted.
        found = decode(T5(config), load_huggingface(folder, config), _inputs(), MAX_LENGTH, config.vocab_size)
        np.testing.assert_array_equal(found, expected)
        assert len(np.unique(found)) > 8


def test_ids_beyond_the_vocabulary_are_never_emitted():
    model, params = _student("v1_0")
    free = decode(model, params, _inputs(), MAX_LENGTH, CONFIGS["v1_0"].vocab_size)
    masked = decode(model, params, _inputs(), MAX_LENGTH, 20)
    assert free.max() >= 20 > masked.max()


def test_rows_of_padding_end_at_once_and_disturb_nothing():
    model, params = _student("v1_0")
    inputs = _inputs()
    expected = decode(model, params, inputs, MAX_LENGTH, VOCABULARY)
    found = decode(model, params, inputs * (np.arange(len(inputs)) < 5)[:, None], MAX_LENGTH, VOCABULARY)
    np.testing.assert_array_equal(found[:5], expected[:5])
    assert not found[5:].any()


def test_compiles_once_per_shape():
    model, params = _student("v1_0")
    traces = []

    @_jit
    def run(params, inputs):
        traces.append(inputs.shape)
        return greedy_decode(model, params, inputs, MAX_LENGTH, VOCABULARY)

    run(params, _inputs())
    run(params, _inputs()[::-1])
    assert len(traces) == 1


def test_the_same_on_a_mesh():
    model, params = _student("v1_0")
    expected = decode(model, params, _inputs(), MAX_LENGTH, VOCABULARY)
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:4])
    rules = (("batch", "data"), ("act_heads", "model"), ("act_mlp", "model"), ("act_vocab", "model"))
    with jax.set_mesh(mesh), nn.logical_axis_rules(rules):
        found = _jit(greedy_decode, static_argnums=(0, 3, 4))(model, params, _inputs(), MAX_LENGTH, VOCABULARY)
        np.testing.assert_array_equal(found, expected)
