"""Finished cells evaluated again."""

import json
import pathlib
import shutil

import pytest

from dsbs_jax import cli


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--list", "--on", "datasets/svamp"), "give --evaluate SPLIT with it"),
        (("--evaluate", "test", "--metric", "bleu"), "There is no metric 'bleu'; the metrics are exact, equation."),
        (("--evaluate", "test", "--step", "first"), "--step is 'first'; it must be best, last"),
        (("--evaluate", "test", "--on", "datasets/swamp"), "Did you mean datasets/svamp.gin?"),
    ],
)
def test_mistakes_end_in_one_sentence(words, sentence, refused):
    refused("recipes/smoke", *words, sentence=sentence)


@pytest.mark.slow
def test_finished_cells_are_evaluated_once_for_each_question(dsbs, environment, tmp_path, capsys, monkeypatch):
    root = tmp_path / "sweep"
    words = ["recipes/smoke", "--output", str(root), "--gin.SweepConfig.methods=('methods/standard',)"]
    words += ["--gin.SweepConfig.fractions=(1.0,)"]
    ran = dsbs("sweep", *words, "--run")
    assert ran.returncode == 0, ran.stderr
    # One more cell than is finished.
    words = ["sweep", *words, "--gin.SweepConfig.seeds=(0, 1, 2)", "--data_dir", str(tmp_path)]
    monkeypatch.setenv("DSBS_STORE_DIR", environment["DSBS_STORE_DIR"])
    folders = sorted((root / "runs").iterdir())

    # What training found at its end, found again.
    assert cli.main([*words, "--evaluate", "test"]) == 0
    assert "2 evaluated, 0 had been before, 0 failed, 1 cells are not finished." in capsys.readouterr().out
    for folder in folders:
        result = json.loads((folder / "summary.json").read_text())["result"]
        (told,) = (json.loads(path.read_text()) for path in (folder / "evaluations").glob("*.json"))
        assert (told["accuracy"], told["step"]) == (result["test_accuracy"], result["selected_step"])
        predictions = folder / "evaluations" / f"bestiary-test-exact-{told['step']}.jsonl"
        assert predictions.read_bytes() == (folder / "predictions_test.jsonl").read_bytes()

    # Another dataset, metric and step: a few rows of the validation split, as files of one's own.
    rows = [json.loads(line) for line in (folders[0] / "predictions_validation.jsonl").read_text().splitlines()[:20]]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "other.gin").write_text(
        "include 'datasets/custom.gin'\nCustomDataset.name = 'other'\nCustomDataset.train = 'rows.jsonl'\n"
        "CustomDataset.test = 'rows.jsonl'\n"
    )
    ask = [*words, "--evaluate", "test", "--on", str(tmp_path / "other.gin"), "--metric", "equation", "--step", "last"]
    shutil.move(folders[0] / "checkpoints", tmp_path / "away")
    assert cli.main(ask) == 3
    told = capsys.readouterr().out
    assert f"Failed: {folders[0].name}, bestiary, tiny, standard" in told
    assert "has no checkpoints" in told
    assert "1 evaluated, 0 had been before, 1 failed" in told
    # Once it is mended, nothing is evaluated twice.
    shutil.move(tmp_path / "away", folders[0] / "checkpoints")
    other = folders[1] / "evaluations" / "other-test-equation-6.json"
    written = other.stat().st_mtime_ns
    query = "SELECT cell, dataset, split, metric, step, accuracy, rows, predictions FROM evaluations ORDER BY 2, 1"
    assert cli.main([*ask, "--sql", query]) == 0
    told = capsys.readouterr().out.splitlines()
    assert "1 evaluated, 1 had been before, 0 failed, 1 cells are not finished." in told
    assert other.stat().st_mtime_ns == written
    table = [line.split("\t") for line in told[-4:]]
    assert [row[1] for row in table] == ["bestiary"] * 2 + ["other"] * 2
    for folder, row in zip(folders, table[2:], strict=True):
        lines = [json.loads(line) for line in pathlib.Path(row[-1]).read_text().splitlines()]
        assert row[:5] == [folder.name, "other", "test", "equation", "6"]
        assert (float(row[5]), int(row[6])) == (pytest.approx(sum(line["correct"] for line in lines) / 20), 20)
