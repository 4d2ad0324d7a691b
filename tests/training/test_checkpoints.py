"""Checkpoints: newest and best are kept, both come back bit for bit, half-written ones are never seen."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from dsbs_jax.training.checkpoints import Checkpoints, abstract, best_of


def state(value: float):
    params = {"layer": {"kernel": jnp.full((3, 5), float(value))}, "scale": jnp.full((5,), value, jnp.bfloat16)}
    return params, (params, {"count": jnp.asarray(int(value), jnp.int32)})


def test_best_of_prefers_the_earliest_among_equals():
    assert best_of([(10, 0.5), (20, 0.75), (30, 0.75), (40, 0.1)]) == (20, 0.75)
    assert best_of([]) is None


def test_newest_and_best_are_kept_with_their_records(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        for step, accuracy in ((10, 0.1), (20, 0.5), (30, 0.5), (40, 0.2), (45, None)):
            checkpoints.save(step, *state(step), {"history": [step]}, accuracy)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps == [20, 45]
        assert checkpoints.record(20) == {"history": [20]}
        for step in (20, 45):
            params, optimizer = state(step)
            restored = checkpoints.restore(step, abstract(params), abstract(optimizer))
            jax.tree.map(np.testing.assert_array_equal, (restored.params, restored.optimizer), (params, optimizer))
            assert jax.tree.map(lambda x: x.dtype, restored.params) == jax.tree.map(lambda x: x.dtype, params)


def test_weights_come_back_without_the_optimizer(tmp_path):
    params, optimizer = state(3)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, params, optimizer, {}, None)
        assert checkpoints.restore(1, abstract(params)).optimizer is None


def test_a_folder_that_was_never_committed_is_no_checkpoint(tmp_path):
    params, optimizer = state(3)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, params, optimizer, {}, None)
    # What a process killed while saving leaves behind.
    (tmp_path / "2.orbax-checkpoint-tmp").mkdir()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps == [1]


@pytest.mark.parametrize(("saved", "wanted"), [("float32", "bfloat16"), ("bfloat16", "float32")])
def test_weights_come_back_onto_another_mesh_in_another_dtype(tmp_path, saved, wanted):
    params = {"kernel": jax.random.normal(jax.random.key(0), (8, 4), saved), "scale": jnp.arange(4, dtype=saved) / 3}

    def place(shape, axes):
        mesh = jax.make_mesh(shape, ("data", "fsdp", "model"), (AxisType.Auto,) * 3)
        return {"kernel": NamedSharding(mesh, PartitionSpec(*axes)), "scale": NamedSharding(mesh, PartitionSpec())}

    with Checkpoints(tmp_path) as checkpoints:
        moments = jax.tree.map(jnp.square, params)
        before = place((2, 2, 2), ("fsdp", "model"))
        checkpoints.save(1, jax.device_put(params, before), jax.device_put(moments, before), {}, None)
        target = place((1, 4, 2), ("model", "fsdp"))
        want = jax.tree.map(lambda x, where: jax.ShapeDtypeStruct(x.shape, wanted, sharding=where), params, target)
        restored = checkpoints.restore(1, want, want)
    for tree, original in ((restored.params, params), (restored.optimizer, moments)):
        assert jax.tree.map(lambda x: x.sharding, tree) == target
        jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y.astype(wanted), strict=True), tree, original)


def test_weights_of_another_shape_are_refused(tmp_path):
    params, optimizer = state(3)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, params, optimizer, {}, None)
    wrong = abstract(params) | {"scale": jax.ShapeDtypeStruct((7,), jnp.bfloat16, sharding=params["scale"].sharding)}
    sentence = r"another model's weights: scale \(saved \(5,\), the model has \(7,\)\)"
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(ValueError, match=sentence):
        checkpoints.restore(1, wrong)


def test_a_disk_that_fills_during_a_save_is_told_in_one_sentence(tmp_path):
    # A limit on the size of files, in a process of its own, which no later test shares.
    script = """
import resource, sys
import jax
from dsbs_jax.training.checkpoints import Checkpoints, SaveError
small, large = jax.numpy.ones(3), jax.random.normal(jax.random.key(0), (300, 300))
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    with Checkpoints(sys.argv[1]) as checkpoints:
        checkpoints.save(1, small, small, {}, None)
        checkpoints.save(2, large, large, {}, None)
except SaveError as error:
    print(error)
print(Checkpoints(sys.argv[1]).steps)
"""
    process = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=200, check=True
    )
    sentence, steps = process.stdout.splitlines()
    assert sentence.startswith(f"The checkpoint of step 2 could not be written to {tmp_path} (")
    assert "File too large" in sentence
    assert steps == "[1]"
    assert "Traceback" not in process.stderr
