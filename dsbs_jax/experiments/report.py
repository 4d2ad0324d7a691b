"""`dsbs report`: the files of a report on a sweep or on the demo."""

from __future__ import annotations

import os
import pathlib

from dsbs_jax.experiments import report_content as content
from dsbs_jax.experiments.analysis import all_students, analyse, titles
from dsbs_jax.experiments.figures import draw, make_figures
from dsbs_jax.experiments.report_data import report_rows
from dsbs_jax.experiments.report_examples import examples_html
from dsbs_jax.experiments.report_page import panel_tables, report_html
from dsbs_jax.experiments.report_tables import to_latex, to_markdown


def write_report(root: str | os.PathLike[str], output: str | os.PathLike[str] | None = None) -> pathlib.Path:
    """Writes `report.html`, `examples.html` (where predictions lie beside the runs), `tables.md`, `tables.tex` and
    `figures/*.svg|png`.

    Args:
      root: the folder of a sweep, or `results.jsonl` of `dsbs demo` or its folder.
      output: where to; None takes `report` in `root`'s folder.

    Returns:
      The path of `report.html`.

    Raises:
      FileNotFoundError: there is nothing to report in `root`.
      ValueError: a file of it is damaged; names file and line.
    """
    rows = report_rows(root)
    if not rows:
        raise ValueError(f"{root} holds no result yet: report when a run is finished.")
    base = pathlib.Path(root)
    folder = pathlib.Path(output) if output else (base.parent if base.is_file() else base) / "report"
    panels = analyse(rows)
    figures = make_figures(panels)
    name = f"Report on {rows[0].sweep}"
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    examples = examples_html(rows[0].sweep, panels)
    if examples is not None:
        (folder / "examples.html").write_text(examples, encoding="utf-8")
    for figure in figures:
        draw(figure, folder / "figures")
    unfinished = content.unfinished_table(rows)
    tables = [table for panel in panels for table in panel_tables(panel, panels)]
    tables += [*([unfinished] if unfinished else []), content.cost_table(rows)]
    named = titles(all_students(panels))
    said = [f"- {content.where(panel)}: {one}" for panel in panels for one in content.findings(panel, named)]
    text = "\n".join([f"# {name}", "", *said, "", *map(to_markdown, tables)])
    (folder / "tables.md").write_text(text, encoding="utf-8")
    (folder / "tables.tex").write_text("\n".join(map(to_latex, tables)), encoding="utf-8")
    page = report_html(name, rows, panels, figures, "examples.html" if examples is not None else None)
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path
