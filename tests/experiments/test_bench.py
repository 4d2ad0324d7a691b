"""The benchmark compares what it says it compares."""

import json

import pytest


@pytest.mark.slow
@pytest.mark.parametrize("size", [pytest.param("t5_small", marks=pytest.mark.lengthy), "t5_1_1_small"])
def test_bench_trains_the_same_architecture_on_both_sides(dsbs, size):
    pytest.importorskip("torch", reason="needs torch: pip install 'dsbs_jax[parity]'")
    shrink = ("d_model=32", "d_kv=8", "d_ff=32", "num_layers=1", "num_decoder_layers=1", "num_heads=2")
    process = dsbs(
        *("bench", "train", "--gin_file", f"models/{size}", "--gin.T5Config.vocab_size=868", "--gin.BATCH_SIZE=8"),
        *("--gin.BenchConfig.steps=3", *(f"--gin.T5Config.{field}" for field in shrink)),
    )
    # It refuses to compare models with different numbers of parameters.
    assert process.returncode == 0, process.stderr
    result = json.loads(process.stdout)
    assert result["dataset"] == "bestiary"
    assert result["ratio"] > 0
    speeds = result["examples_per_second"]
    assert result["ratio"] == pytest.approx(speeds["dsbs_jax"] / speeds["torch"], rel=0.02)
