"""Hugging Face folders: every layout that is read, and everything wrong with one named at once."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from safetensors.numpy import load_file, save_file

from dsbs_jax.models.hf import config_from_huggingface, load_huggingface
from dsbs_jax.models.stacking import stack_layers


@pytest.fixture
def folder(torch_t5, tmp_path):
    """A copy to spoil."""
    copy = tmp_path / "model"
    shutil.copytree(torch_t5.folder, copy)
    return copy


def _edit_config(folder, **changes):
    path = folder / "config.json"
    raw = json.loads(path.read_text())
    for name, value in changes.items():
        if value is None:
            raw.pop(name, None)
        else:
            raw[name] = value
    path.write_text(json.dumps(raw))


def _rewrite(folder, change):
    """Saves the folder's tensors anew after `change(tensors)`."""
    tensors = dict(load_file(folder / "model.safetensors"))
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def _load(folder):
    return load_huggingface(folder, config_from_huggingface(folder))


def _assert_same(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_sharded_folders_read_like_single_files(torch_t5, tmp_path):
    torch_t5.model.save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    _assert_same(_load(tmp_path), _load(torch_t5.folder))


def test_unrolled_parameters_are_the_stacked_ones_apart(torch_t5):
    config = config_from_huggingface(torch_t5.folder)
    unrolled = load_huggingface(torch_t5.folder, dataclasses.replace(config, scan_layers=False))
    _assert_same(stack_layers(unrolled), _load(torch_t5.folder))


def test_bfloat16_files(torch_t5, folder):
    def halve(tensors):
        for name in tensors:
            tensors[name] = tensors[name].astype(ml_dtypes.bfloat16)

    _rewrite(folder, halve)
    params, expected = _load(folder), _load(torch_t5.folder)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    _assert_same(params, jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16).astype(jnp.float32), expected))
    narrow = dataclasses.replace(config_from_huggingface(folder), param_dtype="bfloat16")
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(load_huggingface(folder, narrow)))


def test_parameters_go_straight_onto_their_shardings(torch_t5):
    expected = _load(torch_t5.folder)
    mesh = jax.make_mesh((2, 2), ("fsdp", "model"), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:4])

    def sharding(leaf):
        axes = [axis if size % 2 == 0 else None for axis, size in zip(("model", "fsdp"), leaf.shape[-2:], strict=False)]
        return NamedSharding(mesh, PartitionSpec(*[None] * (leaf.ndim - len(axes)), *axes))

    shardings = jax.tree.map(sharding, expected)
    params = load_huggingface(torch_t5.folder, config_from_huggingface(torch_t5.folder), shardings)
    _assert_same(params, expected)
    assert jax.tree.map(lambda leaf: leaf.sharding, params) == shardings
    assert any(not leaf.is_fully_replicated for leaf in jax.tree.leaves(params))


def test_copies_of_the_embeddings_and_the_old_unused_bias_are_known(torch_t5, folder):
    expected = _load(folder)

    def add(tensors):
        for name in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"):
            tensors[name] = tensors["shared.weight"].copy()
        tensors["decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"] = np.zeros((8, 5), np.float32)

    _rewrite(folder, add)
    _assert_same(_load(folder), expected)
    # A writer that drops duplicates may keep another name than `shared`.
    _rewrite(folder, lambda tensors: (tensors.pop("shared.weight"), tensors.pop("encoder.embed_tokens.weight")))
    _assert_same(_load(folder), expected)

    def spoil(tensors):
        tensors["shared.weight"] = tensors["decoder.embed_tokens.weight"] + 1

    _rewrite(folder, spoil)
    with pytest.raises(ValueError, match=r"decoder\.embed_tokens\.weight differs from shared\.weight"):
        load_huggingface(folder, config_from_huggingface(torch_t5.folder))


