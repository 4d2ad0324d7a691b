"""The quality report as one HTML page that needs nothing else: no script, no font, no picture from anywhere.

Everything a teacher or a dataset wrote is untrusted: it is escaped here, and the page's own policy forbids scripts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from dsbs_jax.teacher.page import document, escaped, section
from dsbs_jax.teacher.quality import QUANTILES, Quality, Sample
from dsbs_jax.teacher.report import MENDS, WIDEST_CONFUSION, confusion_columns, findings, percent

_BARS = 24


def as_html(quality: Quality, about: Mapping[str, str] | None = None, title: str = "Labels by a teacher") -> str:
    """The page.

    Args:
      quality: what was measured.
      about: what to say of the labelling at the top, e.g. dataset, model and prompt file.
      title: the page's heading.
    """
    facts = "".join(f"<span>{escaped(name)} <b>{escaped(value)}</b></span>" for name, value in (about or {}).items())
    parts = [
        f"<h1>{escaped(title)}</h1>",
        f'<div class="about">{facts}</div>' if facts else "",
        _tiles(quality),
        _findings(quality),
        _accuracy(quality),
        _agreement(quality),
        _failures(quality),
        _lengths(quality),
        _repetitions(quality),
        _samples("Rows to read", (("right", quality.right_samples), ("wrong", quality.wrong_samples))),
    ]
    return document(title, "\n".join(filter(None, parts)))


def _tiles(quality: Quality) -> str:
    repeated = quality.duplicates.exact + quality.duplicates.near
    tiles = [(f"{quality.rows:,}", "rows"), (percent(quality.read, quality.rows), "read in full: rationale and label")]
    if quality.judged:
        of = "all rows" if quality.judged == quality.rows else f"{quality.judged:,} rows with a gold label"
        tiles.append((percent(quality.correct, quality.judged), f"of {of} labelled right"))
    if quality.with_rationale:
        tiles.append((f"{quality.quantile(50):,}", "words in the median rationale"))
        tiles.append((percent(repeated, quality.duplicates.texts), "of the rationales repeat an earlier one"))
    if tokens := quality.prompt_tokens + quality.completion_tokens:
        tiles.append((_short(tokens), f"tokens, {_short(quality.completion_tokens)} of them in answers"))
    return (
        '<div class="tiles">'
        + "".join(f'<div class="tile"><b>{b}</b><span>{s}</span></div>' for b, s in tiles)
        + "</div>"
    )


def _short(number: int) -> str:
    for size, unit in ((10**9, " G"), (10**6, " M"), (10**4, " k")):
        if number >= size:
            return f"{number / (1000 if unit == ' k' else size):.3g}{unit}"
    return f"{number:,}"


def _findings(quality: Quality) -> str:
    found = findings(quality)
    if not found:
        return section("To look at", '<p class="soft">Nothing stands out.</p>')
    return section("To look at", "<ul>" + "".join(f"<li>{escaped(finding)}</li>" for finding in found) + "</ul>")


def _accuracy(quality: Quality) -> str:
    classes = quality.classes()
    if not classes:
        return ""
    bars = [
        (gold, [right / rows], f"{percent(right, rows)} of {rows:,}")
        for gold, (rows, right) in sorted(classes.items(), key=lambda item: item[1][1] / item[1][0])
    ]
    parts = [
        _bars(bars) if len(bars) <= _BARS else f"<details><summary>{len(bars)} labels</summary>{_bars(bars)}</details>"
    ]
    if len(classes) <= WIDEST_CONFUSION:
        parts += ["<h3>Gold label (rows) against teacher's label (columns)</h3>", _confusion(quality)]
    return section("Accuracy by gold label", *parts)


def _confusion(quality: Quality) -> str:
    columns = confusion_columns(quality)
    head = "<tr><th></th>" + "".join(f"<th>{escaped(column)}</th>" for column in columns) + "</tr>"
    rows = []
    for gold, row in quality.confusion.items():
        total = sum(row.values())
        cells = []
        for column in columns:
            count = row.get(column, 0)
            kind = ' class="diagonal"' if column == gold else ""
            cells.append(
                f'<td{kind} style="background: rgba(80, 140, 210, {0.55 * count / total:.2f})" '
                f'title="{percent(count, total)} of the row">{count:,}</td>'
            )
        rows.append(f"<tr><th>{escaped(gold)}</th>{''.join(cells)}</tr>")
    return f'<div class="wide"><table>{head}{"".join(rows)}</table></div>'


def _bars(bars: Iterable[tuple[str, Sequence[float], str]]) -> str:
    """Horizontal bars of (name, fractions of the width, what to say)."""
    rows = []
    for name, fractions, said in bars:
        drawn = "".join(f'<i style="width: {100 * fraction:.1f}%"></i>' for fraction in fractions if fraction)
        rows.append(f'<tr><td>{escaped(name)}</td><td class="bar"><div>{drawn}</div></td><td>{escaped(said)}</td></tr>')
    return f'<div class="wide"><table class="bars">{"".join(rows)}</table></div>'


def _agreement(quality: Quality) -> str:
    if not quality.agreement:
        return ""
    bars = []
    for level in quality.agreement:
        right = f", {percent(level.correct, level.judged)} of them right" if level.judged else ""
        said = f"{percent(level.rows, quality.rows)} of the rows{right}"
        parts = [part / quality.rows for part in (level.correct, level.rows - level.correct)]
        bars.append((f"{level.agreement} of {level.samples}", parts, said))
    note = '<p class="soft">Full colour: right by the gold label.</p>' if quality.judged else ""
    return section("How many of a row's samples agree on its label", _bars(bars), note)


def _failures(quality: Quality) -> str:
    if not quality.failures:
        return ""
    most = max(quality.failures.values())
    parts = [
        f"<p>{percent(sum(quality.failures.values()), quality.rows)} of the rows could not be read in full. Training "
        f"uses what was read, and never a blank.</p>",
        _bars((reason, [n / most], f"{n:,} rows") for reason, n in quality.failures.items()),
    ]
    for reason, samples in quality.failure_samples.items():
        mend = f" <span class='soft'>({escaped(MENDS[reason])})</span>" if reason in MENDS else ""
        parts.append(f"<details><summary><code>{escaped(reason)}</code>{mend}</summary>{_cards(samples)}</details>")
    return section("Answers that could not be read", *parts)


def _lengths(quality: Quality) -> str:
    if not quality.rationale_words:
        return ""
    # Beyond the 99th percentile a few strays would squeeze all others into one bar.
    shortest, end = quality.quantile(0), quality.quantile(99)
    width = max(1, -(-(end - shortest + 1) // _BARS))
    counts: dict[int, int] = {}
    for words, rows in quality.rationale_words.items():
        counts[(words - shortest) // width] = counts.get((words - shortest) // width, 0) + rows
    count = (end - shortest) // width + 1
    bars = [(shortest + i * width, counts.get(i, 0)) for i in range(count)]
    strays = sum(rows for index, rows in counts.items() if index >= count)
    low, fewest, quarter, middle, most, many, high = (f"{quality.quantile(p):,}" for p in QUANTILES)
    said = (
        f"Half of the rationales have {quarter} to {most} words and nine of ten {fewest} to {many}. The median is "
        f"{middle}, the shortest has {low} and the longest {high}."
    )
    more = f" {strays:,} longer ones are not drawn." if strays else ""
    return section(
        "Length of the rationales in words",
        _histogram(bars, width),
        f'<p class="soft">{said}{more}</p>',
    )


def _histogram(bars: Sequence[tuple[int, int]], width: int) -> str:
    """An SVG of (first value, count) bars, each `width` values wide."""
    across, height, foot = 960, 170, 22
    most = max(count for _, count in bars)
    step = across / len(bars)
    drawn = []
    for index, (first, count) in enumerate(bars):
        tall = (height - 18) * count / most
        name = f"{first}" if width == 1 else f"{first} to {first + width - 1}"
        drawn.append(
            f'<rect x="{index * step + 1:.1f}" y="{height - tall:.1f}" width="{max(1.0, step - 2):.1f}" '
            f'height="{tall:.1f}" rx="2"><title>{name} words: {count:,}</title></rect>'
        )
        if index % max(1, len(bars) // 12) == 0:
            drawn.append(
                f'<text x="{index * step + step / 2:.1f}" y="{height + 16}" text-anchor="middle">{first}</text>'
            )
    return (
        f'<svg viewBox="0 0 {across} {height + foot}" role="img" aria-label="Histogram of rationale lengths">'
        f'<text x="0" y="11">{most:,} rows</text><line x1="0" x2="{across}" y1="{height}" y2="{height}"/>'
        f"{''.join(drawn)}</svg>"
    )


def _repetitions(quality: Quality) -> str:
    repeated = quality.duplicates
    if not repeated.texts:
        return ""
    facts = [
        (repeated.exact, "are equal to an earlier one, but for case and punctuation"),
        (repeated.near, "nearly equal an earlier one (about 80 % of their three-word sequences are the same)"),
        (quality.leaked, "repeat one of the prompt's demonstrations"),
        (quality.copied, "say little more than their question"),
    ]
    listed = "".join(f"<li><b>{count:,}</b> ({percent(count, repeated.texts)}) {what}</li>" for count, what in facts)
    parts = [f"<p>Of {repeated.texts:,} rationales</p><ul>{listed}</ul>"]
    if repeated.groups:
        rows = "".join(
            f"<tr><td>{escaped(group.text)}</td><td>{group.rows:,}</td><td>{group.wordings:,}</td></tr>"
            for group in repeated.groups
        )
        parts.append(
            f'<details><summary>The most repeated ones</summary><div class="wide"><table><tr><th>rationale</th>'
            f"<th>rows</th><th>wordings</th></tr>{rows}</table></div></details>"
        )
    for name, samples in (
        ("repeat a demonstration", quality.leaked_samples),
        ("repeat a question", quality.copied_samples),
    ):
        if samples:
            parts.append(f"<details><summary>Some that {name}</summary>{_cards(samples)}</details>")
    return section("Repetition", *parts)


def _samples(title: str, groups: Sequence[tuple[str, list[Sample]]]) -> str:
    parts = [
        f"<details{' open' if name == 'right' else ''}><summary>Labelled {name}</summary>{_cards(samples)}</details>"
        for name, samples in groups
        if samples
    ]
    return section(title, *parts) if parts else ""


def _cards(samples: Iterable[Sample]) -> str:
    cards = []
    for sample in samples:
        fields: dict[str, str | None] = {
            "row": sample.id,
            "input": sample.input,
            "rationale": sample.rationale,
            "teacher's label": sample.teacher_label,
            "gold label": sample.label,
            "raw answer": sample.answer if sample.rationale is None or sample.teacher_label is None else None,
        }
        listed = "".join(
            f"<dt>{name}</dt><dd>{escaped(text)}</dd>" for name, text in fields.items() if text is not None
        )
        cards.append(f'<div class="sample"><dl>{listed}</dl></div>')
    return "".join(cards)
