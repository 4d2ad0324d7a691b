"""README's commands on the paper's data and T5's vocabulary, with few steps: from files to a finished evaluation."""

import json

import pytest

FEW = ("--gin.TRAIN_STEPS=4", "--gin.EVAL_PERIOD=4", "--gin.BATCH_SIZE=8", "--gin.TrainConfig.max_decode_length=8")
SMALL = tuple(f"--gin.T5Config.{field}" for field in ("d_model=32", "d_ff=32", "d_kv=16", "num_heads=2"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dataset", "method", "source", "rows"),
    [
        ("svamp", "step_by_step", "gold", (720, 80, 200)),
        pytest.param("svamp", "standard", "teacher", (689, 80, 200), marks=pytest.mark.lengthy),
        ("cqa", "step_by_step", "teacher", (8477, 975, 1221)),
        pytest.param("esnli", "single_task", "gold", (9856, 9842, 9824), marks=pytest.mark.lengthy),
        pytest.param("svamp", "rationale_input", "gold", (710, 80, 200), marks=pytest.mark.lengthy),
    ],
)
def test_training_runs_to_a_finished_evaluation(dsbs, shared_data, tmp_path, dataset, method, source, rows):
    process = dsbs(
        *("train", "--gin_file", "runs/from_scratch", "--gin_file", f"datasets/{dataset}"),
        *("--gin_file", f"methods/{method}", f"--gin.LABEL_SOURCE='{source}'"),
        *("--data_dir", shared_data / "dss", "--model_dir", tmp_path / "run", *FEW, *SMALL),
    )
    assert process.returncode == 0, process.stderr
    result = json.loads(process.stdout)
    assert (result["dataset"], result["method"], result["label_source"]) == (dataset, method, source)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["data"]["training"]["rows_used"] == rows[0]
    for split, count in (("validation", rows[1]), ("test", rows[2])):
        lines = (tmp_path / "run" / f"predictions_{split}.jsonl").read_text().splitlines()
        assert len(lines) == count
