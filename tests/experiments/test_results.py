"""Rows from runs' folders: their states, numbers, and the ways out (SQLite, CSV)."""

import csv
import io
import json
import pathlib

import pytest

from dsbs_jax import schema
from dsbs_jax.data.folders import held
from dsbs_jax.experiments import results


def run_folder(root: pathlib.Path, cell: str, method: str, seed: int, accuracy: float | None = None, **error) -> None:
    made = schema.make_method(method, rationale_weight=0.25)
    config = {
        "data": {
            "name": "bestiary",
            "teacher": "llm",
            "teacher_filter": None,
            "rationale_noise": {"wrong": 0.25, "missing": 0.0, "seed": 0},
        },
        "method": {
            "name": method,
            "label_source": "gold",
            "tasks": [{"name": t.name, "input": t.input, "target": t.target, "weight": t.weight} for t in made.tasks],
        },
        "fraction": 0.5,
        "seed": seed,
    }
    folder = root / "runs" / cell
    folder.mkdir(parents=True)
    record = {"sweep": "s", "cell": cell, "model": "tiny", "variant": "asdiv", "config": config}
    (folder / results.CELL).write_text(json.dumps(record))
    if accuracy is not None:
        told = {"validation_accuracy": 0.5, "test_accuracy": accuracy, "test_accuracy_last": 0.25}
        training = {"rows_used": 480, "rows_per_step": 3, "row_lengths": [10, 20]}
        training |= {"encoder_utilisation": 0.9, "decoder_utilisation": 0.8}
        summary = {
            "result": told | {"selected_step": 4, "steps": 6, "seconds": 1.5},
            "data": {"training": training, "teacher": {"test": {"rows": 240, "right": 180}}},
            "made": {"device": "cpu", "num_devices": 1, "code_version": "0"},
        }
        (folder / "summary.json").write_text(json.dumps(summary))
    if error:
        (folder / results.ERROR).write_text(json.dumps(error))


@pytest.fixture
def root(tmp_path) -> pathlib.Path:
    run_folder(tmp_path, "a", "step_by_step", 1, 0.75)
    run_folder(tmp_path, "b", "standard", 0, 0.5)
    run_folder(tmp_path, "c", "standard", 1, error="No memory.")
    run_folder(tmp_path, "d", "step_by_step", 0)
    run_folder(tmp_path, "e", "standard", 2)
    return tmp_path


def test_rows_tell_state_axes_and_numbers(root):
    with held(root / "runs" / "d" / results.CLAIM):
        rows = results.read_rows(root)
    assert [(row.cell, row.status) for row in rows] == [
        *(("b", "finished"), ("c", "failed"), ("e", "waiting"), ("d", "running"), ("a", "finished"))
    ]
    # A worker that ended, however it ended, holds nothing.
    assert [row.status for row in results.read_rows(root) if row.cell == "d"] == ["waiting"]
    standard, step_by_step = rows[0], rows[-1]
    assert (standard.teacher, standard.rationale_weight, standard.wrong_rationales) == (None, None, 0.0)
    assert (step_by_step.wrong_rationales, step_by_step.missing_rationales, step_by_step.variant) == (
        0.25,
        0.0,
        "asdiv",
    )
    assert step_by_step.teacher_accuracy == {"test": {"rows": 240, "right": 180}}
    assert (step_by_step.teacher, step_by_step.rationale_weight) == ("llm", 0.25)
    assert (step_by_step.test_accuracy, step_by_step.selected_step, step_by_step.num_train_examples) == (0.75, 4, 480)
    # 6 steps x 3 rows x (10 x 0.9 + 20 x 0.8) tokens.
    assert step_by_step.tokens == 6 * 3 * 25
    assert (step_by_step.device, step_by_step.num_devices, step_by_step.code_version) == ("cpu", 1, "0")
    assert (rows[1].error, rows[1].test_accuracy) == ("No memory.", None)
    assert pathlib.Path(step_by_step.folder) == root / "runs" / "a"


def test_what_a_run_says_of_its_teacher_is_not_said_of_another(tmp_path, cell_record, finish_cell):
    record = cell_record("a1", "standard", teacher="errs_18")
    told = {"training": {}, "teacher": {"test": {"rows": 10, "right": 8}}}
    finish_cell(tmp_path, record, [{"id": "test/0", "correct": True}], told)
    summary = tmp_path / "runs" / "a1" / "summary.json"
    summary.write_text(json.dumps(json.loads(summary.read_text()) | {"config": record["config"]}))
    # Standard training is one cell for both: it learns from neither.
    for teacher, expected in (("errs_18", told["teacher"]), ("errs_50", {})):
        row = results.read_row(cell_record("a1", "standard", teacher=teacher), tmp_path / "runs" / "a1")
        assert (row.status, row.teacher_accuracy) == ("finished", expected)


def test_recipes_that_share_a_folder_share_its_database(root):
    rows = results.read_rows(root)
    assert [row.cell for row in rows[:2]] == ["b", "c"]
    both = results.and_others(rows[:2], root)
    assert both[:2] == rows[:2]
    assert sorted(row.cell for row in both[2:]) == ["a", "d", "e"]
    assert results.and_others([], root / "nowhere") == []


def test_database_answers_sql_and_is_made_anew(root):
    path = root / "results.sqlite"
    results.write_database(results.read_rows(root), path)
    names, found = results.query(path, "SELECT method, avg(test_accuracy) AS mean FROM runs GROUP BY method")
    assert names == ["method", "mean"]
    assert found == [("standard", 0.5), ("step_by_step", 0.75)]
    assert results.query(path, "SELECT json_extract(config, '$.data.name') FROM runs LIMIT 1")[1] == [("bestiary",)]
    results.write_database(results.read_rows(root)[:1], path)
    assert results.query(path, "SELECT count(*) FROM runs")[1] == [(1,)]
    for sql, reason in (("SELECT absent FROM runs", "no such column"), ("DELETE FROM runs", "readonly")):
        with pytest.raises(ValueError, match=reason):
            results.query(path, sql)
    assert [file.name for file in root.iterdir() if file.is_file()] == ["results.sqlite"]


def test_csv_holds_every_field(root):
    rows = results.read_rows(root)
    read = list(csv.DictReader(io.StringIO(results.to_csv(rows))))
    assert [line["cell"] for line in read] == [row.cell for row in rows]
    assert json.loads(read[0]["config"]) == rows[0].config
    assert (read[-1]["test_accuracy"], read[1]["error"], read[1]["tokens"]) == ("0.75", "No memory.", "")


def test_a_folder_without_runs_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no runs of a sweep"):
        results.read_rows(tmp_path)
