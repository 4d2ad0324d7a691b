"""Tables that read the same as HTML, Markdown and LaTeX."""

from __future__ import annotations

import dataclasses
import re
from typing import NamedTuple

from dsbs_jax.teacher.page import escaped

_SHORT = 24
_LATEX = {c: "\\" + c for c in "&%$#_{}"} | {
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\\": r"\textbackslash{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
    "≤": r"$\leq$",
    "λ": r"$\lambda$",
    "…": r"\ldots{}",
}


class Cell(NamedTuple):
    """One cell; `detail` says how its number was made, where there is room for it (HTML: on hover)."""

    text: str
    detail: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Table:
    """A caption, a row of names, rows of cells (the first names the row), and how the numbers were made."""

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str


def to_html(table: Table) -> str:
    """The table, escaped, with the details as titles."""
    head = "".join(f"<th>{escaped(name)}</th>" for name in table.header)
    body = "".join("<tr>" + "".join(map(_html_cell, row)) + "</tr>" for row in table.rows)
    return (
        f'<h3>{escaped(table.caption)}</h3><div class="wide"><table><thead><tr>{head}</tr></thead>'
        f'<tbody>{body}</tbody></table></div><p class="soft">{escaped(table.note)}</p>'
    )


def to_markdown(table: Table) -> str:
    """The table as GitHub's Markdown."""
    lines = ["| " + " | ".join(map(_markdown, cells)) + " |" for cells in _texts(table)]
    lines.insert(1, "|---" * len(table.header) + "|")
    return f"**{_markdown(table.caption)}**\n\n" + "\n".join(lines) + f"\n\n{_markdown(table.note)}\n"


def to_latex(table: Table) -> str:
    """The table as a LaTeX `table`; it needs no package."""
    head, *rows = [" & ".join(map(_latex, cells)) + r" \\" for cells in _texts(table)]
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_latex(table.caption)}. {_latex(table.note)}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(table.header) - 1)}}}",
            *(r"\hline", head, r"\hline", *rows, r"\hline"),
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _texts(table: Table) -> list[list[str]]:
    return [list(table.header), *([cell.text for cell in row] for row in table.rows)]


def _html_cell(cell: Cell) -> str:
    title = f' title="{escaped(cell.detail)}" tabindex="0"' if cell.detail else ""
    # What is short stays on one line: a number with its error, a share.
    short = ' class="short"' if len(cell.text) <= _SHORT else ""
    return f"<td{short}{title}>{escaped(cell.text)}</td>"


def _markdown(text: str) -> str:
    return re.sub(r"([\\`*_|<>\[\]])", r"\\\1", " ".join(text.split()))


def _latex(text: str) -> str:
    return "".join(_LATEX.get(c, c) for c in " ".join(text.split()))
