"""The page to look at examples: input, gold label, the teacher's rationale, what each student answered.

All text comes as JSON that the page's script puts in as text, never as HTML. What is shown is in the address behind `#`
(`show`, `group`, `pair`, `q`), so that a view can be sent to somebody.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from dsbs_jax.experiments.analysis import Panel, Student, all_students
from dsbs_jax.experiments.report_data import read_predictions
from dsbs_jax.experiments.students import pairs, teacher_name, titles
from dsbs_jax.teacher.page import document, escaped

# A page of more would be slow to open; which rows are left out is said.
_MOST_ROWS = 2_000
_STYLE = """
form { display: flex; flex-wrap: wrap; gap: 10px; margin: 0 0 12px; }
label { color: var(--soft); font-size: 13px; max-width: 100%; }
label[hidden] { display: none; }
select, input { display: block; font: inherit; color: var(--text); background: var(--card); max-width: 100%;
  border: 1px solid var(--line); border-radius: 8px; padding: 5px 8px; }
button { font: inherit; padding: 6px 14px; }
.right::before { content: "\\2713  "; color: var(--good); } .wrong::before { content: "\\2717  "; color: var(--bad); }
"""
_SCRIPT = """
'use strict';
const groups = JSON.parse(document.getElementById('groups').textContent);
const form = document.querySelector('form'), list = document.getElementById('list');
const PAGE = 50;
let shown = PAGE, filled;
function add(parent, name, text, kind) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (kind) made.className = kind;
  parent.append(made);
  return made;
}
function right(answers) { return answers.filter(a => a[2]).length * 2 > answers.length; }
function fits(row, group) {
  const show = form.show.value, [a, b] = group.pairs[form.pair.value] || [];
  if (show === 'gained' && !(a in row.answers && b in row.answers && right(row.answers[a]) && !right(row.answers[b])))
    return false;
  if (show === 'lost' && !(a in row.answers && b in row.answers && !right(row.answers[a]) && right(row.answers[b])))
    return false;
  if (show === 'wrong' && Object.values(row.answers).some(right)) return false;
  const words = form.q.value.toLowerCase();
  const said = Object.values(row.answers).flat().map(answer => answer[1]);
  return !words || [row.id, row.input, row.label, ...Object.values(row.teachers).flat(), ...said]
    .some(text => String(text).toLowerCase().includes(words));
}
// Each group has its own students to compare.
function fill() {
  const group = groups[form.group.value] || groups[0];
  if (group === filled) return;
  filled = group;
  form.pair.replaceChildren();
  for (const [at, [a, b]] of group.pairs.entries())
    add(form.pair, 'option', group.titles[a] + ' against ' + group.titles[b]).value = at;
  form.pair.parentNode.hidden = group.pairs.length < 2;
}
function draw() {
  fill();
  const group = filled;
  const rows = group.rows.filter(row => fits(row, group));
  list.replaceChildren();
  document.getElementById('count').textContent = rows.length + ' of ' + group.rows.length + ' examples. ' + group.note;
  for (const row of rows.slice(0, shown)) {
    const fields = add(add(list, 'div', undefined, 'sample'), 'dl');
    const say = (name, text, kind) => { add(fields, 'dt', name); add(fields, 'dd', text, kind); };
    say('row', row.id);
    say('input', row.input);
    say('gold label', row.label);
    for (const [teacher, [rationale, label]] of Object.entries(row.teachers)) {
      const of = Object.keys(row.teachers).length > 1 ? 'teacher ' + teacher : 'teacher';
      if (rationale) say(of + "'s rationale", rationale);
      if (label) say(of + "'s label", label);
    }
    for (const [method, answers] of Object.entries(row.answers)) {
      const texts = Object.create(null);
      for (const [seed, text, correct] of answers) (texts[text] = texts[text] || [correct, []])[1].push(seed);
      for (const [text, [correct, seeds]] of Object.entries(texts))
        say(group.titles[method], text + '  (seed ' + seeds.join(', ') + ')', correct ? 'right' : 'wrong');
    }
  }
  document.getElementById('more').hidden = rows.length <= shown;
}
function changed() {
  shown = PAGE;
  history.replaceState(null, '', '#' + new URLSearchParams(new FormData(form)));
  draw();
}
function open() {
  const wanted = new URLSearchParams(location.hash.slice(1));
  for (const name of ['group', 'pair', 'show', 'q']) {
    if (wanted.has(name)) form[name].value = wanted.get(name);
    if (name === 'group') fill();
  }
  draw();
}
for (const [at, group] of groups.entries()) add(form.group, 'option', group.title).value = at;
form.addEventListener('input', changed);
form.addEventListener('submit', event => event.preventDefault());
document.getElementById('more').addEventListener('click', () => { shown += PAGE; draw(); });
addEventListener('hashchange', open);
open();
"""
_BODY = """<form>
<label>runs<select name="group"></select></label>
<label>compare<select name="pair"></select></label>
<label>show<select name="show"><option value="all">all</option>
<option value="gained">step-by-step right, standard wrong</option>
<option value="lost">step-by-step wrong, standard right</option>
<option value="wrong">wrong by every method</option></select></label>
<label>search<input name="q" type="search"></label>
</form>
<p class="soft" id="count"></p>
<noscript><p>This page shows its examples with a script, which is switched off.</p></noscript>
<div id="list"></div>
<button id="more" type="button" hidden>more</button>"""


def examples_html(name: str, panels: Sequence[Panel], reload: float | None = None) -> str | None:
    """The page, headed with the sweep's name: each panel's answers at its largest fraction.

    None where no predictions lie beside the runs. With `reload`, it loads itself anew after so many seconds.
    """
    named = titles(all_students(panels))
    groups = [group for panel in panels if (group := _group(panel, named))]
    if not groups:
        return None
    # In a script element nothing but "</" and "<!--" could be read as HTML: no "<" is left.
    packed = json.dumps(groups).replace("<", "\\u003c")
    data = f'<script type="application/json" id="groups">{packed}</script>\n'
    title = f"Examples: {name}"
    return document(title, f"<h1>{escaped(title)}</h1>\n{_BODY}", _STYLE, _SCRIPT, data, reload)


def _group(panel: Panel, named: Mapping[Student, str]) -> dict[str, Any] | None:
    fraction = panel.fractions[-1]
    rows: dict[str, dict[str, Any]] = {}
    left_out: set[str] = set()
    students = [student for student in panel.students if (student, fraction) in panel.cells]
    for at, student in enumerate(students):
        for run in panel.cells[student, fraction].rows:
            for answer in (read_predictions(run) if run.status == "finished" else None) or ():
                if answer["id"] not in rows and len(rows) == _MOST_ROWS:
                    left_out.add(answer["id"])
                    continue
                row = rows.setdefault(answer["id"], {**_asked(answer), "teachers": {}, "answers": {}})
                said = [run.seed, answer.get("prediction", ""), bool(answer["correct"])]
                row["answers"].setdefault(str(at), []).append(said)
                if run.teacher:
                    told = [answer.get("rationale") or "", answer.get("teacher_label") or ""]
                    row["teachers"].setdefault(teacher_name(run.teacher), told)
    if not rows:
        return None
    note = "Right means right in more than half of the seeds."
    if left_out:
        note += f" The first {_MOST_ROWS:,} rows of the test split; {len(left_out):,} more are not on this page."
    return {
        "title": f"{panel.dataset}, {panel.model}, {100 * fraction:g} % of the data",
        "note": note,
        "titles": {str(at): named[student] for at, student in enumerate(students)},
        "pairs": [[str(students.index(a)), str(students.index(b))] for a, b in pairs(students) if _shown(a, b)],
        "rows": list(rows.values()),
    }


def _asked(answer: Mapping[str, Any]) -> dict[str, Any]:
    return {name: answer.get(name, "") for name in ("id", "input", "label")}


def _shown(a: Student, b: Student) -> bool:
    """Whether the page compares the two: step-by-step and standard training."""
    return (a.method, b.method) == ("step_by_step", "standard")
