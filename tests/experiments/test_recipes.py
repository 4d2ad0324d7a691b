"""The recipes: each says how it is run, and those on the embedded dataset run, in a few steps, into one report."""

import pytest

from dsbs_jax import cli, gin_config
from dsbs_jax.experiments.report import write_report
from dsbs_jax.experiments.results import read_rows

RECIPES = [name.removesuffix(".gin") for name in gin_config.names() if name.startswith("recipes/")]

_STEP_BY_STEP = {"methods": ("methods/step_by_step",)}
# What a short run leaves of what a recipe is about; the others are short with one seed and all data.
SHORT = {
    "lambda_bestiary": {"rationale_weights": (0.3,)} | _STEP_BY_STEP,
    "wrong_rationales_bestiary": {"wrong_rationales": (0.5,)} | _STEP_BY_STEP,
    "missing_rationales_bestiary": {"missing_rationales": (0.5,)} | _STEP_BY_STEP,
    "quality_bestiary": {"teachers": ("errs_75",)} | _STEP_BY_STEP,
    "gold_filtered_bestiary": {"variants": ("variants/gold_filtered",)} | _STEP_BY_STEP,
    "fig7_unlabelled_bestiary": _STEP_BY_STEP,
    "fig6_bestiary": {"models": ("models/micro",), "methods": ("methods/rationale_input",)},
    "fig7_bestiary": {"models": ("models/micro",)} | _STEP_BY_STEP,
    "fig8_bestiary": {"models": ("models/micro", "models/tiny")},
    "fig9_bestiary": {"models": ("models/micro",)},
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_headers_hold_command_cost_and_the_papers_numbers(recipe):
    text = gin_config.find(recipe).read_text()
    head = text[: text.index("\n\n")]
    assert f"#   dsbs sweep {recipe} --run" in head
    assert "Cost" in head
    assert "paper" in head or recipe.startswith("recipes/smoke") or "Beyond the paper" in head


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_recipe_of_the_embedded_dataset_runs(tmp_path, store_root, monkeypatch, capsys):
    monkeypatch.setenv("DSBS_STORE_DIR", str(store_root))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "compiled"))
    twins = [recipe for recipe in RECIPES if recipe.endswith("_bestiary")]
    for recipe in twins:
        axes = SHORT.get(recipe.removeprefix("recipes/"), {})
        words = [recipe, "--gin_file", "runs/smoke", "--output", str(tmp_path / "sweep"), "--run"]
        words += [f"--gin.SweepConfig.{axis}={values!r}" for axis, values in axes.items()]
        assert cli.main(["sweep", *words]) == 0, (recipe, capsys.readouterr())
    rows = read_rows(tmp_path / "sweep")
    assert {row.status for row in rows} == {"finished"}
    # Cells that recipes have in common ran once: they lie in one folder.
    assert len({(row.cell) for row in rows}) == len(rows)
    assert {row.method for row in rows} == {"standard", "step_by_step", "single_task", "rationale_input"}
    assert {row.label_source for row in rows} == {"gold", "teacher"}
    assert {row.teacher for row in rows if row.method == "step_by_step"} == {"errs_18", "errs_50", "errs_75", "llm"}
    assert {row.rationale_weight for row in rows} == {None, 0.3, 1.0}
    assert {(row.wrong_rationales, row.missing_rationales) for row in rows} == {(0.0, 0.0), (0.5, 0.0), (0.0, 0.5)}
    assert {row.variant for row in rows} == {"", "gold_filtered", "bestiary_half", "bestiary_half_unlabelled"}
    assert {row.model for row in rows} >= {"micro", "tiny"}
    # Variants that withhold gold labels bring the world of runs/bestiary.
    assert all(row.teacher_accuracy["test"]["rows"] == (288 if "half" in row.variant else 40) for row in rows)
    assert write_report(tmp_path / "sweep").stat().st_size > 10_000
