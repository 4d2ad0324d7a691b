"""A figure as SVG inside the page: as matplotlib draws it, with values on hover and lines that can be switched off."""

from __future__ import annotations

import math
from collections.abc import Callable

from dsbs_jax.experiments.figures import Figure, Level, Line, Point
from dsbs_jax.experiments.report_print import COLOURS, DASHES, LEVEL_DASHES, MARKERS, level_colour
from dsbs_jax.teacher.page import escaped

_WIDTH, _HEIGHT = 720, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 702, 14, 348
_MARKER_PATHS = {
    "o": "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0 -10 0z",
    "s": "M-4.5 -4.5h9v9h-9z",
    "^": "M0 -6L5.5 4.5H-5.5z",
    "D": "M0 -6L6 0L0 6L-6 0z",
    "v": "M0 6L5.5 -4.5H-5.5z",
    "P": "M-2 -6h4v4h4v4h-4v4h-4v-4h-4v-4h4z",
    "X": "M-6 -4L-4 -6L0 -2L4 -6L6 -4L2 0L6 4L4 6L0 2L-4 6L-6 4L-2 0z",
}
# Of the numbers to compare with: open, so that none is taken for one that was measured here.
_LEVEL_PATHS = (
    "M-6 -6L6 6M-6 6L6 -6",
    "M0 -7L5 0L0 7L-5 0z",
    "M0 -6L6 5H-6z",
    "M0 -7L2 -2H7L3 1L4.5 6.5L0 3L-4.5 6.5L-3 1L-7 -2H-2z",
    "M-5 -5h10v10h-10z",
)
Place = Callable[[float], float]


def figure_svg(figure: Figure) -> str:
    """The figure as one `<figure>` element: legend buttons, axes, lines with bars of one standard error."""
    x, y, percents = _scales(figure)
    drawn = [_axes(figure, x, y, percents)]
    drawn += [_level(at, level, x, y) for at, level in enumerate(figure.levels)]
    drawn += [_line(line, x, y, figure) for line in figure.lines]
    buttons = [_button(f"s{line.slot}", line.title, _swatch(line)) for line in figure.lines]
    buttons += [_button(f"l{at}", level.title, _level_swatch(level)) for at, level in enumerate(figure.levels)]
    return (
        f'<figure class="plot" id="{escaped(figure.name)}"><figcaption>{escaped(figure.title)}</figcaption>'
        f'<div class="wide"><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escaped(_spoken(figure))}">'
        f"{''.join(drawn)}</svg></div>"
        f'<div class="legend">{"".join(buttons)}</div></figure>'
    )


def _spoken(figure: Figure) -> str:
    lines = (
        f"{line.title}: " + ", ".join(_said(figure, line, point).partition("\n")[0] for point in line.points)
        for line in figure.lines
    )
    return f"{figure.y_label} against {figure.x_label}; {figure.title}. " + "; ".join(lines)


def _scales(figure: Figure) -> tuple[Place, Place, list[float]]:
    """Where x and percent lie, and the percents that are written at the axis."""
    seen = [x for x, _ in figure.ticks] + [level.x for level in figure.levels if level.x is not None]
    forward = math.log10 if figure.logarithmic else float
    low, high = (forward(limit) for limit in (min(seen), max(seen)))
    margin = 0.06 * (high - low) or 0.5
    low, high = low - margin, high + margin
    values = [100 * level.y for level in figure.levels] + [0.0] * figure.gain
    for line in figure.lines:
        for point in line.points:
            error = 0.0 if math.isnan(point.mean.error) else point.mean.error
            values += [100 * (point.mean.mean - error), 100 * (point.mean.mean + error)]
    bottom, top = min(values, default=0.0), max(values, default=100.0)
    step = next((s for s in (0.5, 1, 2, 5, 10, 20) if (top - bottom) / s <= 6), 25)
    first, last = math.floor(bottom / step) * step, math.ceil(top / step) * step
    last = max(last, first + step)

    def x(value: float) -> float:
        return _LEFT + (_RIGHT - _LEFT) * (forward(value) - low) / (high - low)

    def y(percent: float) -> float:
        return _BOTTOM - (_BOTTOM - _TOP) * (percent - first) / (last - first)

    return x, y, [first + step * at for at in range(round((last - first) / step) + 1)]


def _axes(figure: Figure, x: Place, y: Place, percents: list[float]) -> str:
    parts = []
    for percent in percents:
        at = y(percent)
        kind = "axis" if figure.gain and percent == 0 else "grid"
        parts.append(f'<line class="{kind}" x1="{_LEFT}" x2="{_RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{percent:g}</text>')
    for value, text in figure.ticks:
        at = x(value)
        parts.append(f'<line class="axis" x1="{at:.1f}" x2="{at:.1f}" y1="{_BOTTOM}" y2="{_BOTTOM + 5}"/>')
        parts.append(f'<text x="{at:.1f}" y="{_BOTTOM + 20}" text-anchor="middle">{escaped(text)}</text>')
    parts.append(f'<path class="axis" d="M{_LEFT} {_TOP}V{_BOTTOM}H{_RIGHT}"/>')
    middle = (_LEFT + _RIGHT) / 2
    parts.append(f'<text class="label" x="{middle}" y="{_BOTTOM + 42}" text-anchor="middle">{figure.x_label}</text>')
    parts.append(
        f'<text class="label" transform="translate(14 {(_TOP + _BOTTOM) / 2}) rotate(-90)" text-anchor="middle">'
        f"{figure.y_label}</text>"
    )
    return "".join(parts)


