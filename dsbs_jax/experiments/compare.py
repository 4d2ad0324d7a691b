"""Tables and plots over finished runs: accuracy with standard errors, and paired tests between methods."""

from __future__ import annotations

import collections
import json
import pathlib
from collections.abc import Sequence

import numpy as np

from dsbs_jax.metrics.significance import mean_and_standard_error, paired_test

TITLES = {
    ("standard", "gold"): "standard finetuning",
    ("standard", "teacher"): "standard distillation",
    ("step_by_step", "gold"): "step-by-step",
    ("step_by_step", "teacher"): "step-by-step (teacher labels)",
    ("single_task", "gold"): "single task",
    ("rationale_input", "gold"): "rationale as input",
}


def comparison_table(folders: Sequence[pathlib.Path], methods: Sequence[str]) -> str:
    """A Markdown table of test accuracy: a row per label source and fraction, a column per method, and the paired test
    of the last method against the first.

    Args:
      folders: finished runs' folders, with `summary.json` and `predictions_test.jsonl`.
      methods: column order.

    Raises:
      ValueError: the runs to be paired differ in seeds or test examples.
    """
    Cell = dict[int, tuple[float, np.ndarray, list[str]]]
    cells: dict[tuple[str, float, str], Cell] = collections.defaultdict(dict)
    for folder in folders:
        result = json.loads((folder / "summary.json").read_text())["result"]
        rows = [json.loads(line) for line in (folder / "predictions_test.jsonl").read_text().splitlines()]
        cell = cells[result["label_source"], result["fraction"], result["method"]]
        correct = np.array([row["correct"] for row in rows])
        cell[result["seed"]] = (result["test_accuracy"], correct, [row["id"] for row in rows])
    baseline, challenger = methods[0], methods[-1]
    lines = [
        "| labels | training data | "
        + " | ".join(f"{method}" for method in methods)
        + " | difference | p (examples) | p (seeds) |",
        "|---" * (len(methods) + 5) + "|",
    ]
    for source, fraction in sorted({(source, fraction) for source, fraction, _ in cells}):
        columns = []
        for method in methods:
            mean, error = mean_and_standard_error([run[0] for run in cells[source, fraction, method].values()])
            columns.append(f"{mean:.3f} ± {error:.3f}")
        test = paired_test(*_paired(cells[source, fraction, challenger], cells[source, fraction, baseline]))
        lines.append(
            f"| {source} | {fraction:.0%} | "
            + " | ".join(columns)
            + f" | {test.difference:+.3f} ± {test.standard_error:.3f} "
            f"| {test.p_value:.2g} | {test.seed_p_value:.2g} |"
        )
    lines.append("")
    lines.append(
        "Test accuracy, against gold labels, at the step selected on validation, mean ± standard error over seeds. "
        f"Difference: {challenger} minus {baseline}, ± standard error over test examples. p (examples): exact "
        "two-sided sign-flip test on the per-example differences averaged over seeds. p (seeds): paired t-test over "
        "seeds."
    )
    return "\n".join(lines)


def _paired(a: dict, b: dict) -> tuple[np.ndarray, np.ndarray]:
    """bool [seeds, examples] of both, after checking that seeds and examples are the same."""
    ids = [run[2] for run in (*a.values(), *b.values())]
    if a.keys() != b.keys() or any(other != ids[0] for other in ids):
        raise ValueError(
            f"The runs cannot be paired: seeds {sorted(a)} and {sorted(b)}, or their test examples differ."
        )
    return np.stack([a[seed][1] for seed in sorted(a)]), np.stack([b[seed][1] for seed in sorted(b)])


def plot_fractions(results: pathlib.Path, image: pathlib.Path) -> None:
    """Draws accuracy against the share of the training data, one line per method, bars of one standard error."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    series: dict[tuple[str, str], dict[float, list[float]]] = collections.defaultdict(
        lambda: collections.defaultdict(list)
    )
    for line in results.read_text().splitlines():
        run = json.loads(line)
        series[run["method"], run["label_source"]][run["fraction"]].append(run["test_accuracy"])
    figure, axes = plt.subplots(figsize=(5.5, 4), layout="constrained")
    # Told apart by marker and dash as well as by colour: readable in print and by colour-blind readers.
    styles = [("o", "-", "#0072B2"), ("s", "--", "#D55E00"), ("^", ":", "#009E73"), ("D", "-.", "#CC79A7")]
    for (key, points), (marker, dash, colour) in zip(sorted(series.items()), styles, strict=False):
        fractions = sorted(points)
        means, errors = zip(*(mean_and_standard_error(points[f]) for f in fractions), strict=True)
        axes.errorbar(
            [100 * f for f in fractions],
            means,
            yerr=np.nan_to_num(errors),
            marker=marker,
            linestyle=dash,
            color=colour,
            capsize=3,
            label=TITLES.get(key, " ".join(key)),
        )
    axes.set(xlabel="training data, %", ylabel="test accuracy", ylim=(0, 1))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(image, dpi=150)
    plt.close(figure)
