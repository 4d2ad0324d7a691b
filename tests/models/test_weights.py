"""Weights from whatever folder: told apart by what lies there, compared by architecture, read into any layout."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsbs_jax.models import hf
from dsbs_jax.models.config import T5Config, t5_config
from dsbs_jax.models.hf import load_huggingface
from dsbs_jax.models.imported import ARCHITECTURE
from dsbs_jax.models.importing import ImportConfig, import_weights
from dsbs_jax.models.parameters import abstract_params
from dsbs_jax.models.stacking import stack_layers
from dsbs_jax.models.t5 import T5
from dsbs_jax.models.weights import load_weights, open_weights
from dsbs_jax.sharding.mesh import MeshConfig, make_mesh
from dsbs_jax.sharding.rules import param_shardings

CONFIG = t5_config(
    "v1_1", "small", vocab_size=48, d_model=16, d_kv=4, d_ff=24, num_heads=4, num_layers=2, num_decoder_layers=3
)


@pytest.fixture(scope="module")
def folders(write_huggingface, tmp_path_factory):
    """One model as a Hugging Face folder and imported from it over eight devices."""
    root = tmp_path_factory.mktemp("weights")
    write_huggingface(root / "huggingface", CONFIG)
    import_weights(str(root / "huggingface"), root / "imported", ImportConfig())
    return root


@pytest.fixture
def imported(folders, tmp_path):
    """A copy to spoil."""
    shutil.copytree(folders / "imported", tmp_path / "imported")
    return tmp_path / "imported"


def _assert_same(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_an_imported_folder_is_the_model_it_was_imported_from(folders):
    expected = load_huggingface(folders / "huggingface", CONFIG)
    _assert_same(load_weights(folders / "imported", CONFIG), expected)
    _assert_same(load_weights(folders / "huggingface", CONFIG), expected)


@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 2, 2), (1, 4, 2)])
def test_into_another_type_mesh_and_stacking(folders, sizes):
    mesh = make_mesh(MeshConfig(*sizes))
    expected = load_huggingface(folders / "huggingface", CONFIG)
    config = dataclasses.replace(CONFIG, param_dtype="bfloat16")
    shardings = param_shardings(abstract_params(T5(config)), mesh)
    found = load_weights(folders / "imported", config, shardings)
    _assert_same(found, jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), expected))
    assert jax.tree.map(lambda leaf: leaf.sharding, found) == shardings
    unrolled = load_weights(folders / "imported", dataclasses.replace(CONFIG, scan_layers=False))
    _assert_same(stack_layers(unrolled), expected)


def test_every_field_of_a_model_decides_what_it_computes_or_how():
    how = {"dropout_rate", "dtype", "param_dtype", "scan_layers", "remat_policy", "attention"}
    assert {field.name for field in dataclasses.fields(T5Config)} == {*ARCHITECTURE} | how


@pytest.mark.parametrize("name", ["huggingface", "imported"])
def test_another_architecture_is_refused_before_any_weight_is_read(folders, monkeypatch, name):
    # Shapes alone would not tell all of these.
    other = dataclasses.replace(CONFIG, scale_logits=True, max_distance=64, d_ff=32, num_heads=2, d_kv=8)
    weights = open_weights(folders / name)

    def read(*_):
        raise AssertionError("a weight was read")

    monkeypatch.setattr(hf, "config_from_huggingface", lambda _: CONFIG)
    for tensor in (type(next(iter(weights.tensors.values()))),):
        monkeypatch.setattr(tensor, "read", read)
    with pytest.raises(ValueError, match="are those of another model") as error:
        load_weights(folders / name, other)
    for part in (
        "scale_logits is False there and True here",
        "max_distance is 128 there and 64 here",
        "d_ff is 24 there and 32 here",
        "num_heads is 4 there and 2 here",
        "d_kv is 4 there and 8 here",
        "--gin_file models/",
    ):
        assert part in str(error.value), part
    assert "d_model" not in str(error.value)


def test_partial_imported_folders_list_what_is_missing(imported):
    manifest = imported / "params" / "manifest.ocdbt"
    whole = manifest.read_bytes()
    manifest.unlink()
    with pytest.raises(ValueError, match=r"params lacks manifest\.ocdbt"):
        load_weights(imported, CONFIG)
    manifest.write_bytes(whole)
    for file in (imported / "params" / "d").iterdir():
        file.unlink()
    with pytest.raises(ValueError, match=r"tensors differ: decoder/final_norm/scale is missing"):
        load_weights(imported, CONFIG)
    (imported / "model.json").write_text("{}")
    with pytest.raises(ValueError, match=r"model\.json is not what `dsbs import` writes"):
        load_weights(imported, CONFIG)
    (imported / "model.json").unlink()
    with pytest.raises(ValueError, match="imported holds no weights: neither"):
        load_weights(imported, CONFIG)


def test_a_tensor_that_the_model_lacks_is_named(imported):
    # As if somebody had edited the record: the shapes are still compared.
    record = json.loads((imported / "model.json").read_text())
    record["model"] |= {"num_layers": 1, "vocab_size": 47}
    (imported / "model.json").write_text(json.dumps(record))
    config = dataclasses.replace(CONFIG, num_layers=1, vocab_size=47)
    with pytest.raises(ValueError, match="tensors differ") as error:
        load_weights(imported, config)
    assert "embedding has shape [48, 16], the model's is [47, 16]" in str(error.value)
    assert "encoder/layers/ffn/wo/kernel has shape [2, 24, 16], the model's is [1, 24, 16]" in str(error.value)


def test_a_folder_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="There is no folder /nowhere"):
        load_weights("/nowhere", CONFIG)
