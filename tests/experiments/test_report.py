"""The report, from rows as a sweep leaves them: its numbers, what it says of gaps, and that model output stays text."""

import dataclasses
import html.parser
import json
import pathlib
import re
import xml.etree.ElementTree

import numpy as np
import pytest

from dsbs_jax.experiments import report_content as content
from dsbs_jax.experiments.analysis import all_students, analyse
from dsbs_jax.experiments.figures import make_figures
from dsbs_jax.experiments.published import published
from dsbs_jax.experiments.report import contents, write_report
from dsbs_jax.experiments.report_data import report_rows
from dsbs_jax.experiments.report_paper import data_table, single_task_tables, teacher_table
from dsbs_jax.experiments.report_tables import Cell, Table, to_latex, to_markdown
from dsbs_jax.experiments.results import Row
from dsbs_jax.experiments.students import Student, pairs, titles

EXAMPLES = 40
METHODS = ("standard", "step_by_step")
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
    monkeypatch.setattr("dsbs_jax.experiments.report.report_rows", lambda root: (rows, []))
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
    said = " ".join(page.texts)
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
    folder = tmp_path / "report"
    (folder / "figures").mkdir(parents=True)
    for name in ("07-of-an-earlier-report.svg", "mine.svg"):
        (folder / "figures" / name).touch()
    write(tmp_path, rows, monkeypatch)
    drawn = {path.name for path in (folder / "figures").iterdir()}
    assert drawn == {"01-cqa-fraction.svg", "01-cqa-fraction.png", "mine.svg"}
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


def test_recipes_that_share_a_folder_are_named_by_it(rows, tmp_path, monkeypatch):
    shared = [dataclasses.replace(rows[0], sweep="figure5"), *rows[1:]]
    write(tmp_path, shared, monkeypatch)
    assert (tmp_path / "report" / "tables.md").read_text().startswith(f"# Report on {tmp_path.name}\n")


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
    # All cells have one share of the data, so that lambda is what varies; standard training has none.
    line, flat = figures["01-cqa-lambda"].lines
    assert [point.mean.mean for point in line.points] == [22 / EXAMPLES, 25 / EXAMPLES]
    assert [figures["01-cqa-lambda"].named(point.x) for point in line.points] == ["0.5", "1"]
    assert (flat.title, flat.flat, flat.points[0].mean.mean) == ("standard finetuning", True, 30 / EXAMPLES)
    assert not line.flat
    line = figures["cqa-size"].lines[0]
    assert [point.mean.mean for point in line.points] == [20 / EXAMPLES, 30 / EXAMPLES]
    assert [text for _, text in sorted(figures["cqa-size"].ticks)] == ["large", "base"]
    assert figures["cqa-size"].logarithmic
    # The paper's values stand at its size, whatever the sizes here.
    assert not any(name.endswith("-fraction") for name in figures)
    marks = [level for level in figures["cqa-size"].levels if level.x is not None]
    assert (marks[0].y, marks[0].x) == (0.6219, 220e6)
    assert all(160e6 < mark.x <= 220e6 for mark in marks)
    named = titles(analyse(lambdas)[0].students)
    assert sorted(named.values()) == ["step-by-step, λ = 0.5", "step-by-step, λ = 1"]


def test_what_varies_is_drawn_at_the_fraction_at_which_it_does(tmp_path):
    # As where a sweep over lambda at half of the data shares its folder with one over the data.
    rows = [make_row(tmp_path, "standard", fraction, 0, first(20)) for fraction in (0.5, 1.0)]
    rows += [
        make_row(tmp_path / str(weight), "step_by_step", fraction, 0, first(count), rationale_weight=weight)
        for weight, fraction, count in ((1.0, 0.5, 22), (3.0, 0.5, 25), (1.0, 1.0, 30))
    ]
    figures = {figure.name: figure for figure in make_figures(analyse(rows))}
    assert sorted(figures) == ["01-cqa-fraction", "01-cqa-lambda"]
    assert "50 % of the data" in figures["01-cqa-lambda"].title
    # Where there are lines over the data, lambda's lone points are not among them.
    titled = {line.title: len(line.points) for line in figures["01-cqa-fraction"].lines}
    assert titled == {"standard finetuning": 2, "step-by-step, λ = 1": 2}
    assert [point.mean.mean for point in figures["01-cqa-lambda"].lines[0].points] == [22 / EXAMPLES, 25 / EXAMPLES]


