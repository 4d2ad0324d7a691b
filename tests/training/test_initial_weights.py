"""Where a run starts: another run's best weights, whatever mesh and stacking this one has."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from dsbs_jax.models.config import t5_config
from dsbs_jax.models.hf import load_huggingface
from dsbs_jax.models.parameters import abstract_params
from dsbs_jax.models.stacking import stack_layers
from dsbs_jax.models.t5 import T5
from dsbs_jax.sharding.mesh import MeshConfig, make_mesh
from dsbs_jax.sharding.rules import param_shardings
from dsbs_jax.training.checkpoints import Checkpoints
from dsbs_jax.training.initial_weights import initial_weights

CONFIG = t5_config(
    "v1_1", "small", vocab_size=48, d_model=16, d_kv=4, d_ff=24, num_heads=4, num_layers=2, num_decoder_layers=2
)


def _shardings(config, **sizes):
    return param_shardings(abstract_params(T5(config)), make_mesh(MeshConfig(**sizes)))


@pytest.fixture(scope="module")
def trained(write_huggingface, tmp_path_factory):
    """(folder of a run, the weights of its best step)."""
    folder = tmp_path_factory.mktemp("run")
    write_huggingface(folder / "weights", CONFIG)
    best = load_huggingface(folder / "weights", CONFIG, _shardings(CONFIG, fsdp=-1))
    record = {"config": {"model": json.loads(json.dumps(dataclasses.asdict(CONFIG)))}}
    worse = jax.tree.map(lambda leaf: leaf + 1, best)
    with Checkpoints(folder / "checkpoints") as checkpoints:
        for step, params, accuracy in ((10, worse, 0.25), (20, best, 0.75), (30, worse, 0.5)):
            checkpoints.save(step, params, {"count": jax.numpy.int32(step)}, record, accuracy)
    return folder, best


@pytest.mark.parametrize("scan_layers", [True, False])
def test_a_runs_best_weights(trained, scan_layers):
    folder, best = trained
    config = dataclasses.replace(CONFIG, scan_layers=scan_layers)
    shardings = _shardings(config, data=2, fsdp=2, model=2)
    found = initial_weights(folder, config, shardings)
    assert jax.tree.map(lambda leaf: leaf.sharding, found) == shardings
    jax.tree.map(np.testing.assert_array_equal, found if scan_layers else stack_layers(found), best)


def test_a_run_of_another_architecture_is_refused(trained):
    config = dataclasses.replace(CONFIG, feed_forward="relu")
    with pytest.raises(ValueError, match="feed_forward is 'gated-gelu' there and 'relu' here"):
        initial_weights(trained[0], config, _shardings(config))


def test_a_run_without_a_checkpoint_is_refused(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ValueError, match="has no checkpoint yet"):
        initial_weights(tmp_path, CONFIG, _shardings(CONFIG))


def test_everything_else_is_told_apart_by_what_lies_there(trained):
    found = initial_weights(trained[0] / "weights", CONFIG, _shardings(CONFIG))
    jax.tree.map(np.testing.assert_array_equal, found, trained[1])
    with pytest.raises(ValueError, match=r"There is no folder /nowhere"):
        initial_weights("/nowhere", CONFIG, _shardings(CONFIG))
