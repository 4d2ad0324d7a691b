"""What the paper reports (Hsieh et al., Findings of ACL 2023, arXiv 2305.02301): T5-base, 220M, all training data,
gold labels; test accuracy from its Tables 1 and 2."""

from __future__ import annotations

from typing import NamedTuple

# Of T5-base, as the paper tells them.
PARAMETERS = 220_000_000


class Published(NamedTuple):
    """One number of the paper; `accuracy` is a share in [0, 1]."""

    method: str
    label_source: str
    title: str
    accuracy: float


_DATASETS = ("esnli", "anli1", "cqa", "svamp")
_ROWS = (
    ("standard", "standard finetuning", (88.38, 43.58, 62.19, 62.63)),
    ("single_task", "single task", (88.88, 43.50, 61.37, 63.00)),
    ("step_by_step", "step-by-step, GPT-NeoX 20B", (89.12, 48.15, 63.25, 63.00)),
    ("step_by_step", "step-by-step, PaLM 540B", (89.51, 49.58, 63.29, 65.50)),
)


def published(dataset: str) -> tuple[Published, ...]:
    """The paper's numbers for a dataset; empty where it has none."""
    if dataset not in _DATASETS:
        return ()
    column = _DATASETS.index(dataset)
    return tuple(Published(method, "gold", title, values[column] / 100) for method, title, values in _ROWS)
