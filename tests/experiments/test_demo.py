"""`dsbs demo` as `make demo` runs it, with fewer steps: every file and line it promises."""

import json

import pytest

from dsbs_jax.experiments.results import read_rows

pytest.importorskip("openai", reason="the demo asks its teacher with openai: pip install 'dsbs_jax[teacher]'")


@pytest.mark.slow
def test_demo_leaves_results_tables_figures_and_students(dsbs, tmp_path):
    folder = tmp_path / "demo"
    process = dsbs(
        *("demo", "--output", folder, "--gin.TRAIN_STEPS=6", "--gin.EVAL_PERIOD=3"),
        *("--gin.SweepConfig.fractions=(0.5, 1.0)", "--gin.SweepConfig.seeds=(1,)"),
        timeout=500,
    )
    assert process.returncode == 0, process.stderr
    rows = read_rows(folder)
    grid = {(row.method, row.label_source, row.fraction, row.seed) for row in rows}
    sources, methods = ("gold", "teacher"), ("standard", "step_by_step")
    assert grid == {(m, s, f, 1) for m in methods for s in sources for f in (0.5, 1.0)}
    assert len(rows) == len(grid)
    assert {(row.status, row.config["steps"]) for row in rows} == {("finished", 6)}
    # How far it is is said while it runs, and what it ran besides.
    assert "[8/8] " in process.stderr
    assert "dsbs sweep recipes/demo --run --workers" in process.stderr
    assert "| method | 50 % | 100 % |" in process.stdout
    assert "| step-by-step against standard finetuning | 50 % | " in process.stdout
    assert "| step-by-step (teacher labels) against standard distillation | 50 % | " in process.stdout
    # The teacher was asked for every training row, and is right as often as it says.
    (labels,) = (folder / "labels").iterdir()
    card = json.loads((labels / "card.json").read_text())["train"]
    assert (card["rows"], card["answers"], card["gaps"]) == (1152, 1152, 0)
    assert 0.75 < card["accuracy"] < 0.85
    assert (labels / "train.report.html").stat().st_size > 5000
    assert {row.teacher for row in rows if row.method == "step_by_step"} == {str(labels)}
    # Teacher's labels leave out the rows whose answer could not be read; gold labels need none.
    used = {row.label_source: row.num_train_examples for row in rows if (row.method, row.fraction) == ("standard", 1)}
    assert used == {"gold": 1152, "teacher": card["labelled"]}
    assert (folder / "report" / "tables.md").read_text().strip() in process.stdout
    # How right the teacher is stands in the report as its card has it.
    assert f"few-shot CoT (the teacher itself; 1,152 rows of train) | {100 * card['accuracy']:.2f} | " in process.stdout
    assert (folder / "report" / "figures" / "01-bestiary-fraction.png").stat().st_size > 5000
    # Every student can be used again, each with its own method and data.
    for row in rows:
        if (row.label_source, row.fraction) == ("gold", 0.5):
            process = dsbs("eval", "--model_dir", row.folder)
            assert process.returncode == 0, process.stderr
            assert json.loads(process.stdout)["accuracy"] == row.test_accuracy
    # Done once, it is not done again.
    process = dsbs(
        *("demo", "--output", folder, "--gin.TRAIN_STEPS=6", "--gin.EVAL_PERIOD=3"),
        *("--gin.SweepConfig.fractions=(0.5, 1.0)", "--gin.SweepConfig.seeds=(1,)"),
        timeout=500,
    )
    assert process.returncode == 0, process.stderr
    assert "[" not in process.stderr.partition("dsbs sweep")[2].partition("\n")[2]
    assert read_rows(folder) == rows


@pytest.mark.slow
@pytest.mark.lengthy
def test_runs_that_fail_end_the_demo_with_their_sentence(dsbs, tmp_path):
    words = ("--gin.T5Config.vocab_size=10", "--gin.SweepConfig.seeds=(0,)")
    process = dsbs("demo", "--output", tmp_path / "demo", *words, timeout=500)
    assert process.returncode == 3
    assert "12 failed" in process.stdout
    assert "set T5Config.vocab_size" in process.stdout