def told(train, test=None):
    """How often a teacher is right, as a run's summary says it."""
    splits = {"train": train, "test": test}
    return {split: {"rows": EXAMPLES, "right": right} for split, right in splits.items() if right is not None}


def test_teachers_are_lines_and_rows_that_tell_split_and_count(tmp_path):
    # PaLM answered the test split, the labelled folder's teacher did not.
    teachers = {"llm": told(30, 28), "labels/expert": told(32)}
    rows = [
        make_row(tmp_path / str(at), "step_by_step", 1.0, 0, first(30), teacher=teacher, teacher_accuracy=accuracy)
        for at, (teacher, accuracy) in enumerate(teachers.items())
    ]
    (panel,) = analyse(rows)
    palm, expert = (level for level in make_figures([panel])[0].levels if level.x is None)
    assert (expert.title, expert.y) == ("few-shot CoT, expert (40 rows of train)", 0.8)
    assert (palm.title, palm.y) == ("few-shot CoT, llm (40 rows of test)", 0.7)
    assert expert.slot != palm.slot
    lines = [[cell.text for cell in row] for row in content.accuracy_table(panel, titles(panel.students)).rows]
    assert lines[2:] == [
        ["few-shot CoT (the teacher itself, llm; 40 rows of test)", "70.00", "none"],
        ["few-shot CoT (the teacher itself, expert; 40 rows of train)", "80.00", "none"],
    ]


def test_a_baseline_is_told_the_same_where_there_is_one(tmp_path):
    def student(method, label_source="gold", teacher=None, variant="", wrong=0.0):
        return Student(method, label_source, teacher, None, variant, wrong, 0.0)

    plain, filtered = student("standard"), student("standard", teacher="a", variant="gold_filtered")
    distilled = [student("standard", "teacher", teacher) for teacher in "ab"]
    single = [student("single_task", teacher="a", wrong=share) for share in (0.0, 0.5)]
    baselines = [plain, filtered, *distilled, *single]
    for challenger, expected in (
        (student("step_by_step", teacher="a"), [plain, single[0]]),
        (student("step_by_step", teacher="a", wrong=0.5), [plain, single[1]]),
        (student("step_by_step", teacher="a", wrong=0.25), [plain, single[0]]),
        (student("step_by_step", teacher="a", variant="gold_filtered"), [filtered, single[0]]),
        (student("step_by_step", teacher="c", variant="asdiv"), [plain]),
        (student("step_by_step", "teacher", "b"), [distilled[1]]),
        (student("step_by_step", "teacher", "c"), []),
    ):
        found = [b for a, b in pairs([*baselines, challenger]) if a == challenger]
        assert found == expected, challenger
    assert (single[0], plain) in pairs(baselines)
    # Which teacher is said of those that have one.
    assert list(titles([plain, filtered]).values()) == ["standard finetuning", "standard finetuning, a, gold filtered"]


