"""The 11B student: its own step, compiled for TPU slices that are not there, and its architecture at work."""

import json

import pytest

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
    [("v5p:2x2x4", 32, 16, 1.35), ("v5e:8x8", 64, 14, 1.35), ("v6e:4x4", 32, 20, 1.35)],
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
    """T5 XL's parameters and moments alone are 11 GB a chip on four."""
    code, found = aot("--gin_file", "models/t5_1_1_xl", "--topology", "v5e:2x2", "--gin.MESH='dp'")
    assert code == 1
    assert found["fits"] is False
    assert found["peak_bytes_per_chip"] > found["hbm_bytes_per_chip"]
    assert "MESH='fsdp'" in found["suggestion"]


@pytest.mark.slow
def test_xxl_at_reduced_width_trains_on_eight_devices(dsbs, tmp_path):
    """24 layers of each stack, 64 heads, gated GELU, a head of its own; 1/32 of the width."""
    narrow = {"d_model": 128, "d_kv": 2, "d_ff": 320}
    done = dsbs(
        *("train", "--gin_file", "datasets/bestiary", *XXL, "--model_dir", tmp_path / "run"),
        *(f"--gin.T5Config.{name}={value}" for name, value in narrow.items()),
        *("--gin.TRAIN_STEPS=4", "--gin.EVAL_PERIOD=4", "--gin.LOG_PERIOD=1", "--gin.LEARNING_RATE=1e-3"),
        *("--gin.TASK_FEATURE_LENGTHS={'inputs': 32, 'targets': 32}", "--gin.MeshConfig.model=2"),
        *("--gin.DATASET_ARGUMENTS={'creatures': 300}", "--gin.EVAL_BATCH_SIZE=64"),
        env={"XLA_FLAGS": "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"},
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 4
    assert losses[-1] < losses[0]