def test_all_wrong_tensors_are_listed_in_one_error(folder):
    config = config_from_huggingface(folder)

    def spoil(tensors):
        del tensors["encoder.final_layer_norm.weight"]
        del tensors["decoder.block.2.layer.1.EncDecAttention.q.weight"]
        tensors["decoder.block.3.layer.0.layer_norm.weight"] = np.ones(26, np.float32)
        tensors["encoder.block.1.layer.0.SelfAttention.k.weight"] = np.ones((26, 30), np.float32)
        tensors["encoder.block.0.layer.0.layer_norm.weight"] = np.ones(26, np.int8)

    _rewrite(folder, spoil)
    with pytest.raises(ValueError, match="5 tensors differ") as error:
        load_huggingface(folder, config)
    for part in (
        "encoder.final_layer_norm.weight is missing",
        "decoder.block.2.layer.1.EncDecAttention.q.weight is missing",
        "decoder.block.3.layer.0.layer_norm.weight is unknown",
        "encoder.block.1.layer.0.SelfAttention.k.weight has shape [26, 30], the model's is [30, 26]",
        "encoder.block.0.layer.0.layer_norm.weight is of type I8",
    ):
        assert part in str(error.value)


def test_weights_of_another_size_are_refused(folder):
    config = dataclasses.replace(config_from_huggingface(folder), vocab_size=128)
    with pytest.raises(ValueError, match=r"shared.weight has shape \[101, 26\], the model's is \[128, 26\]"):
        load_huggingface(folder, config)


def test_a_v1_1_without_its_own_head_is_refused(folder):
    _edit_config(folder, tie_word_embeddings=False, scale_decoder_outputs=None)
    tensors = load_file(folder / "model.safetensors")
    if "lm_head.weight" in tensors:
        _assert_same(_load(folder)["lm_head"], tensors["lm_head.weight"])
    else:
        with pytest.raises(ValueError, match=r"lm_head\.weight is missing"):
            _load(folder)


@pytest.mark.parametrize(
    ("fields", "tied", "scaled"),
    [
        ({}, True, True),
        ({"tie_word_embeddings": True}, True, True),
        ({"tie_word_embeddings": False}, False, False),
        # As transformers 5 saves v1.1.
        ({"tie_word_embeddings": True, "scale_decoder_outputs": False}, False, False),
    ],
)
def test_config_alone(tmp_path, fields, tied, scaled):
    raw = {"model_type": "t5", "d_model": 16, "d_kv": 4, "d_ff": 20, "num_layers": 2, "num_heads": 3, "vocab_size": 50}
    (tmp_path / "config.json").write_text(json.dumps(raw | {"feed_forward_proj": "gated-gelu"} | fields))
    config = config_from_huggingface(tmp_path)
    assert (config.tie_embeddings, config.scale_logits) == (tied, scaled)
    assert (config.num_layers, config.num_decoder_layers, config.d_kv, config.vocab_size) == (2, 2, 4, 50)


def test_config_errors_name_the_file(tmp_path):
    with pytest.raises(ValueError, match=r"config\.json is missing"):
        config_from_huggingface(tmp_path)
    path = tmp_path / "config.json"
    for text in ("{", "[1]"):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"config\.json is not a JSON object"):
            config_from_huggingface(tmp_path)
    path.write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="model_type is 'bert'"):
        config_from_huggingface(tmp_path)
    path.write_text('{"model_type": "t5"}')
    with pytest.raises(ValueError, match=r"config\.json lacks the field 'd_model'"):
        config_from_huggingface(tmp_path)


def test_unsupported_feed_forward_is_refused(folder):
    _edit_config(folder, feed_forward_proj="gated-silu")
    with pytest.raises(ValueError, match=r"config\.json: .*feed_forward is 'gated-silu'"):
        config_from_huggingface(folder)


def test_missing_and_broken_files(torch_t5, folder):
    config = config_from_huggingface(folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"model\.safetensors is not a whole safetensors file"):
        load_huggingface(folder, config)
    weights.unlink()
    with pytest.raises(ValueError, match="holds neither"):
        load_huggingface(folder, config)
    torch_t5.model.save_pretrained(folder, max_shard_size="10KB")
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(ValueError, match=f"{shard.name} is missing"):
        load_huggingface(folder, config)
    (folder / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(ValueError, match="is not a safetensors index"):
        load_huggingface(folder, config)