def test_gain_goes_against_the_quality_of_rationales(tmp_path):
    """Three teachers and three shares of exchanged rationales, two seeds; standard training is the same for all."""
    rows = [make_row(tmp_path, "standard", 1.0, seed, first(10 + seed)) for seed in (0, 1)]
    taught = {"a": (20, 12), "b": (30, 16), "c": (36, 24)}
    for teacher, (right, count) in taught.items():
        rows += [
            make_row(
                *(tmp_path / teacher, "step_by_step", 1.0, seed, first(count)),
                teacher=teacher,
                teacher_accuracy=told(right, right),
            )
            for seed in (0, 1)
        ]
    for wrong, count in ((0.5, 12), (1.0, 8)):
        rows += [
            make_row(
                *(tmp_path / f"c{wrong}", "step_by_step", 1.0, seed, first(count)),
                teacher="c",
                wrong_rationales=wrong,
                teacher_accuracy=told(36, 36),
            )
            for seed in (0, 1)
        ]
    (panel,) = analyse(rows)
    figures = {figure.name: figure for figure in make_figures([panel])}
    assert sorted(figures) == ["01-cqa-gain-noise", "01-cqa-gain-teachers", "01-cqa-wrong"]
    (line,) = (line for line in figures["01-cqa-gain-teachers"].lines if len(line.points) == 3)
    assert [point.x for point in line.points] == [50, 75, 90]
    # 12, 16 and 24 of 40 against 10 and 11: the paired difference over seeds, half a row as its error.
    assert [40 * point.mean.mean for point in line.points] == pytest.approx([1.5, 5.5, 13.5])
    assert 40 * line.points[0].mean.error == pytest.approx(0.5)
    (line,) = figures["01-cqa-gain-noise"].lines
    assert [point.x for point in line.points] == [0, 50, 100]
    assert [40 * point.mean.mean for point in line.points] == pytest.approx([-2.5, 1.5, 13.5])
    assert "exchanged" in line.title
    wrong = figures["01-cqa-wrong"]
    assert [(line.title, line.flat, len(line.points)) for line in wrong.lines] == [
        *(("step-by-step, a", False, 1), ("step-by-step, b", False, 1), ("step-by-step, c", False, 3)),
        ("standard finetuning", True, 1),
    ]

    named = titles(panel.students)
    table = teacher_table(panel, named)
    lines = {row[0].text: [cell.text for cell in row[1:5]] for row in table.rows}
    assert lines["step-by-step, a"] == ["train 50.00 / test 50.00", "30.00 ± 0.00", "26.25 ± 1.25", "+3.75 ± 2.77"]
    assert "step-by-step, c, 50 % of rationales wrong" in lines
    assert teacher_table(analyse(rows[:4])[0], named) is None


def test_one_task_or_two_over_datasets(tmp_path):
    rows = [
        make_row(tmp_path / str(at), method, 1.0, seed, first(count + seed), dataset=dataset)
        for at, (dataset, counts) in enumerate({"cqa": (10, 8, 14), "bestiary": (20, 22, 30)}.items())
        for method, count in zip(("standard", "single_task", "step_by_step"), counts, strict=True)
        for seed in (0, 1)
    ]
    panels = analyse(rows)
    named = titles(all_students(panels))
    (table,) = single_task_tables(panels, named)
    assert table.header == ("method", "cqa", "bestiary")
    lines = {row[0].text: [cell.text for cell in row[1:]] for row in table.rows}
    assert lines["standard training"] == ["26.25 ± 1.25", "51.25 ± 1.25"]
    assert lines["single task, [rationale, label]"] == ["21.25 ± 1.25", "56.25 ± 1.25"]
    assert [text.split(" ")[0] for text in lines["multi-task minus single task"]] == ["+15.00", "+20.00"]
    assert lines["paper, multi-task"] == ["63.29", "none"]
    assert single_task_tables(analyse([row for row in rows if row.method != "single_task"]), named) == []


def test_the_data_and_what_became_of_it(rows):
    (panel,) = analyse(rows)
    named = titles(panel.students)
    assert data_table(rows, named) is None
    for row in rows[:-1]:
        unread = 29 if row.method == "step_by_step" else 0
        data = {"splits": {"train": 8766, "validation": 975, "test": 1221}, "rows": {"train": {"no_marker": unread}}}
        data["rows"] = data["rows"] if unread else {"train": {}}
        pathlib.Path(row.folder, "summary.json").write_text(json.dumps({"data": data}))
    lines = [[cell.text for cell in row] for row in data_table(rows, named).rows]
    assert lines == [
        ["cqa (standard finetuning)", "8,766", "975", "1,221", "nothing"],
        ["cqa (step-by-step)", "8,766", "975", "1,221", "train: 29 no_marker"],
    ]


