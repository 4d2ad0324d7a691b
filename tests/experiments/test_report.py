"""The report, from rows as a sweep leaves them: its numbers, what it says of gaps, and that model output stays text."""

import dataclasses
import html.parser
import json
import math
import re
import shutil
import subprocess
import xml.etree.ElementTree

import numpy as np
import pytest

from dsbs_jax.experiments import report_content as content
from dsbs_jax.experiments.analysis import analyse, titles
from dsbs_jax.experiments.figures import make_figures
from dsbs_jax.experiments.published import published
from dsbs_jax.experiments.report import write_report
from dsbs_jax.experiments.report_data import report_rows
from dsbs_jax.experiments.report_tables import Cell, Table, to_latex, to_markdown
from dsbs_jax.experiments.results import Row

EXAMPLES = 40
EVIL = "</script><script>console.error('ran')</script><img src=x onerror=alert(1)> <!-- & | \\ \u2028 \"'"


def make_row(tmp_path, method, fraction, seed, correct=None, dataset="cqa", **changes):
    """A row, and the answers in its folder where `correct` says which were right."""
    folder = tmp_path / "runs" / f"{dataset}-{changes.get('model', 'base')}-{method}-{fraction}-{seed}"
    if correct is not None:
        folder.mkdir(parents=True)
        answers = [
            {"id": f"test/{i}", "input": EVIL if i == 0 else f"question {i}", "label": "yes"}
            | {"prediction": "yes" if right else "no", "correct": bool(right), "output": "yes" if right else "no"}
            for i, right in enumerate(correct)
        ]
        (folder / "predictions_test.jsonl").write_text("".join(json.dumps(answer) + "\n" for answer in answers))
    accuracy = None if correct is None else float(np.mean(correct))
    values = dict.fromkeys((field.name for field in dataclasses.fields(Row)), None) | {
        "sweep": "figure4",
        "cell": folder.name,
        "dataset": dataset,
        "method": method,
        "label_source": "gold",
        "status": "waiting" if correct is None else "finished",
        "fraction": fraction,
        "seed": seed,
        "config": {},
        "model": "base",
        "folder": str(folder),
        "test_accuracy": accuracy,
        "seconds": 1800.0,
        "num_devices": 2,
        "rationale_weight": 1.0 if method == "step_by_step" else None,
        "tokens": 1000,
        "wrong_rationales": 0.0,
        "missing_rationales": 0.0,
        "variant": "",
        "teacher_accuracy": {},
    }
    return Row(**(values | changes))


def first(count):
    return [i < count for i in range(EXAMPLES)]


@pytest.fixture
def rows(tmp_path):
    """Two methods, two shares, two seeds; one cell failed and one is missing at half of the data."""
    made = [
        make_row(tmp_path, method, fraction, seed, first(count))
        for method, fraction, seed, count in (
            *(("standard", 0.5, 0, 10), ("standard", 1.0, 0, 20), ("standard", 1.0, 1, 24)),
            *(("step_by_step", 0.5, 0, 16), ("step_by_step", 0.5, 1, 16)),
            *(("step_by_step", 1.0, 0, 32), ("step_by_step", 1.0, 1, 36)),
        )
    ]
    return [*made, make_row(tmp_path, "standard", 0.5, 1, status="failed", error=f"Out of memory {EVIL}")]


def write(tmp_path, rows, monkeypatch):
    monkeypatch.setattr("dsbs_jax.experiments.report.report_rows", lambda root: rows)
    return write_report(tmp_path, tmp_path / "report")


