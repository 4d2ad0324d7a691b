"""The 11B student: its own step, compiled for TPU slices that are not there, and its architecture at work."""

import json

import numpy as np
import pytest

from dsbs_jax import gin_config
from dsbs_jax.sharding.arrays import put_batch
from dsbs_jax.sharding.mesh import make_mesh
from dsbs_jax.training.aot import AotConfig
from dsbs_jax.training.optimizers import OptimizerConfig
from dsbs_jax.training.program import abstract_batch, training_program
from dsbs_jax.training.step import create_state

LENGTHS = "{'inputs': 32, 'targets': 16}"
XXL = ("--gin_file", "models/t5_1_1_xxl")
GIGABYTE = 1e9


@pytest.fixture
def aot(dsbs):
    pytest.importorskip("libtpu", reason="needs the TPU compiler: pip install 'dsbs_jax[tpu]'")

    def run(*flags):
        done = dsbs("aot", *flags, "--only", "train", "--json", timeout=900)
        assert done.stdout, done.stderr
        return done.returncode, json.loads(done.stdout)

    return run


@pytest.mark.slow
@pytest.mark.lengthy
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("topology", "rows", "gigabytes", "ratio"),
    # 32 x 1024/256 tokens, a chip's memory below its limit by a margin, and what recomputing every layer costs.
    [("v5p:2x2x4", 32, 16, 1.35), ("v5e:8x8", 64, 14, 1.35), ("v5e:4x4", 32, 16, 1.35)],
)
def test_xxl_at_full_width_fits(aot, topology, rows, gigabytes, ratio):
    code, found = aot(*XXL, "--topology", topology)
    assert code == 0
    assert found["fits"] is True
    assert (found["rows"], found["lengths"]) == (rows, [1024, 256])
    assert found["peak_bytes_per_chip"] < gigabytes * GIGABYTE
    assert 1.0 < found["flops_ratio"] <= ratio
    assert 0 < found["roofline_step_seconds"] < 5
    assert found["collective_bytes"] > 0


@pytest.mark.slow
@pytest.mark.lengthy
@pytest.mark.timeout(900)
def test_what_does_not_fit_is_refused_by_the_compiler_and_told(aot):
    """T5 XL's parameters and moments, whole on every chip, are 34 GB."""
    code, found = aot("--gin_file", "models/t5_1_1_xl", "--topology", "v5e:2x2", "--gin.MESH='dp'")
    assert code == 1
    assert found["fits"] is False
    assert found["peak_bytes_per_chip"] > found["hbm_bytes_per_chip"]
    assert "MESH='fsdp'" in found["suggestion"]


@pytest.mark.slow
def test_xxl_at_reduced_width_trains_on_eight_devices():
    """24 layers of each stack, 64 heads, gated GELU, a head of its own; 1/32 of the width. Real steps of AdamW."""
    narrow = ("d_model=128", "d_kv=2", "d_ff=320", "vocab_size=512")
    bindings = [f"T5Config.{field}" for field in narrow] + ["MeshConfig.model=2", "TASK_FEATURE_LENGTHS = " + LENGTHS]
    config = gin_config.parse(("runs/train", "runs/aot", "models/t5_1_1_xxl"), bindings, AotConfig)()
    assert (config.model.num_layers, config.model.num_decoder_layers, config.model.num_heads) == (24, 24, 64)
    mesh = make_mesh(config.mesh)
    assert dict(mesh.shape) == {"data": 1, "fsdp": 4, "model": 2}
    optimizer = OptimizerConfig(learning_rate=1e-3, schedule="constant")
    program = training_program(config.model, optimizer, 4, (1.0, 1.0), mesh)
    shapes = abstract_batch(mesh, 8, *config.lengths)
    generator = np.random.default_rng(0)
    batch = {
        name: np.ones(shape.shape, shape.dtype)
        if "tokens" not in name
        else generator.integers(2, 512, shape.shape).astype(shape.dtype)
        for name, shape in shapes.items()
    }
    state = create_state(program.model, program.optimizer, 0, mesh)
    losses = []
    for _ in range(4):
        state, metrics = program.step(state, put_batch(batch, mesh))
        assert metrics["finite"]
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0] - 0.05
