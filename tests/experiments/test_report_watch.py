"""`dsbs report --watch` beside a sweep: on files as a sweep's workers leave them, and beside a real one."""

import json
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

from dsbs_jax.experiments import results
from dsbs_jax.experiments.report_watch import watch
from dsbs_jax.files import write_whole

ANSWERS = [{"id": f"test/{i}", "input": "?", "label": "a", "prediction": "a", "correct": i < 2} for i in range(4)]


def until(true, process: subprocess.Popen, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def tiles(page: pathlib.Path) -> str:
    """How many runs are finished, as the page says; empty where there is no page."""
    found = re.search(r"<b>([^<]*)</b><span>runs finished", page.read_text()) if page.exists() else None
    return found[1] if found else ""


RELOADS = "setTimeout(() => location.reload(), 200)"


@pytest.fixture
def watching(environment, tmp_path):
    """A process that watches `tmp_path / "sweep"`, which is not there yet."""
    command = [sys.executable, "-m", "dsbs_jax", "report", str(tmp_path / "sweep"), "--watch", "--every", "0.2"]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stderr.readline() == f"Waiting for the first result in {tmp_path / 'sweep'}.\n"
        yield process
        process.kill()


@pytest.fixture
def records(cell_record):
    return [cell_record("a", "standard"), cell_record("b", "step_by_step")]


def test_it_waits_writes_again_and_ends_with_the_last_cell(watching, records, finish_cell, tmp_path):
    root, page = tmp_path / "sweep", tmp_path / "sweep" / "report" / "report.html"
    root.mkdir()
    write_whole(root / results.PLAN, json.dumps({"cells": records}))
    time.sleep(0.5)
    assert not page.exists()
    finish_cell(root, records[0], ANSWERS, {})
    until(lambda: tiles(page) == "1 of 2", watching)
    # The other cell has not begun, and is known all the same. Figures for print can wait.
    assert "waiting" in page.read_text()
    assert all(RELOADS in path.read_text() for path in (page, page.with_name("examples.html")))
    assert not list((page.parent / "figures").iterdir())
    (root / "runs" / "b").mkdir()
    write_whole(root / "runs" / "b" / results.ERROR, json.dumps({"error": "Out of memory."}))
    told, said = watching.communicate(timeout=60)
    assert (watching.returncode, told) == (0, f"{page}\n")
    assert said.splitlines()[-1] == f"{page}: 1 of 2 cells finished, 1 failed."
    assert "Out of memory." in page.read_text()
    assert not any("reload()" in path.read_text() for path in (page, page.with_name("examples.html")))
    assert (page.parent / "figures" / "01-cqa-fraction.svg").exists()


def test_ctrl_c_leaves_a_page_that_rests(watching, records, finish_cell, tmp_path):
    root, page = tmp_path / "sweep", tmp_path / "sweep" / "report" / "report.html"
    finish_cell(root, records[0], ANSWERS, {})
    write_whole(root / results.PLAN, json.dumps({"cells": records}))
    until(lambda: tiles(page) == "1 of 2", watching)
    assert (
        "The sweep goes on: this page is written again as runs end, and loads itself anew every 0.2 s."
        in page.read_text()
    )
    watching.send_signal(signal.SIGINT)
    watching.communicate(timeout=60)
    assert watching.returncode == 130
    assert "reload()" not in page.read_text()
    assert "The sweep goes on" not in page.read_text()


def test_a_search_is_over_when_it_needs_no_other_cell(cell_record, finish_cell, tmp_path):
    """All data do not beat the teacher, so that half of them need not be tried."""
    records = [cell_record(f"{fraction}", "step_by_step", fraction=fraction) for fraction in (0.5, 1.0)]
    write_whole(tmp_path / results.PLAN, json.dumps({"search": "beat_teacher", "cells": records}))
    finish_cell(tmp_path, records[1], ANSWERS, {"teacher": {"validation": {"rows": 10, "right": 9}}})
    page = watch(tmp_path, None, 0.1)
    text = page.read_text()
    assert tiles(page) == "1 of 1"
    assert "no model beats it" in text
    assert "waiting" not in text


@pytest.mark.parametrize(
    ("words", "sentence"), [(("--watch", "--every", "0"), "--every is 0"), (("--every", "5"), "give --watch with it")]
)
def test_mistakes_end_in_one_sentence(words, sentence, tmp_path, capsys):
    from dsbs_jax import cli

    assert cli.main(["report", str(tmp_path), *words]) == 1
    assert sentence in capsys.readouterr().err


@pytest.mark.slow
def test_beside_a_sweep(watching, dsbs, tmp_path):
    axes = ("--gin.SweepConfig.fractions=(1.0,)", "--gin.SweepConfig.seeds=(0,)")
    process = dsbs("sweep", "recipes/smoke", "--run", "--output", tmp_path / "sweep", *axes, timeout=500)
    assert process.returncode == 0, process.stderr
    _, said = watching.communicate(timeout=120)
    assert watching.returncode == 0
    # Every cell was expected from the first result on.
    assert re.findall(r"(\d+) of (\d+) cells finished", said) == [("1", "2"), ("2", "2")]
