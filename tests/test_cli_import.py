"""`dsbs import` as a person types it: folders, T5X checkpoints, names of the hub with and without a network."""

import json

import numpy as np
import pytest

from dsbs_jax.models.config import t5_config
from dsbs_jax.models.hf import load_huggingface
from dsbs_jax.models.weights import load_weights

TINY = {"vocab_size": 48, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_heads": 4}
CONFIG = t5_config("v1_1", "small", num_layers=2, num_decoder_layers=2, **TINY)
NO_NETWORK = {"HF_HUB_OFFLINE": "1", "HF_TOKEN": ""}


def _same(one, other):
    np.testing.assert_array_equal(one["embedding"], other["embedding"])
    np.testing.assert_array_equal(one["lm_head"], other["lm_head"])
    np.testing.assert_array_equal(
        one["decoder"]["layers"]["ffn"]["wo"]["kernel"], other["decoder"]["layers"]["ffn"]["wo"]["kernel"]
    )


@pytest.fixture
def hub(tmp_path):
    """A cache of the hub, laid out as its client does: (environment, a function that names a snapshot's folder)."""

    def snapshot(name, revision="0123456789abcdef0123456789abcdef01234567"):
        repository = tmp_path / "home" / "hub" / f"models--{name.replace('/', '--')}"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text(revision)
        return repository / "snapshots" / revision

    return {"HF_HOME": str(tmp_path / "home"), **NO_NETWORK}, snapshot


def test_a_name_of_the_hub_that_lies_in_the_cache(dsbs, hub, write_huggingface, tmp_path):
    environment, snapshot = hub
    folder = snapshot("google/tiny")
    write_huggingface(folder, CONFIG)
    process = dsbs("import", "google/tiny", "--output", tmp_path / "out", "--dtype", "bfloat16", env=environment)
    assert process.returncode == 0, process.stderr
    assert "Read google/tiny (Hugging Face folder): 52 tensors (52 of F32), 12,736 parameters" in process.stdout
    assert f"dsbs train --gin_file {tmp_path / 'out' / 'model.gin'}" in process.stdout
    record = json.loads((tmp_path / "out" / "model.json").read_text())
    assert (record["source"], record["fingerprint"]) == ("google/tiny", folder.name)
    expected = load_huggingface(folder, CONFIG)
    _same(load_weights(tmp_path / "out", CONFIG), {name: _narrow(leaf) for name, leaf in expected.items()})


def _narrow(tree):
    import jax
    import jax.numpy as jnp

    return jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16).astype(jnp.float32), tree)


def test_a_name_of_the_hub_with_neither_network_nor_cache(dsbs, hub, tmp_path):
    process = dsbs("import", "google/absent", "--output", tmp_path / "out", env=hub[0])
    assert process.returncode == 1
    sentence = process.stderr.splitlines()[-1]
    assert "There is no folder google/absent" in sentence
    assert "can neither be fetched nor lies in the cache" in sentence
    assert "Traceback" not in process.stderr
    assert not (tmp_path / "out").exists()


def test_a_t5x_checkpoint_with_a_gin_file_for_its_architecture(dsbs, write_huggingface, write_t5x, tmp_path):
    tensors = write_huggingface(tmp_path / "source", CONFIG)
    write_t5x(tmp_path / "checkpoint_7", tensors, scanned=True)
    sizes = [f"--gin.T5Config.{name}={value}" for name, value in (TINY | {"num_layers": 2}).items()]
    process = dsbs(
        *("import", tmp_path / "checkpoint_7", "--output", tmp_path / "out"),
        *("--gin_file", "models/t5_1_1_small", "--gin.T5Config.num_decoder_layers=2", *sizes),
    )
    assert process.returncode == 0, process.stderr
    # Two embeddings, two last norms, ten of stacked encoder layers, fifteen of the decoder's; a moment each, a step.
    assert "29 tensors" in process.stdout
    assert "30 arrays of the optimiser's state were left out" in process.stdout
    _same(load_weights(tmp_path / "out", CONFIG), load_huggingface(tmp_path / "source", CONFIG))
