"""Sizes against the published models, and what a config refuses."""

import jax
import jax.numpy as jnp
import pytest

from dsbs_jax.models.config import SIZES, T5Config, t5_config
from dsbs_jax.models.t5 import T5

SMALL = {"d_model": 8, "d_kv": 2, "d_ff": 8, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 2}
ALL_SIZES = [(version, size) for version, sizes in SIZES.items() for size in sizes]


@pytest.mark.parametrize(
    ("version", "size", "count"),
    # As printed by model.num_parameters() of the published checkpoints.
    [
        ("v1_0", "small", 60_506_624),
        ("v1_0", "base", 222_903_552),
        ("v1_1", "base", 247_577_856),
        ("v1_1", "large", 783_150_080),
        ("v1_1", "xxl", 11_135_332_352),
    ],
)
def test_published_parameter_counts(version, size, count):
    assert t5_config(version, size).num_parameters() == count


@pytest.mark.parametrize(("version", "size"), ALL_SIZES)
def test_counts_are_those_of_our_and_of_transformers_model(version, size):
    config = t5_config(version, size)
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    shapes = jax.eval_shape(T5(config).init, jax.random.key(0), tokens, tokens)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == config.num_parameters()

    torch = pytest.importorskip("torch", reason="needs the extra `parity`")
    transformers = pytest.importorskip("transformers")
    # Importing lazily inside the context would import parts of torch on the meta device.
    model_class, config_class = transformers.T5ForConditionalGeneration, transformers.T5Config
    with torch.device("meta"):
        model = model_class(
            config_class(
                vocab_size=config.vocab_size,
                d_model=config.d_model,
                d_kv=config.d_kv,
                d_ff=config.d_ff,
                num_layers=config.num_layers,
                num_heads=config.num_heads,
                feed_forward_proj=config.feed_forward,
                tie_word_embeddings=config.tie_embeddings,
            )
        )
        # Transformers 5 ties every new T5; published v1.1 weights have a matrix of their own.
        own_head = 0 if config.tie_embeddings else model.lm_head.weight.numel()
    assert model.num_parameters() + own_head == config.num_parameters()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("d_model", 0),
        ("num_layers", 0),
        ("feed_forward", "gelu"),
        ("dtype", "float16"),
        ("remat_policy", "some"),
        ("dropout_rate", 1.0),
        ("num_buckets", 7),
        ("max_distance", 16),
    ],
)
def test_impossible_values_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"T5Config: .*{field}"):
        T5Config(**(SMALL | {field: value}))


def test_unknown_presets_are_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="v1_0, v1_1"):
        t5_config("v2", "small")
    with pytest.raises(ValueError, match="small, base, large, xl, xxl"):
        t5_config("v1_1", "11b")


def test_overrides_reach_the_config():
    assert t5_config("v1_1", "small", dtype="bfloat16", scan_layers=False).dtype == "bfloat16"
