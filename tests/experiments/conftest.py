"""Folders as a sweep leaves them, without training."""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from dsbs_jax import cli, schema
from dsbs_jax.experiments import results
from dsbs_jax.files import write_whole


@pytest.fixture
def refused(capsys) -> Callable[..., None]:
    """Asserts that `dsbs sweep WORDS` ends with status 1 and a single line, in which the sentence stands."""

    def check(*words: str, sentence: str) -> None:
        assert cli.main(["sweep", *words]) == 1
        told = capsys.readouterr().err.splitlines()
        assert len(told) == 1
        assert sentence in told[0]

    return check


def _record(cell: str, method: str, *, dataset="cqa", fraction=1.0, seed=0, teacher="llm", label_source="gold") -> dict:
    tasks = [dataclasses.asdict(task) for task in schema.make_method(method).tasks]
    noise = {"wrong": 0.0, "missing": 0.0, "seed": 0}
    data = {"name": dataset, "teacher": teacher, "teacher_filter": None, "rationale_noise": noise}
    config = {"data": data, "method": {"name": method, "label_source": label_source, "tasks": tasks}}
    config |= {"fraction": fraction, "seed": seed}
    return {"sweep": "figure4", "cell": cell, "model": "base", "variant": "", "config": config}


def _finish(root: pathlib.Path, record: dict, answers: Sequence[dict[str, Any]], data: dict[str, Any]) -> None:
    folder = root / "runs" / record["cell"]
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / results.CELL, json.dumps(record))
    accuracy = sum(answer["correct"] for answer in answers) / len(answers)
    told = {"validation_accuracy": 0.5, "test_accuracy": accuracy, "test_accuracy_last": accuracy}
    told |= {"selected_step": 4, "steps": 6, "seconds": 1.5}
    (folder / "predictions_test.jsonl").write_text("".join(json.dumps(answer) + "\n" for answer in answers))
    write_whole(folder / "summary.json", json.dumps({"result": told, "data": data, "made": {}}))


@pytest.fixture(scope="session")
def cell_record() -> Callable[..., dict[str, Any]]:
    """What a sweep says of a cell before it runs: `cell_record("a1", "standard", fraction=0.5)`."""
    return _record


@pytest.fixture(scope="session")
def finish_cell() -> Callable[..., None]:
    """Makes a sweep's cell a finished one: `finish_cell(root, record, answers to the test split, data)`."""
    return _finish
