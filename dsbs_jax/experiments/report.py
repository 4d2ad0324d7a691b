"""`dsbs report`: the files of a report on a sweep."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

from dsbs_jax.experiments import report_content as content
from dsbs_jax.experiments import search
from dsbs_jax.experiments.analysis import Panel, all_students, analyse
from dsbs_jax.experiments.figures import make_figures
from dsbs_jax.experiments.report_data import report_rows
from dsbs_jax.experiments.report_examples import examples_html
from dsbs_jax.experiments.report_page import report_html
from dsbs_jax.experiments.report_paper import data_table, single_task_tables, teacher_table
from dsbs_jax.experiments.report_print import draw
from dsbs_jax.experiments.report_tables import Table, to_latex, to_markdown
from dsbs_jax.experiments.results import Row, is_search, planned_cells
from dsbs_jax.experiments.students import titles
from dsbs_jax.files import write_whole


def write_report(
    root: str | os.PathLike[str], output: str | os.PathLike[str] | None = None, reload: float | None = None
) -> pathlib.Path:
    """Writes `report.html`, `examples.html` (where predictions lie beside the runs), `tables.md`, `tables.tex` and
    `figures/*.svg|png`.

    Args:
      root: the folder of a sweep.
      output: where to; None takes `report` in `root`'s folder.
      reload: seconds after which the pages load themselves anew, for a report that is going to be written again; then
        no figures for print are drawn. None: they do not.

    Returns:
      The path of `report.html`.

    Raises:
      FileNotFoundError: there is nothing to report in `root`.
      ValueError: a file of it is damaged; names file and line.
    """
    rows, states, left_out = contents(root)
    if not rows:
        raise ValueError(f"{root} holds no result yet: report when a run is finished.")
    base = pathlib.Path(root)
    folder = pathlib.Path(output) if output else base / "report"
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    panels = analyse(rows)
    named = titles(all_students(panels))
    figures = make_figures(panels)
    if reload is None:
        # Of an earlier report, which may have had others.
        for path in (folder / "figures").glob("[0-9][0-9]-*.*"):
            path.unlink()
        for figure in figures:
            draw(figure, folder / "figures")
    sections = _sections(rows, panels, named)
    sweeps = {row.sweep for row in rows}
    # Recipes may share a folder.
    sweep = sweeps.pop() if len(sweeps) == 1 else base.resolve().name
    name = f"Report on {sweep}"
    examples = examples_html(sweep, panels, reload)
    if examples is not None:
        write_whole(folder / "examples.html", examples)
    tables = [table for _, tables in sections for table in tables]
    found = [f"{content.where(panel)}: {one}" for panel in panels for one in content.findings(panel, named)]
    found += [line.strip() for line in search.report(states).splitlines()] if states else []
    found += left_out
    text = "\n".join([f"# {name}", "", *(f"- {one}" for one in found), "", *map(to_markdown, tables)])
    write_whole(folder / "tables.md", text)
    write_whole(folder / "tables.tex", "\n".join(map(to_latex, tables)))
    path = folder / "report.html"
    link = "examples.html" if examples else None
    write_whole(path, report_html(name, rows, found, figures, sections, link, reload))
    return path


class Contents(NamedTuple):
    """What there is to report: rows, of a search without those that it does not need; searches; what is left out."""

    rows: list[Row]
    searches: list[search.Search]
    left_out: list[str]


def contents(root: str | os.PathLike[str]) -> Contents:
    """What a sweep's folder holds.

    Raises:
      FileNotFoundError, ValueError: as `write_report`.
    """
    rows, left_out = report_rows(root)
    # Other recipes that share the folder search for nothing.
    own = planned_cells(root)
    states = search.searches([row for row in rows if row.cell in own]) if is_search(root) else []
    skipped = search.skipped(states)
    return Contents([row for row in rows if row.status != "waiting" or row.cell not in skipped], states, left_out)


def _sections(rows: Sequence[Row], panels: Sequence[Panel], named: content.Titles) -> list[tuple[str, list[Table]]]:
    """The tables under their headings: those of each dataset, then those of all."""
    sections: dict[str, list[Table | None]] = {}
    for panel in panels:
        made = (content.accuracy_table, content.comparison_table, teacher_table, content.saved_table)
        sections.setdefault(panel.dataset, []).extend(make(panel, named) for make in made)
    of_all: dict[str, list[Table | None]] = {
        "One task or two": [*single_task_tables(panels, named)],
        "Data": [data_table(rows, named)],
        "Missing": [content.unfinished_table(rows, named)],
        "What it took": [content.cost_table(rows)],
    }
    found = [(title, [table for table in tables if table]) for title, tables in (*sections.items(), *of_all.items())]
    return [(title, tables) for title, tables in found if tables]
