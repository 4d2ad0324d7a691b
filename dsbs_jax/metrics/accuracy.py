"""Is a prediction right? One function per way of comparing it with its reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from dsbs_jax.metrics import equation


def exact_match(prediction: str, reference: str) -> bool:
    """Equal texts, case included, once outer spaces are cut and inner ones are single."""
    return prediction.split() == reference.split()


def equation_match(prediction: str, reference: str) -> bool:
    """Equal values. A reference without one (`They are equal`, `9:30` in ASDiv) is compared as text."""
    if equation.evaluate(reference) is None:
        return exact_match(prediction, reference)
    return equation.same_value(prediction, reference)


METRICS: dict[str, Callable[[str, str], bool]] = {"exact": exact_match, "equation": equation_match}


def check_metric(name: str) -> None:
    """Raises `ValueError` for what is no key of `METRICS`."""
    if name not in METRICS:
        raise ValueError(f"There is no metric {name!r}; the metrics are {', '.join(METRICS)}.")


def score(metric: str, predictions: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """Which predictions are right.

    Args:
      metric: a key of `METRICS`.
      predictions: the students' answers.
      references: the gold labels, in the same order.

    Returns:
      bool [examples]; its mean is the accuracy.

    Raises:
      ValueError: for an unknown metric or unequal lengths.
    """
    check_metric(metric)
    if len(predictions) != len(references):
        raise ValueError(
            f"{len(predictions)} predictions for {len(references)} references; every reference needs one prediction."
        )
    right = METRICS[metric]
    return np.fromiter(map(right, predictions, references), dtype=bool, count=len(references))
