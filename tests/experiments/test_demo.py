"""`dsbs demo` as `make demo` runs it, with fewer steps: every file and line it promises."""

import json

import pytest

KEYS = [
    *("dataset", "method", "label_source", "fraction", "seed", "validation_accuracy", "test_accuracy"),
    *("test_accuracy_last", "selected_step", "steps", "seconds"),
]


pytest.importorskip("openai", reason="the demo asks its teacher with openai: pip install 'dsbs_jax[teacher]'")


@pytest.mark.slow
def test_demo_leaves_results_table_plot_and_students(dsbs, tmp_path):
    folder = tmp_path / "demo"
    process = dsbs(
        *("demo", "--output", folder, "--gin.TRAIN_STEPS=6", "--gin.EVAL_PERIOD=3"),
        *("--gin.DemoConfig.fractions=(0.5, 1.0)", "--gin.DemoConfig.seeds=(0, 1)"),
        timeout=500,
    )
    assert process.returncode == 0, process.stderr
    results = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    assert all(list(result) == KEYS for result in results)
    grid = {(result["method"], result["label_source"], result["fraction"], result["seed"]) for result in results}
    labelled = (("gold", 0.5), ("gold", 1.0), ("teacher", 1.0))
    assert grid == {(m, *cell, s) for m in ("standard", "step_by_step") for cell in labelled for s in (0, 1)}
    assert len(results) == len(grid)
    assert all(result["steps"] == 6 for result in results)
    assert "| method | 50 % | 100 % |" in process.stdout
    assert "| step-by-step (teacher labels) | not run | " in process.stdout
    assert "| step-by-step against standard finetuning | 50 % | " in process.stdout
    # The teacher was asked for every training row, and is right as often as it says.
    (labels,) = (folder / "labels").iterdir()
    card = json.loads((labels / "card.json").read_text())["train"]
    assert (card["rows"], card["answers"], card["gaps"]) == (1152, 1152, 0)
    assert 0.75 < card["accuracy"] < 0.85
    assert (labels / "train.report.html").stat().st_size > 5000
    # Teacher's labels leave out the rows whose answer could not be read; gold labels need none.
    for name, rows in (("standard-gold-1-0", 1152), ("standard-teacher-1-0", card["labelled"])):
        summary = json.loads((folder / name / "summary.json").read_text())
        assert summary["data"]["training"]["rows_used"] == rows
    assert (folder / "report" / "tables.md").read_text().strip() in process.stdout
    # How right the teacher is stands in the report as its card has it.
    assert f"few-shot CoT (the teacher itself; 1,152 rows of train) | {100 * card['accuracy']:.2f} | " in process.stdout
    assert (folder / "report" / "figures" / "01-bestiary-fraction.png").stat().st_size > 5000
    # Every student can be used again, each with its own method and data.
    for method in ("standard", "step_by_step"):
        process = dsbs("eval", "--model_dir", folder / f"{method}-gold-0.5-1")
        assert process.returncode == 0, process.stderr
        summary = json.loads((folder / f"{method}-gold-0.5-1" / "summary.json").read_text())
        assert json.loads(process.stdout)["accuracy"] == summary["result"]["test_accuracy"]


@pytest.mark.slow
@pytest.mark.lengthy
def test_a_run_that_fails_ends_the_demo_with_its_sentence(dsbs, tmp_path):
    process = dsbs("demo", "--output", tmp_path / "demo", "--gin.T5Config.vocab_size=10", timeout=500)
    assert process.returncode == 1
    assert "set T5Config.vocab_size" in process.stderr.splitlines()[-1]
