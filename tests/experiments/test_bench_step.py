"""What `dsbs bench step` says of the devices it runs on."""

import dataclasses
import datetime
import json

import jax
import numpy as np
import pytest

from dsbs_jax.experiments import bench_step
from dsbs_jax.models.config import T5Config
from dsbs_jax.models.flops import train_step_flops
from dsbs_jax.sharding.chips import Chip
from dsbs_jax.sharding.mesh import MeshConfig, make_mesh
from dsbs_jax.training.aot import AotConfig
from dsbs_jax.training.optimizers import OptimizerConfig
from dsbs_jax.training.program import abstract_batch

MODEL = T5Config(
    d_model=16, d_kv=4, d_ff=16, num_layers=1, num_decoder_layers=1, num_heads=2, vocab_size=64, scan_layers=False
)
PROGRAM = AotConfig(MODEL, OptimizerConfig("adafactor"), MeshConfig(fsdp=2, model=2), rows=8, lengths=(12, 6))


@pytest.mark.slow
def test_through_the_command_line(dsbs):
    shape = {**dataclasses.asdict(MODEL), "dtype": "float32"}
    process = dsbs(
        *("bench", "step", "--gin_file", "models/tiny", "--gin.BATCH_SIZE=4", "--gin.StepBenchConfig.window=2"),
        "--gin.TASK_FEATURE_LENGTHS={'inputs': 12, 'targets': 6}",
        *(f"--gin.T5Config.{name}={shape[name]!r}" for name in ("d_model", "d_kv", "d_ff", "num_layers", "dtype")),
        *(f"--gin.T5Config.{name}={shape[name]!r}" for name in ("num_decoder_layers", "num_heads", "vocab_size")),
    )
    assert process.returncode == 0, process.stderr
    said = json.loads(process.stdout)
    model = T5Config(**said["model"])
    # What gin/runs/bench_step.gin sets, and what the command line changes of it.
    assert model == dataclasses.replace(MODEL, param_dtype="bfloat16")
    assert said["optimizer"] == "adafactor"
    assert (said["device"], said["devices"], said["jax"]) == ("cpu", 1, jax.__version__)
    assert datetime.date.fromisoformat(said["date"])
    assert len(said["windows_seconds"]) == 3
    assert said["step_seconds"] == sorted(said["windows_seconds"])[1]
    # Both are rounded.
    assert said["tokens_per_second"] == pytest.approx(4 * 18 / said["step_seconds"], rel=1e-3)
    assert said["model_flops_per_step"] == train_step_flops(model, 4, 12, 6)
    assert said["parameters"] == model.num_parameters()
    # A CPU promises no peak and counts no bytes; XLA says what it needs anywhere.
    assert (said["mfu"], said["peak_bytes"]) == (None, None)
    assert said["compiled_bytes"] > 2 * said["parameters"]
    assert 0 < said["loss"] < 100


@pytest.mark.slow
def test_mfu_is_a_devices_share_of_its_promise_and_peaks_are_counted(monkeypatch):
    monkeypatch.setattr(bench_step, "find_chip", lambda kind: Chip(kind, 1e9, 1.0, 1.0, 1.0))
    peaks = [5, 7]
    monkeypatch.setattr(bench_step, "_peak_bytes", lambda mesh: peaks.pop(0))
    said = bench_step.run(bench_step.StepBenchConfig(PROGRAM, window=2, windows=2))
    assert (said["devices"], said["mesh"]) == (8, {"data": 2, "fsdp": 2, "model": 2})
    expected = train_step_flops(MODEL, 8, 12, 6) / said["step_seconds"] / 8 / 1e9
    assert said["mfu"] == pytest.approx(expected, rel=1e-2, abs=1e-4)
    assert (said["peak_bytes_before_steps"], said["peak_bytes"]) == (5, 7)


def test_rows_that_the_mesh_cannot_divide_are_refused():
    program = dataclasses.replace(PROGRAM, rows=6)
    with pytest.raises(ValueError, match="6 rows cannot be divided over data=2 x fsdp=2"):
        bench_step.run(bench_step.StepBenchConfig(program))


def test_what_the_platform_lacks_is_refused():
    model = dataclasses.replace(MODEL, attention="cudnn", dropout_rate=0.0)
    with pytest.raises(ValueError, match="needs an NVIDIA GPU"):
        bench_step.run(bench_step.StepBenchConfig(dataclasses.replace(PROGRAM, model=model)))


def test_a_loss_that_is_no_number_is_not_timed(monkeypatch):
    class Broken:
        def lower(self, *_):
            return self

        def compile(self):
            return self

        def __call__(self, state, batch):
            return state, {"finite": np.bool_(False), "loss": np.float32(np.nan)}

    real = AotConfig.training_program
    monkeypatch.setattr(
        AotConfig, "training_program", lambda self, mesh: dataclasses.replace(real(self, mesh), step=Broken())
    )
    with pytest.raises(FloatingPointError, match="loss is nan, and steps make no update any more"):
        bench_step.run(bench_step.StepBenchConfig(PROGRAM, window=1, windows=1))


def test_a_batch_is_full_and_split():
    mesh = make_mesh(MeshConfig(data=4, fsdp=2))
    shapes = abstract_batch(mesh, 8, 12, 6)
    batch = bench_step._full_batch(shapes, 64, 2)
    for name, array in batch.items():
        assert (array.shape, array.dtype) == (shapes[name].shape, shapes[name].dtype), name
        assert array.sharding.is_equivalent_to(shapes[name].sharding, 2), name
    for name in ("encoder_input_tokens", "decoder_input_tokens", "decoder_target_tokens"):
        assert np.unique(batch[name]).size > 20
        assert (np.asarray(batch[name]) >= 2).all()
        assert (np.asarray(batch[name]) < 64).all()
    assert (np.asarray(batch["encoder_segment_ids"]) == 1).all()
    assert (np.asarray(batch["decoder_loss_weights"]) == 1).all()
    np.testing.assert_array_equal(batch["decoder_positions"], np.tile(np.arange(6), (8, 1)))
    np.testing.assert_array_equal(np.asarray(batch["decoder_task_ids"])[:, 0], np.arange(8) % 2)


@pytest.mark.parametrize("name", ["window", "windows"])
def test_nothing_to_time(name):
    with pytest.raises(ValueError, match=f"{name} is 0; it must be at least 1"):
        bench_step.StepBenchConfig(PROGRAM, **{name: 0})
