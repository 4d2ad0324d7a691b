"""T5X checkpoints: every published layout reads as the same weights from Hugging Face do; what is wrong is listed."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsbs_jax.models.config import t5_config
from dsbs_jax.models.hf import load_huggingface
from dsbs_jax.models.stacking import stack_layers
from dsbs_jax.models.t5 import T5
from dsbs_jax.models.t5x import load_t5x, open_t5x
from dsbs_jax.models.weights import load_weights

# Nothing is a multiple of anything, and the stacks differ in depth.
SHAPE = {
    "vocab_size": 53,
    "d_model": 18,
    "d_kv": 4,
    "d_ff": 22,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 5,
    "num_buckets": 8,
    "max_distance": 12,
}
CONFIGS = {version: t5_config(version, "small", **SHAPE) for version in ("v1_0", "v1_1")}
CONFIG = CONFIGS["v1_1"]


@pytest.fixture(scope="module")
def huggingface(write_huggingface, tmp_path_factory):
    """By version: the tensors, and the parameters that they are."""
    found = {}
    for version, config in CONFIGS.items():
        folder = tmp_path_factory.mktemp(version)
        found[version] = (write_huggingface(folder, config), load_huggingface(folder, config))
    return found


@pytest.fixture
def tensors(huggingface):
    return dict(huggingface["v1_1"][0])


def _assert_same(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("scanned", [False, True])
@pytest.mark.parametrize(
    ("version", "layout", "gzip"),
    [
        ("v1_0", "t5x", True),
        ("v1_1", "t5x", False),
        *(("v1_1", name, True) for name in ("orbax", "ocdbt", "placeholders")),
    ],
)
def test_every_layout_is_read(huggingface, write_t5x, tmp_path, version, layout, gzip, scanned):
    tensors, expected = huggingface[version]
    folder, config = tmp_path / "checkpoint_7", CONFIGS[version]
    write_t5x(folder, tensors, scanned, layout, gzip=gzip)
    weights = open_t5x(folder)
    # A moment for each tensor, and the step.
    assert weights.left_out == len(weights.tensors) + 1
    found = load_weights(folder, config)
    _assert_same(found, expected)
    unrolled = load_t5x(folder, dataclasses.replace(config, scan_layers=False))
    _assert_same(stack_layers(unrolled), expected)


def test_logits_are_those_of_the_originals(huggingface, write_t5x, tmp_path):
    tensors, expected = huggingface["v1_1"]
    write_t5x(tmp_path / "checkpoint_7", tensors, scanned=True)
    inputs, targets = np.random.default_rng(1).integers(1, 53, (2, 2, 9))
    apply = jax.jit(T5(CONFIG).apply, compiler_options={"xla_backend_optimization_level": 0})
    found = apply({"params": load_t5x(tmp_path / "checkpoint_7", CONFIG)}, inputs, targets)
    np.testing.assert_array_equal(found, apply({"params": expected}, inputs, targets))


@pytest.mark.parametrize("layout", ["t5x", "ocdbt"])
def test_bfloat16_checkpoints(huggingface, write_t5x, tmp_path, layout):
    tensors, expected = huggingface["v1_1"]
    write_t5x(tmp_path / "checkpoint_7", tensors, layout=layout, dtype="bfloat16")
    if layout == "t5x":
        metadata = json.loads((tmp_path / "checkpoint_7/target.token_embedder.embedding/.zarray").read_text())
        assert metadata["dtype"] == "bfloat16"
    narrow = load_t5x(tmp_path / "checkpoint_7", dataclasses.replace(CONFIG, param_dtype="bfloat16"))
    assert {leaf.dtype for leaf in jax.tree.leaves(narrow)} == {jnp.dtype("bfloat16")}
    _assert_same(narrow, jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), expected))


def test_all_that_is_wrong_is_listed_in_one_error(tensors, write_t5x, tmp_path):
    folder = tmp_path / "checkpoint_7"

    def spoil(flat):
        del flat["encoder/encoder_norm/scale"]
        flat["decoder/layers_3/pre_mlp_layer_norm/scale"] = np.ones(18, np.float32)
        flat["encoder/layers_1/mlp/wo/kernel"] = np.ones((22, 17), np.float32)
        flat["encoder/layers_0/pre_mlp_layer_norm/scale"] = np.ones(18, np.int32)

    write_t5x(folder, tensors, change=spoil)
    for path in (folder / "target.encoder.layers_0.attention.key.kernel").iterdir():
        path.unlink()
    (folder / "target.decoder.layers_2.mlp.wi_0.kernel" / "1.0").unlink()
    metadata = folder / "target.decoder.layers_0.mlp.wi_1.kernel" / ".zarray"
    metadata.write_text(metadata.read_text().replace('"shape":[18,22]', '"shape":[18,21]'))
    with pytest.raises(ValueError, match=r"checkpoint_7 are not those of the model, 7 tensors differ") as error:
        load_t5x(folder, CONFIG)
    for part in (
        "encoder/encoder_norm/scale is missing",
        "decoder/layers_3/pre_mlp_layer_norm/scale is unknown",
        "encoder/layers_1/mlp/wo/kernel has shape [22, 17], the model's is [22, 18]",
        "encoder/layers_0/pre_mlp_layer_norm/scale is of type int32",
        "encoder/layers_0/attention/key/kernel is missing, looked for as target.encoder.layers_0.attention.key.kernel",
        "decoder/layers_2/mlp/wi_0/kernel has 3 of its 4 chunks, looked for as target.decoder.layers_2.mlp.wi_0.kernel",
        "decoder/layers_0/mlp/wi_1/kernel cannot be read",
    ):
        assert part in str(error.value), part
    with pytest.raises(ValueError, match="shape"):
        load_t5x(folder, dataclasses.replace(CONFIG, d_ff=23))


def test_a_damaged_chunk_is_told_with_its_tensor(tensors, write_t5x, tmp_path):
    write_t5x(tmp_path / "checkpoint_7", tensors)
    chunk = tmp_path / "checkpoint_7" / "target.decoder.layers_2.mlp.wi_0.kernel" / "1.0"
    chunk.write_bytes(chunk.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"decoder/layers_2/mlp/wi_0/kernel cannot be read \(.*\): copy the whole"):
        load_t5x(tmp_path / "checkpoint_7", CONFIG)


@pytest.mark.parametrize("layout", ["orbax", "ocdbt"])
def test_a_partial_orbax_item_is_listed(tensors, write_t5x, tmp_path, layout):
    write_t5x(tmp_path / "checkpoint_7", tensors, layout=layout)
    state = tmp_path / "checkpoint_7" / "state"
    if layout == "orbax":
        (state / "target.encoder.encoder_norm.scale" / ".zarray").unlink()
        wrong = (
            "1 tensors differ: encoder/encoder_norm/scale is missing, looked for as target.encoder.encoder_norm.scale"
        )
    else:
        (state / "manifest.ocdbt").unlink()
        wrong = r"state lacks manifest\.ocdbt, through which Orbax finds every array"
    with pytest.raises(ValueError, match=wrong):
        load_t5x(tmp_path / "checkpoint_7", CONFIG)


def test_relative_biases_that_differ_between_layers_are_refused(tensors, write_t5x, tmp_path):
    def differ(flat):
        flat["decoder/decoder/relpos_bias/rel_embedding"][:, 2] += 1

    write_t5x(tmp_path / "checkpoint_7", tensors, scanned=True, change=differ)
    with pytest.raises(ValueError, match=r"decoder/relpos_bias/rel_embedding: layers 2 have another relative bias"):
        load_t5x(tmp_path / "checkpoint_7", CONFIG)


def test_older_names_of_scanned_layers_are_known(huggingface, write_t5x, tmp_path):
    tensors, expected = huggingface["v1_1"]

    def rename(flat):
        for name in list(flat):
            for stack in ("encoder", "decoder"):
                if name.startswith(f"{stack}/{stack}/"):
                    older = name.replace(f"{stack}/{stack}/", f"{stack}/layers/").replace(
                        "relpos_bias", "relative_posemb"
                    )
                    flat[older] = flat.pop(name)

    write_t5x(tmp_path / "checkpoint_7", tensors, scanned=True, change=rename)
    _assert_same(load_t5x(tmp_path / "checkpoint_7", CONFIG), expected)


def test_broken_files_are_told_apart(tensors, write_t5x, tmp_path):
    folder = tmp_path / "checkpoint_7"
    write_t5x(folder, tensors)
    file = folder / "checkpoint"
    whole = file.read_bytes()
    file.write_bytes(whole[:-10])
    with pytest.raises(ValueError, match=r"checkpoint is not a whole msgpack file of T5X .*: copy it again"):
        load_t5x(folder, CONFIG)
    file.write_bytes(b"model_checkpoint_path: 'model.ckpt-7'")
    with pytest.raises(ValueError, match="belongs to a TensorFlow checkpoint"):
        load_t5x(folder, CONFIG)
    file.write_bytes(whole.replace(b"target", b"tarot!"))
    with pytest.raises(ValueError, match="holds no `target`"):
        load_t5x(folder, CONFIG)
    with pytest.raises(ValueError, match="is the folder of a T5X run: name one of its checkpoints, checkpoint_7"):
        load_weights(tmp_path, CONFIG)