def _line(line: Line, x: Place, y: Place, figure: Figure) -> str:
    if line.flat:
        return _flat(line, y, figure)
    path = " ".join(f"{x(point.x):.1f},{y(100 * point.mean.mean):.1f}" for point in line.points)
    parts = [f'<polyline points="{path}" stroke-dasharray="{_dash(line.slot)}"/>']
    for point in line.points:
        at, mean = x(point.x), 100 * point.mean.mean
        if not math.isnan(point.mean.error):
            low, high = y(mean - 100 * point.mean.error), y(mean + 100 * point.mean.error)
            parts.append(
                f'<path class="error" d="M{at:.1f} {low:.1f}V{high:.1f}'
                f'M{at - 4:.1f} {low:.1f}h8M{at - 4:.1f} {high:.1f}h8"/>'
            )
        said = escaped(f"{line.title}\n{_said(figure, line, point)}")
        parts.append(
            f'<path class="point" d="{_marker(line.slot)}" transform="translate({at:.1f} {y(mean):.1f})" '
            f'tabindex="0" data-said="{said}"><title>{said}</title></path>'
        )
    return f'<g class="series slot{line.slot % len(COLOURS)}" data-series="s{line.slot}">{"".join(parts)}</g>'


def _flat(line: Line, y: Place, figure: Figure) -> str:
    (point,) = line.points
    at, error = y(100 * point.mean.mean), 0.0 if math.isnan(point.mean.error) else 100 * point.mean.error
    top, bottom = (y(100 * point.mean.mean + one) for one in (error, -error))
    said = escaped(f"{line.title}\n{_said(figure, line, point)}")
    return (
        f'<g class="series slot{line.slot % len(COLOURS)}" data-series="s{line.slot}">'
        f'<path class="band" d="M{_LEFT} {top:.1f}H{_RIGHT}V{bottom:.1f}H{_LEFT}z"/>'
        f'<line class="flat" x1="{_LEFT}" x2="{_RIGHT}" y1="{at:.1f}" y2="{at:.1f}" tabindex="0" '
        f'stroke-dasharray="{_dash(line.slot)}" data-said="{said}"><title>{said}</title></line></g>'
    )


def _said(figure: Figure, line: Line, point: Point) -> str:
    error = "" if math.isnan(point.mean.error) else f" ± {100 * point.mean.error:.2f}"
    seeds = ", ".join(f"seed {seed}: {100 * value:.2f}" for seed, value in point.runs.items())
    where = "" if line.flat else f" at {figure.named(point.x)}"
    return f"{100 * point.mean.mean:.2f}{error} {figure.unit}{where}\n{seeds}"


def _level(at: int, level: Level, x: Place, y: Place) -> str:
    said, high = escaped(f"{level.title}\n{100 * level.y:.2f} %"), y(100 * level.y)
    if level.x is None:
        shape = (
            f'<line class="teacher" x1="{_LEFT}" x2="{_RIGHT}" y1="{high:.1f}" y2="{high:.1f}" tabindex="0" '
            f'stroke-dasharray="{_level_dash(level)}" data-said="{said}"><title>{said}</title></line>'
        )
    else:
        shape = (
            f'<path class="mark" d="{_LEVEL_PATHS[level.slot % len(_LEVEL_PATHS)]}" tabindex="0" '
            f'transform="translate({x(level.x):.1f} {high:.1f})" data-said="{said}"><title>{said}</title></path>'
        )
    return f'<g class="level slot{level_colour(level.slot)}" data-series="l{at}">{shape}</g>'


def _button(series: str, title: str, swatch: str) -> str:
    return f'<button type="button" aria-pressed="true" data-series="{series}">{swatch}{escaped(title)}</button>'


def _swatch(line: Line) -> str:
    marker = "" if line.flat else f'<path class="point" d="{_marker(line.slot)}"/>'
    return (
        f'<svg class="swatch series slot{line.slot % len(COLOURS)}" viewBox="-20 -8 40 16" aria-hidden="true">'
        f'<polyline points="-20,0 20,0" stroke-dasharray="{_dash(line.slot)}"/>{marker}</svg>'
    )


def _level_swatch(level: Level) -> str:
    shape = (
        f'<line class="teacher" x1="-20" x2="20" y1="0" y2="0" stroke-dasharray="{_level_dash(level)}"/>'
        if level.x is None
        else f'<path class="mark" d="{_LEVEL_PATHS[level.slot % len(_LEVEL_PATHS)]}"/>'
    )
    return f'<svg class="swatch slot{level_colour(level.slot)}" viewBox="-20 -8 40 16" aria-hidden="true">{shape}</svg>'


def _marker(slot: int) -> str:
    return _MARKER_PATHS[MARKERS[slot % len(MARKERS)]]


def _dash(slot: int) -> str:
    return " ".join(map(str, DASHES[slot % len(DASHES)])) or "none"


def _level_dash(level: Level) -> str:
    return " ".join(map(str, LEVEL_DASHES[level.slot % len(LEVEL_DASHES)]))