def test_runs_that_differ_only_in_what_is_not_shown_are_not_mixed(tmp_path, cell_record, finish_cell):
    for cell, steps, right in (("a1", 6, False), ("b1", 600, True)):
        record = cell_record(cell, "standard")
        record["config"]["steps"] = steps
        finish_cell(tmp_path, record, [{"id": "test/0", "correct": right}], {"training": {}})
    with pytest.raises(ValueError, match=r"runs/a1 and .*runs/b1 differ only .* steps \(6 there, 600 here\)"):
        report_rows(tmp_path)
    # The sweep that was last started there is what somebody wants to see.
    (tmp_path / "sweep.json").write_text(json.dumps({"search": None, "cells": [record]}))
    rows, left_out = report_rows(tmp_path)
    assert [(row.cell, row.test_accuracy) for row in rows] == [("b1", 1.0)]
    assert left_out == ["1 run of another configuration left out (steps (6 there, 600 here))."]
    assert f"- {left_out[0]}" in write_report(tmp_path).with_name("tables.md").read_text()


def test_only_the_cells_of_the_search_are_searched(tmp_path, cell_record, finish_cell):
    told = {"training": {}, "teacher": {"validation": {"rows": 10, "right": 4}}}
    records = [cell_record(f"{method}-{seed}", method, seed=seed) for method in METHODS for seed in (0, 1)]
    for record in records:
        finish_cell(tmp_path, record, [{"id": "test/0", "correct": True}], told)
    plan = {"search": "beat_teacher", "cells": [record for record in records if record["cell"] == "standard-0"]}
    (tmp_path / "sweep.json").write_text(json.dumps(plan))
    rows, (one,), _ = contents(tmp_path)
    assert len(rows) == 4
    assert (one.student.method, [len(group.rows) for group in one.found]) == ("standard", [1])


def test_the_papers_numbers_stand_beside_what_the_paper_did(tmp_path):
    changes = ({}, {"rationale_weight": 10.0}, {"wrong_rationales": 0.5}, {"variant": "gold_filtered"})
    made = [
        dataclasses.replace(
            make_row(tmp_path, "step_by_step", 1.0, 0, first(8), model=f"m{number}", **change), model="base"
        )
        for number, change in enumerate(changes)
    ]
    (panel,) = analyse(made)
    table = content.accuracy_table(panel, titles(panel.students))
    assert [row[-1].text for row in table.rows].count("none") == 3


def test_a_folder_that_is_no_sweep_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing to report"):
        report_rows(tmp_path)


def test_a_sweep_that_has_not_begun_is_a_report_of_gaps(tmp_path):
    task = {"name": "label", "prefix": "", "input": "{input}", "target": "{label}", "weight": 1.0}
    config = {"data": {"name": "svamp", "teacher": "llm"}, "fraction": 0.5, "seed": 0}
    config["method"] = {"name": "standard", "label_source": "gold", "tasks": [task]}
    (tmp_path / "runs" / "a1").mkdir(parents=True)
    record = {"sweep": "fig4", "cell": "a1", "model": "base", "variant": "", "config": config}
    (tmp_path / "runs" / "a1" / "cell.json").write_text(json.dumps(record))
    path = write_report(tmp_path)
    assert path == tmp_path / "report" / "report.html"
    said = " ".join(Page(path.read_text()).texts)
    for expected in ("Report on fig4", "0 of 1", "Nothing can be compared yet", "missing", "waiting"):
        assert expected in said, expected
    assert not (tmp_path / "report" / "examples.html").exists()
