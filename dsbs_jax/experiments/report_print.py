"""A figure for print, as SVG and PNG, by matplotlib. Colours, markers and dashes are those of the page, too."""

from __future__ import annotations

import math
import pathlib
from typing import Any

from dsbs_jax.experiments.figures import Figure

# Okabe and Ito's colours, which colour-blind readers tell apart (yellow is too faint for lines), for light pages and
# for dark ones; markers and dashes say the same without any colour. Their numbers differ, so that pairs repeat late.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#000000")
DARK_COLOURS = ("#56B4E9", "#EE7733", "#1CBF93", "#CC79A7", "#E69F00", "#FFFFFF")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ((), (7, 3), (2, 2), (8, 3, 2, 3), (12, 3))
# Of teachers, whose lines have no markers: dots apart, dots and dashes, dots in pairs. Their colours are taken from the
# end, where students seldom come.
LEVEL_DASHES = ((2, 4), (14, 4, 2, 4), (2, 3, 2, 9), (2, 9))

# Characters of a name in the legend that leave room for a second column.
_TWO_COLUMNS = 44


def level_colour(slot: int) -> int:
    """The number of a teacher's colour."""
    return len(COLOURS) - 1 - slot % len(COLOURS)


def draw(figure: Figure, folder: pathlib.Path) -> list[pathlib.Path]:
    """Writes the figure as SVG and PNG, in percent or points, with bars of one standard error; returns the files."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    # The same figure gives the same file: no date, no random names inside. Text stays text.
    with plt.rc_context({"svg.hashsalt": figure.name, "svg.fonttype": "none", "text.parse_math": False}):
        named = [*(line.title for line in figure.lines), *(level.title for level in figure.levels)]
        columns = 2 if max(map(len, named), default=0) <= _TWO_COLUMNS else 1
        height = 4.2 + 0.2 * math.ceil(len(named) / columns)
        drawn, axes = plt.subplots(figsize=(6.4, height), layout="constrained")
        for line in figure.lines:
            errors = [0.0 if math.isnan(point.mean.error) else 100 * point.mean.error for point in line.points]
            means = [100 * point.mean.mean for point in line.points]
            look: dict[str, Any] = {"color": COLOURS[line.slot % len(COLOURS)], "label": line.title}
            look["linestyle"] = (0, DASHES[line.slot % len(DASHES)] or None)
            if line.flat:
                axes.axhline(means[0], **look)
                axes.axhspan(means[0] - errors[0], means[0] + errors[0], color=look["color"], alpha=0.15, linewidth=0)
            else:
                marker = MARKERS[line.slot % len(MARKERS)]
                axes.errorbar([point.x for point in line.points], means, yerr=errors, capsize=3, marker=marker, **look)
        for level in figure.levels:
            if level.x is None:
                dashes, colour = LEVEL_DASHES[level.slot % len(LEVEL_DASHES)], COLOURS[level_colour(level.slot)]
                style: Any = (0, tuple(length / 2 for length in dashes))
                axes.axhline(100 * level.y, color=colour, linewidth=2, linestyle=style, label=level.title)
            else:
                look = {"color": "#444444", "markersize": 8, "markerfacecolor": "none", "label": level.title}
                axes.plot(level.x, 100 * level.y, "xd^*s"[level.slot % 5], **look)
        if figure.gain:
            axes.axhline(0, color="#444444", linewidth=1)
        if figure.logarithmic:
            axes.set_xscale("log")
        axes.set(xlabel=figure.x_label, ylabel=figure.y_label, title=figure.title)
        axes.set_xticks([x for x, _ in figure.ticks], [text for _, text in figure.ticks], minor=False)
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        if named:
            drawn.legend(loc="outside lower center", ncols=columns, fontsize="small")
        files = [folder / f"{figure.name}.{suffix}" for suffix in ("svg", "png")]
        drawn.savefig(files[0], metadata={"Date": None})
        drawn.savefig(files[1], dpi=150)
        plt.close(drawn)
    return files
