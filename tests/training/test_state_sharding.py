"""Where the optimiser's state lies, for every optimiser and dtype; Adafactor over scanned layers of a sharded model."""

import dataclasses

import jax
import numpy as np
import pytest

from dsbs_jax.models.config import T5Config
from dsbs_jax.models.parameters import abstract_params
from dsbs_jax.models.stacking import unstack_layers
from dsbs_jax.models.t5 import T5
from dsbs_jax.sharding.arrays import put_batch
from dsbs_jax.sharding.mesh import MeshConfig, make_mesh
from dsbs_jax.sharding.rules import scanned_layers
from dsbs_jax.training.optimizers import OptimizerConfig, make_optimizer, make_schedule
from dsbs_jax.training.step import abstract_state, create_state, init_params, make_train_step

pytestmark = pytest.mark.usefixtures("quick_compilation")

# Matrices of at least 128 x 128: smaller ones Adafactor does not factor.
CONFIG = T5Config(
    d_model=128,
    d_kv=16,
    d_ff=160,
    num_layers=2,
    num_decoder_layers=2,
    num_heads=8,
    vocab_size=64,
    dropout_rate=0.0,
)
STEPS = 3


@pytest.mark.parametrize(
    ("name", "param_dtype", "moment_dtype", "scan_layers"),
    [
        ("adamw", "float32", "float32", True),
        ("adamw", "bfloat16", "bfloat16", True),
        ("adamw", "bfloat16", "float32", False),
        ("adafactor", "float32", "float32", True),
        ("adafactor", "bfloat16", "float32", True),
        ("adafactor", "bfloat16", "float32", False),
    ],
)
def test_all_that_is_as_large_as_a_parameter_is_split_as_it(name, param_dtype, moment_dtype, scan_layers):
    mesh = make_mesh(MeshConfig(2, 2, 2))
    model = T5(dataclasses.replace(CONFIG, param_dtype=param_dtype, scan_layers=scan_layers))
    config = OptimizerConfig(name, weight_decay=0.1, moment_dtype=moment_dtype)
    state = abstract_state(model, make_optimizer(config, STEPS, scanned_layers(abstract_params(model))), mesh)
    params = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state.params)}
    moments = 0
    for path, array in jax.tree_util.tree_leaves_with_path(state.opt_state):
        where = jax.tree_util.keystr(path)
        owner = params.get(max((name for name in params if where.endswith(name)), key=len, default=""))
        if owner is None:
            # A counter, or a layer's.
            assert array.size <= CONFIG.num_layers, where
        elif array.size == owner.size:
            assert (array.shape, array.sharding) == (owner.shape, owner.sharding), where
            moments += 1
        else:
            # Statistics of a matrix's rows or columns, or what stands in for them where there are none.
            assert array.size * 100 <= owner.size, where
    # Adafactor has such moments of what it does not factor.
    assert moments == 2 * len(params) if name == "adamw" else moments > 0


def make_batch(seed):
    rng = np.random.default_rng(seed)
    encoder, decoder = rng.integers(2, 64, (8, 16)).astype(np.int32), rng.integers(2, 64, (8, 8)).astype(np.int32)
    ones = {"encoder": np.ones_like(encoder), "decoder": np.ones_like(decoder)}
    return {
        "encoder_input_tokens": encoder,
        "decoder_input_tokens": np.roll(decoder, 1, axis=1),
        "decoder_target_tokens": decoder,
        "decoder_task_ids": np.zeros_like(decoder),
        "decoder_loss_weights": np.ones(decoder.shape, np.float32),
        **{f"{side}_segment_ids": array for side, array in ones.items()},
        **{f"{side}_positions": np.cumsum(array, axis=1, dtype=np.int32) - 1 for side, array in ones.items()},
    }


@pytest.mark.slow
def test_adafactor_on_a_meshs_scanned_layers_is_that_of_unrolled_ones_layer_by_layer():
    mesh = make_mesh(MeshConfig(2, 2, 2))
    first = jax.device_get(init_params(T5(CONFIG), 0, mesh))
    config = OptimizerConfig("adafactor", learning_rate=1e-2, schedule="constant", weight_decay=0.1)

    def params_after(scan_layers):
        model = T5(dataclasses.replace(CONFIG, scan_layers=scan_layers))
        optimizer = make_optimizer(config, STEPS, scanned_layers(abstract_params(model)))
        places = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(model, optimizer, mesh).params)
        params = jax.device_put(first if scan_layers else unstack_layers(first), places)
        state = create_state(model, optimizer, 0, mesh, params=params)
        step = make_train_step(model, optimizer, make_schedule(config, STEPS), (1.0,), mesh)
        for number in range(STEPS):
            state, _ = step(state, put_batch(make_batch(number), mesh))
        return jax.device_get(state.params)

    scanned, unrolled = unstack_layers(params_after(True)), params_after(False)
    paths = jax.tree_util.tree_leaves_with_path(unstack_layers(first))
    for (path, before), one, other in zip(paths, *map(jax.tree.leaves, (scanned, unrolled)), strict=True):
        change = np.sqrt(np.mean(np.square(other - before)))
        assert change > 0, path
        # Float32 gradients summed in another order, of which single entries are small: 1e-4 was seen.
        assert np.abs(one - other).max() < 1e-3 * change, path
