"""The report as one HTML page: findings, figures, tables, what is missing, what it cost."""

from __future__ import annotations

from collections.abc import Sequence

from dsbs_jax.experiments.figures import Figure
from dsbs_jax.experiments.report_print import COLOURS, DARK_COLOURS
from dsbs_jax.experiments.report_svg import figure_svg
from dsbs_jax.experiments.report_tables import Table, to_html
from dsbs_jax.experiments.results import Row
from dsbs_jax.teacher.page import document, escaped, section


def _palette(colours: Sequence[str]) -> str:
    return "".join(f"--slot{at}: {colour}; " for at, colour in enumerate(colours))


_SLOTS = "".join(f".slot{at} {{ --own: var(--slot{at}); }} " for at in range(len(COLOURS)))
_STYLE = f"""
:root {{ {_palette(COLOURS)} }}
@media (prefers-color-scheme: dark) {{ :root {{ {_palette(DARK_COLOURS)} }} }}
{_SLOTS}
.plot {{ margin: 18px 0; position: relative; }} figcaption {{ font-weight: 600; }}
.plot .axis {{ stroke: var(--soft); fill: none; }} .plot .label {{ fill: var(--text); font-size: 13px; }}
.series polyline, .series .error {{ fill: none; stroke: var(--own); stroke-width: 2; }}
.series .error {{ stroke-width: 1.5; }} .series .flat {{ stroke: var(--own); stroke-width: 2; }}
.series .band {{ fill: var(--own); opacity: .15; }}
.series .point {{ fill: var(--own); stroke: var(--card); stroke-width: 1; }}
.plot line.teacher {{ stroke: var(--own); stroke-width: 2.5; }}
.plot .mark {{ fill: none; stroke: var(--text); stroke-width: 1.6; }}
[data-said] {{ cursor: pointer; pointer-events: all; outline: none; }}
.point:hover, .point:focus {{ stroke: var(--text); stroke-width: 2.5; }}
.plot line[data-said]:hover, .plot line[data-said]:focus {{ stroke-width: 4.5; }}
.legend {{ display: flex; flex-wrap: wrap; gap: 6px; }}
.legend button {{ display: inline-flex; align-items: center; gap: 8px; padding: 4px 10px; border-radius: 8px;
  border: 1px solid var(--line); background: none; color: var(--text); font: inherit; font-size: 13px; cursor: pointer;
  text-align: left; }}
.legend button[aria-pressed=false] {{ opacity: .4; }} .legend .swatch {{ width: 40px; flex: none; }}
.plot .off {{ display: none; }}
#said {{ position: fixed; z-index: 9; max-width: 80vw; padding: 6px 10px; border-radius: 8px; white-space: pre-line;
  background: var(--text); color: var(--page); font-size: 13px; pointer-events: none; }}
td.short {{ white-space: nowrap; }} td:first-child {{ min-width: 140px; }}
#said[hidden] {{ display: none; }} a {{ color: var(--accent); }}
@media (max-width: 600px) {{ .plot .wide svg {{ min-width: 440px; }} .plot text, .plot .label {{ font-size: 17px; }} }}
@media print {{ :root {{ {_palette(COLOURS)} --page: #fff; --card: #fff; --text: #000; --soft: #444; --line: #ccc; }}
  .legend button {{ border: 0; padding: 2px 8px 2px 0; }} #said {{ display: none; }} .plot {{ break-inside: avoid; }} }}
"""
_SCRIPT = """
'use strict';
const said = document.getElementById('said');
function show(mark) {
  const box = mark.getBoundingClientRect();
  said.textContent = mark.dataset.said;
  said.hidden = false;
  const left = Math.min(box.x + box.width / 2 + 12, innerWidth - said.offsetWidth - 8);
  said.style.left = Math.max(8, left) + 'px';
  said.style.top = Math.max(8, box.y - said.offsetHeight - 8) + 'px';
}
for (const mark of document.querySelectorAll('[data-said]')) {
  // The script's own words replace the browser's: both at once would hide each other.
  mark.querySelector('title')?.remove();
  for (const name of ['mouseenter', 'focus']) mark.addEventListener(name, () => show(mark));
  for (const name of ['mouseleave', 'blur']) mark.addEventListener(name, () => { said.hidden = true; });
}
// What is switched off stands in the address behind #, so that it stays when the page is loaded anew.
const buttons = [...document.querySelectorAll('.legend button')];
const isOn = button => button.getAttribute('aria-pressed') === 'true';
const key = button => button.closest('figure').id + '/' + button.textContent;
function turn(button, on) {
  button.setAttribute('aria-pressed', on);
  for (const drawn of button.closest('figure').querySelectorAll('g[data-series="' + button.dataset.series + '"]'))
    drawn.classList.toggle('off', !on);
}
const off = new URLSearchParams(location.hash.slice(1)).getAll('off');
for (const button of buttons) {
  if (off.includes(key(button))) turn(button, false);
  button.addEventListener('click', () => {
    turn(button, !isOn(button));
    history.replaceState(null, '', '#' + new URLSearchParams(buttons.filter(b => !isOn(b)).map(b => ['off', key(b)])));
  });
}
"""


def report_html(
    name: str,
    rows: Sequence[Row],
    findings: Sequence[str],
    figures: Sequence[Figure],
    sections: Sequence[tuple[str, Sequence[Table]]],
    examples: str | None,
    reload: float | None = None,
) -> str:
    """The page.

    Args:
      name: of the report.
      rows: all of them, finished or not.
      findings: sentences.
      figures: each stands in the section of its dataset.
      sections: headings, the datasets' names among them, and their tables.
      examples: address of the page of examples, relative to this one; None where there is none.
      reload: seconds after which the page loads itself anew; None: it does not.
    """
    listed = "<ul>" + "".join(f"<li>{escaped(said)}</li>" for said in findings) + "</ul>"
    parts = [f"<h1>{escaped(name)}</h1>", _tiles(rows)]
    if reload:
        watched = (
            f"The sweep goes on: this page is written again as runs end, and loads itself anew every {reload:g} s."
        )
        parts.append(f'<p class="soft">{watched}</p>')
    parts.append(section("What came out", listed if findings else '<p class="soft">Nothing can be compared yet.</p>'))
    if examples:
        parts.append(f'<p><a href="{escaped(examples)}">Look at examples</a>: what each student answered.</p>')
    for title, tables in sections:
        drawn = [figure_svg(figure) for figure in figures if figure.dataset == title]
        parts.append(section(title, *drawn, *map(to_html, tables)))
    data = '<div id="said" role="status" hidden></div>\n'
    return document(name, "\n".join(parts), _STYLE, _SCRIPT, data, reload)


def _tiles(rows: Sequence[Row]) -> str:
    count = {state: sum(row.status == state for row in rows) for state in ("finished", "failed", "running", "waiting")}
    tiles = [(f"{count['finished']} of {len(rows)}", "runs finished")]
    tiles += [(str(count[state]), state) for state in ("failed", "running", "waiting") if count[state]]
    hours = sum((row.seconds or 0.0) * (row.num_devices or 1) for row in rows if row.status == "finished") / 3600
    tiles.append((f"{hours:.3g}", "device hours"))
    if tokens := sum(row.tokens or 0 for row in rows if row.status == "finished"):
        tiles.append((f"{tokens:,}", "tokens trained on"))
    drawn = (f'<div class="tile"><b>{escaped(big)}</b><span>{small}</span></div>' for big, small in tiles)
    return f'<div class="tiles">{"".join(drawn)}</div>'
