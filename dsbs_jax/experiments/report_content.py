"""The report's tables and sentences, the same in the page, in Markdown and in LaTeX."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from dsbs_jax.experiments.analysis import Cell as Runs
from dsbs_jax.experiments.analysis import Panel, Student, Tested
from dsbs_jax.experiments.published import published
from dsbs_jax.experiments.report_data import shown
from dsbs_jax.experiments.report_tables import Cell, Table
from dsbs_jax.experiments.results import Row
from dsbs_jax.experiments.statistics import DataSaved, Mean
from dsbs_jax.experiments.students import teacher_name

Titles = Mapping[Student, str]


def where(panel: Panel) -> str:
    """Dataset and size."""
    return f"{panel.dataset}, {panel.model}"


def accuracy_table(panel: Panel, titles: Titles) -> Table:
    """Accuracy of every student at every fraction, and of the teachers; missing cells say so."""
    values = published(panel.dataset)
    rows = []
    for student in panel.students:
        cells = [_accuracy(panel.cells.get((student, fraction))) for fraction in panel.fractions]
        if values:
            same = [f"{100 * one.accuracy:.2f}" for one in values if one[:2] == student[:2] and student.as_in_the_paper]
            cells.append(Cell(" / ".join(same) or "none"))
        rows.append((Cell(titles[student]), *cells))
    for teacher, told in panel.teachers.items():
        if one := shown(told):
            which = f", {teacher_name(teacher)}" if len(panel.teachers) > 1 else ""
            name = f"few-shot CoT (the teacher itself{which}; {one.rows:,} rows of {one.split})"
            cells = [Cell(f"{100 * one.accuracy:.2f}")] * len(panel.fractions) + [Cell("none")] * bool(values)
            rows.append((Cell(name), *cells))
    said = f"{panel.test_examples:,} examples" if panel.test_examples else "an unknown number of examples"
    note = (
        f"Test accuracy in percent on {said}, against gold labels, at the step selected on validation: mean ± standard "
        "error over the seeds (sample deviation / square root of their number). Columns: share of the training data."
    )
    if panel.teachers:
        note += " Few-shot CoT uses no training data: it is how often the teacher's labels are the gold ones."
    if values:
        note += " Paper: T5-base with all data; for step-by-step with rationales of GPT-NeoX 20B / PaLM 540B."
    shares = [f"{100 * fraction:g} %" for fraction in panel.fractions]
    return Table(f"Accuracy, {where(panel)}", ("method", *shares, *(("paper",) if values else ())), tuple(rows), note)


def _accuracy(cell: Runs | None) -> Cell:
    if cell is None:
        return Cell("not run", "no run of this cell is planned or done")
    states = ", ".join(f"seed {row.seed}: {row.status}" for row in cell.rows if row.seed not in cell.runs)
    if cell.mean is None:
        return Cell("missing", states or f"seeds {_listed(cell.expected)} have no test accuracy")
    text = with_error(cell.mean)
    if cell.missing:
        text += f" ({cell.mean.count} of {len(cell.expected)} seeds)"
        states = states or f"missing: seeds {_listed(cell.missing)}"
    runs = ", ".join(f"seed {seed}: {100 * value:.2f}" for seed, value in cell.runs.items())
    return Cell(text, "; ".join(filter(None, (runs, states))))


def with_error(mean: Mean) -> str:
    """Percent, with the standard error where more than one seed gives one."""
    if math.isnan(mean.error):
        return f"{100 * mean.mean:.2f} (1 seed)"
    return f"{100 * mean.mean:.2f} ± {100 * mean.error:.2f}"


def comparison_table(panel: Panel, titles: Titles) -> Table | None:
    """The paired tests, or None where there is nothing to compare."""
    if not panel.comparisons:
        return None
    rows = tuple(_tested(one, titles) for one in panel.comparisons)
    note = (
        "Difference in points, ± standard error over test examples. p, examples: two-sided exact sign-flip test over "
        "the test examples, of each example's difference averaged over the seeds that both have. p, seeds: paired "
        "t-test over the seeds. Both as Holm corrects them over the lines of this table; uncorrected in brackets."
    )
    header = ("comparison", "data", "difference", "p, examples", "p, seeds", "seeds")
    return Table(f"Comparisons, {where(panel)}", header, rows, note)


def _tested(one: Tested, titles: Titles) -> tuple[Cell, ...]:
    name, share = Cell(f"{titles[one.a]} against {titles[one.b]}"), Cell(f"{100 * one.fraction:g} %")
    seeds = Cell(_listed(one.comparison.seeds) if one.comparison else one.reason)
    return name, share, difference(one), *p_values(one), seeds


def difference(one: Tested) -> Cell:
    """In points, with its standard error over test examples."""
    if one.comparison is None:
        return Cell("not tested", one.reason)
    test = one.comparison.test
    low, high = (100 * limit for limit in test.interval)
    detail = f"95 % interval {low:+.2f} to {high:+.2f}, over {one.comparison.examples:,} examples"
    return Cell(f"{100 * test.difference:+.2f} ± {100 * test.standard_error:.2f}", detail)


def p_values(one: Tested) -> tuple[Cell, Cell]:
    """Over examples and over seeds, corrected, and uncorrected in brackets."""
    if one.comparison is None:
        return Cell("not tested", one.reason), Cell("not tested", one.reason)
    test = one.comparison.test
    return Cell(_p(one.adjusted, test.p_value)), Cell(_p(one.adjusted_seeds, test.seed_p_value))


def _p(adjusted: float, raw: float) -> str:
    return "none" if math.isnan(raw) else f"{adjusted:.2g} ({raw:.2g})"


def saved_table(panel: Panel, titles: Titles) -> Table | None:
    """How much data each method needs for another's accuracy with all of it; None where no curve tells."""
    if not panel.saved:
        return None
    rows = tuple(
        (
            Cell(f"{titles[one.student]} as good as {titles[one.baseline]}"),
            *(Cell(f"{100 * one.saved.target:.2f}"), Cell(_needed(one.saved)), Cell(_interval(one.saved))),
            Cell(_listed(one.saved.seeds)),
        )
        for one in panel.saved
    )
    note = (
        "The share of the training data at which the first method's mean curve, linear between the measured shares, "
        "first reaches the second one's mean accuracy with all of its data. Interval: 95 %, over resampled seeds, the "
        "same for both; with few seeds it is coarse, and narrower than it should be."
    )
    header = ("comparison", "accuracy to reach, %", "data needed", "interval", "seeds")
    return Table(f"Data saved, {where(panel)}", header, rows, note)