class Page(html.parser.HTMLParser):
    """Elements with their attributes, and text outside scripts and styles; refuses what is opened and never closed."""

    VOID = frozenset(("meta", "input", "br", "img", "link"))

    def __init__(self, text):
        super().__init__()
        self.elements, self.texts, self.open = [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.texts.append(data)


def test_tables_hold_the_numbers_of_the_rows(rows):
    (panel,) = analyse(rows)
    named = titles(panel.students)
    table = content.accuracy_table(panel, named)
    assert table.header == ("method", "50 %", "100 %", "paper")
    standard, step_by_step = ([cell.text for cell in row] for row in table.rows)
    # Means of (50, 60) and (80, 90) percent, half their distance as the standard error; one seed has none.
    assert standard == ["standard finetuning", "25.00 (1 seed) (1 of 2 seeds)", "55.00 ± 5.00", "62.19"]
    assert step_by_step == ["step-by-step", "40.00 ± 0.00", "85.00 ± 5.00", "63.25 / 63.29"]
    assert "seed 1: failed" in table.rows[0][1].detail

    half, full = panel.comparisons
    assert (half.comparison.seeds, full.comparison.seeds) == ((0,), (0, 1))
    # Six examples differ at half of the data, all one way: 2 / 2^6; at all of it 16 do, 12 in either run.
    assert half.comparison.test.p_value == pytest.approx(2 / 2**6)
    assert full.adjusted == pytest.approx(2 * full.comparison.test.p_value)
    assert half.adjusted == half.comparison.test.p_value
    lines = [[cell.text for cell in row] for row in content.comparison_table(panel, named).rows]
    assert lines[1][2].startswith("+30.00 ± ")
    assert lines[0][3] == "0.031 (0.031)"
    # From 40 % at half of the data to 85 % at all of it: 55 % is a third of the way.
    saved = panel.saved[0].saved
    assert saved.fraction == pytest.approx(0.5 + 0.5 * (0.55 - 0.4) / (0.85 - 0.4), abs=1e-6)
    line = [cell.text for cell in content.saved_table(panel, named).rows[0]]
    assert line[1:3] == ["55.00", "66.7 %"]
    assert "reached with 66.7 % of the data by step-by-step" in content.findings(panel, named)[1]
    cost = content.cost_table(rows).rows[0]
    # Seven finished runs of half an hour on two devices.
    assert [cell.text for cell in cost][1:4] == ["7", "7", "7,000"]


def test_page_parses_says_what_is_missing_and_refers_to_nothing_outside(rows, tmp_path, monkeypatch):
    text = write(tmp_path, rows, monkeypatch).read_text()
    page = Page(text)
    said = " ".join(page.texts).replace("\xa0", " ")
    for expected in ("55.00 ± 5.00", "85.00 ± 5.00", "7 of 8", "66.7 % of the data", "Out of memory"):
        assert expected in said, expected
    drawn = [values["data-said"] for tag, values in page.elements if tag == "path" and "data-said" in values]
    assert "step-by-step\n85.00 ± 5.00 % at 100\nseed 0: 80.00, seed 1: 90.00" in drawn
    assert sum("paper, T5-base" in mark for mark in drawn) == len(published("cqa"))
    # Markup from an error message stays text: one script of the page's own, no picture.
    assert [tag for tag, _ in page.elements].count("script") == 1
    assert "img" not in [tag for tag, _ in page.elements]
    for path in ("report.html", "examples.html"):
        content_ = (tmp_path / "report" / path).read_text()
        assert not re.search(r"https?://|@import|url\(", content_.replace("http://www.w3.org/", ""))
        for tag, values in Page(content_).elements:
            assert "src" not in values, tag
            assert not any(name.startswith("on") for name in values), tag
            assert tag != "link"


def test_files_for_papers(rows, tmp_path, monkeypatch):
    write(tmp_path, rows, monkeypatch)
    folder = tmp_path / "report"
    assert (
        "| standard finetuning | 25.00 (1 seed) (1 of 2 seeds) | 55.00 ± 5.00 | 62.19 |"
        in (folder / "tables.md").read_text()
    )
    assert (
        r"standard finetuning & 25.00 (1 seed) (1 of 2 seeds) & 55.00 $\pm$ 5.00 & 62.19 \\"
        in (folder / "tables.tex").read_text()
    )
    drawing = xml.etree.ElementTree.parse(folder / "figures" / "01-cqa-fraction.svg").getroot()
    assert {"test accuracy, %", "training data used, %"} <= {text.strip() for text in drawing.itertext()}
    assert (folder / "figures" / "01-cqa-fraction.png").read_bytes().startswith(b"\x89PNG")


def test_tables_escape_what_their_languages_would_read():
    table = Table("a_b", ("x", "y"), ((Cell("50 % | <b>"), Cell("a\\b_{c}")),), "note")
    assert "| 50 % \\| \\<b\\> | a\\\\b\\_{c} |" in to_markdown(table)
    assert r"50 \% | \textless{}b\textgreater{} & a\textbackslash{}b\_\{c\} \\" in to_latex(table)


def test_sizes_and_lambdas_have_figures_of_their_own(tmp_path):
    shape = {"d_kv": 64, "d_ff": 64, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 2}
    # The larger one comes first, and stands on the right.
    sizes = [
        make_row(tmp_path, "standard", 1.0, 0, first(count), model=model, config={"model": shape | {"d_model": width}})
        for model, width, count in (("base", 96, 30), ("large", 64, 20))
    ]
    lambdas = [
        make_row(tmp_path / str(weight), "step_by_step", 1.0, 0, first(count), rationale_weight=weight)
        for weight, count in ((0.5, 22), (1.0, 25))
    ]
    figures = {figure.name: figure for figure in make_figures(analyse([*sizes, *lambdas]))}
    (line,) = figures["01-cqa-lambda"].lines
    assert [(point.x, point.mean.mean) for point in line.points] == [(0.5, 22 / EXAMPLES), (1.0, 25 / EXAMPLES)]
    line = figures["cqa-size"].lines[0]
    assert [point.mean.mean for point in line.points] == [20 / EXAMPLES, 30 / EXAMPLES]
    assert [text for _, text in sorted(figures["cqa-size"].ticks)] == ["large", "base"]
    assert figures["cqa-size"].logarithmic
    named = titles(analyse(lambdas)[0].students)
    assert sorted(named.values()) == ["step-by-step, λ = 0.5", "step-by-step, λ = 1"]


def test_the_teachers_accuracy_is_a_line_where_its_card_tells_it(tmp_path):
    (tmp_path / "expert").mkdir()
    (tmp_path / "expert" / "card.json").write_text(json.dumps({"train": {"accuracy": 0.8, "judged": 960}}))
    rows = [make_row(tmp_path, "step_by_step", 1.0, 0, first(30), teacher=str(tmp_path / "expert"))]
    levels = make_figures(analyse(rows))[0].levels
    assert ("teacher expert (960 rows of train)", 0.8, None) in levels


def test_the_demos_results_are_rows(tmp_path):
    result = {"dataset": "bestiary", "method": "standard", "label_source": "gold", "fraction": 1.0, "seed": 3}
    result |= {"validation_accuracy": 0.5, "test_accuracy": 0.25, "test_accuracy_last": 0.25}
    result |= {"selected_step": 10, "steps": 20, "seconds": 3.5}
    (tmp_path / "results.jsonl").write_text(json.dumps(result) + "\n")
    (tmp_path / "a-run").mkdir()
    (tmp_path / "a-run" / "summary.json").write_text(json.dumps({"result": result}))
    for root in (tmp_path, tmp_path / "results.jsonl"):
        (row,) = report_rows(root)
        assert (row.status, row.seed, row.test_accuracy, row.folder) == ("finished", 3, 0.25, str(tmp_path / "a-run"))
    (panel,) = analyse([row])
    assert math.isnan(panel.cells[panel.students[0], 1.0].mean.error)
    (tmp_path / "results.jsonl").write_text('{"dataset": 1}\n')
    with pytest.raises(ValueError, match=r"results\.jsonl, line 1"):
        report_rows(tmp_path)
    with pytest.raises(FileNotFoundError, match="nothing to report"):
        report_rows(tmp_path / "a-run")


def test_a_sweep_that_has_not_begun_is_a_report_of_gaps(tmp_path):
    task = {"name": "label", "prefix": "", "input": "{input}", "target": "{label}", "weight": 1.0}
    config = {"data": {"name": "svamp", "teacher": "llm"}, "fraction": 0.5, "seed": 0}
    config["method"] = {"name": "standard", "label_source": "gold", "tasks": [task]}
    (tmp_path / "runs" / "a1").mkdir(parents=True)
    record = {"sweep": "fig4", "cell": "a1", "model": "base", "variant": "", "config": config}
    (tmp_path / "runs" / "a1" / "cell.json").write_text(json.dumps(record))
    path = write_report(tmp_path)
    assert path == tmp_path / "report" / "report.html"
    said = " ".join(Page(path.read_text()).texts).replace("\xa0", " ")
    for expected in ("Report on fig4", "0 of 1", "Nothing can be compared yet", "missing", "waiting"):
        assert expected in said, expected
    assert not (tmp_path / "report" / "examples.html").exists()


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-headless-shell", "google-chrome"))), None)


def rendered(path, view=""):
    """The page as a browser makes it, and what its console says."""
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
    process = subprocess.run([*command, f"file://{path}{view}"], capture_output=True, text=True, timeout=120)
    assert process.returncode == 0, process.stderr
    return process.stdout, [line for line in process.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: install it to see the pages in a browser")
def test_in_a_browser(rows, tmp_path, monkeypatch):
    path = write(tmp_path, rows, monkeypatch)
    text, console = rendered(path)
    assert console == []
    page = Page(text)
    labels = [values.get("class") for tag, values in page.elements if tag == "text"]
    assert labels.count("label") == 2
    # The script was let run: it takes away the browser's own titles of the points; the page's stays.
    assert [tag for tag, _ in page.elements].count("title") == 1

    # A copy without the policy, which would not let the test's script run.
    acted = tmp_path / "acted.html"
    act = "document.querySelector('.legend button').click();"
    act += "document.querySelector('.slot1 .point').dispatchEvent(new MouseEvent('mouseenter'));"
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", path.read_text())
    acted.write_text(text.replace("</body>", f"<script>{act}</script></body>"))
    text, console = rendered(acted)
    assert console == []
    page = Page(text)
    switched = {
        values.get("class") for tag, values in page.elements if tag == "g" and values.get("data-series") == "s0"
    }
    assert switched == {"series slot0 off"}
    assert re.search(r'<div id="said"[^>]*>step-by-step\s40.00 ± 0.00 % at 50', text)

    examples = path.parent / "examples.html"
    shown = {}
    for view in ("", "#show=gained", "#show=gained&q=question+25", "#show=lost"):
        text, console = rendered(examples, view)
        assert console == []
        page = Page(text)
        shown[view] = sum(values.get("class") == "sample" for _, values in page.elements)
        assert "img" not in [tag for tag, _ in page.elements]
        assert (EVIL in page.texts) == (view == "")
    # More than half of two seeds is both: standard on the first 20 examples, step-by-step on the first 32.
    assert shown == {"": EXAMPLES, "#show=gained": 12, "#show=gained&q=question+25": 1, "#show=lost": 0}