def _needed(saved: DataSaved) -> str:
    if saved.fraction is None:
        return "not reached"
    return f"{'at most ' if saved.at_most else ''}{100 * saved.fraction:.1f} %"


def _interval(saved: DataSaved) -> str:
    if saved.interval is None:
        return "none (1 seed)"
    low, high = ("not reached" if math.isinf(limit) else f"{100 * limit:.1f} %" for limit in saved.interval)
    return low if low == high else f"{low} to {high}"


def findings(panel: Panel, titles: Titles) -> list[str]:
    """What a reader in a hurry should take home: step-by-step against standard training at the largest share, and the
    data that it saves. The tables hold the other comparisons, and spoiled rationales where there are others.
    """
    found = []
    plain = any(not _is_spoiled(one.a) for one in panel.comparisons if one.a.method == "step_by_step")
    for one in panel.comparisons:
        if one.fraction != panel.fractions[-1] or one.comparison is None or one.b.method != "standard":
            continue
        if one.a.method != "step_by_step" or (_is_spoiled(one.a) and plain):
            continue
        difference = 100 * one.comparison.test.difference
        said = f"{abs(difference):.2f} points {'above' if difference > 0 else 'below'}" if difference else "level with"
        retrained = "" if math.isnan(one.adjusted_seeds) else f", {one.adjusted_seeds:.2g} over seeds"
        sure = "" if one.adjusted < 0.05 else "; luck with the test examples could explain that"
        found.append(
            f"{titles[one.a]} is {said} {titles[one.b]} with {100 * one.fraction:g} % of the data "
            f"(corrected p = {one.adjusted:.2g} over {one.comparison.examples:,} examples{retrained}; "
            f"seeds {_listed(one.comparison.seeds)}){sure}."
        )
    for saved in panel.saved:
        if saved.student.method == "step_by_step" and saved.baseline.method == "standard":
            needed = _needed(saved.saved)
            reached = needed if saved.saved.fraction is None else f"reached with {needed} of the data"
            found.append(
                f"{titles[saved.baseline]}'s accuracy with all of its data is {reached} by {titles[saved.student]} "
                f"(95 % interval: {_interval(saved.saved)}; seeds {_listed(saved.saved.seeds)})."
            )
    return found


def _is_spoiled(student: Student) -> bool:
    return bool(student.wrong_rationales or student.missing_rationales)


def cost_table(rows: Sequence[Row]) -> Table:
    """What the finished runs took, a line a dataset and size."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.status == "finished":
            groups.setdefault((row.dataset, row.model), []).append(row)
    lines = []
    for (dataset, model), group in groups.items():
        timed = [row for row in group if row.seconds is not None]
        counted = [row.tokens for row in group if row.tokens is not None]
        hours = sum((row.seconds or 0.0) * (row.num_devices or 1) for row in timed) / 3600
        devices = sorted({row.device or "unknown" for row in group})
        tokens = f"{sum(counted):,}" if counted else "unknown"
        if counted and len(counted) < len(group):
            tokens += f" (of {len(counted)} runs)"
        versions = sorted({row.code_version for row in group if row.code_version})
        texts = (
            f"{dataset}, {model}",
            f"{len(group)}",
            f"{hours:.3g}",
            tokens,
            ", ".join(devices),
            ", ".join(versions),
        )
        lines.append(tuple(Cell(text or "unknown") for text in texts))
    note = (
        "Finished runs only. Device hours: wall time of the process that finished the run, compilation and evaluations "
        "included, times its devices (taken as one where the run does not say). Tokens: inputs and targets trained on."
    )
    return Table("Cost", ("runs of", "runs", "device hours", "tokens", "device", "version"), tuple(lines), note)


def unfinished_table(rows: Sequence[Row], titles: Titles) -> Table | None:
    """The cells that failed, run or wait, with their errors; None where all are finished."""
    left = sorted((row for row in rows if row.status != "finished"), key=lambda row: row.status)
    if not left:
        return None
    lines = tuple(
        (
            Cell(f"{row.dataset}, {row.model}, {titles[Student.of(row)]}"),
            *(Cell(f"{100 * row.fraction:g} %"), Cell(f"{row.seed}"), Cell(row.status), Cell(row.error or "")),
            Cell(row.cell),
        )
        for row in left
    )
    note = "dsbs sweep FILE --run does what waits; dsbs sweep FILE --retry-failed tries again what failed."
    return Table("Cells without a result", ("cell", "data", "seed", "state", "error", "id"), lines, note)


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))
