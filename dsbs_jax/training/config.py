"""What a training run can be told: one frozen dataclass, checked before any accelerator time is spent."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any

from dsbs_jax import schema
from dsbs_jax.data.order import check_fraction
from dsbs_jax.data.prepare import StoreRequest
from dsbs_jax.models.config import T5Config
from dsbs_jax.sharding.mesh import MeshConfig
from dsbs_jax.sharding.rules import Rules, make_rules
from dsbs_jax.training.optimizers import OptimizerConfig

# Fields that a resumed run may change: where and how fast it runs and what it tells. The mesh is among them: it changes
# no step's examples, but the order of sums and, as rows are made to fit the devices, where in a batch dropout falls.
MAY_CHANGE = frozenset(
    {
        *("model_dir", "store_root", "data.data_dir", "data.vocabulary.path", "mesh", "sharding_rules"),
        *("model.attention", "model.remat_policy"),
        *("eval_batch_size", "log_period", "checkpoint_period", "progress"),
    }
)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """One training run. Defaults are the paper's recipe for T5 v1.1 base.

    Attributes:
      model_dir: the run's folder: checkpoints, metrics, predictions, operative configuration.
      data: which dataset, from where; its tasks and label source are the method's.
      method: the tasks, their weights, whose labels.
      model: the student's architecture.
      optimizer: optimiser, schedule, clipping.
      mesh: how the devices are laid out.
      sharding_rules: changes to `sharding.rules.DEFAULT_RULES`: (logical axis, mesh axis or None) pairs.
      steps: optimiser steps.
      batch_size: examples a step; every task of an example is in the same step.
      microbatches: gradient accumulation: the packed rows of a step are computed in this many parts.
      seed: initial weights, dropout, order of the examples.
      fraction: the share of the training examples that is used, in (0, 1]; smaller ones lie inside larger ones.
      fraction_seed: which examples a fraction holds.
      rationale_policy: rows without a rationale: `label_only`, `drop`, or `error`.
      pack_lengths: (inputs, targets) tokens a packed row; None chooses them from the data.
      label_smoothing: of the cross-entropy, in [0, 1).
      z_loss: weight of log(Z)^2.
      eval_period: steps between evaluations on validation, each followed by a checkpoint.
      checkpoint_period: steps between further checkpoints; 0 for none.
      early_stop: stop after this many evaluations without a better one; 0 never stops early.
      eval_batch_size: examples a decoding step.
      max_decode_length: most tokens decoded; None takes the longest label target of the training data, doubled.
      log_period: steps between lines of metrics.
      initial_weights: folder to start from: of `dsbs import`, Hugging Face, T5X, or another run; None: random weights.
      store_root: folder of the token stores; None takes `default_store_root()`.
      progress: a progress bar where standard error is a terminal.
    """

    model_dir: str
    data: StoreRequest
    method: schema.Method
    model: T5Config
    optimizer: OptimizerConfig = OptimizerConfig()
    mesh: MeshConfig = MeshConfig()
    sharding_rules: tuple[tuple[str, Any], ...] = ()
    steps: int = 10_000
    batch_size: int = 64
    microbatches: int = 1
    seed: int = 0
    fraction: float = 1.0
    fraction_seed: int = 0
    rationale_policy: schema.RationalePolicy = "label_only"
    pack_lengths: tuple[int, int] | None = None
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    eval_period: int = 250
    checkpoint_period: int = 0
    early_stop: int = 0
    eval_batch_size: int = 64
    max_decode_length: int | None = None
    log_period: int = 50
    initial_weights: str | None = None
    store_root: str | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        least = {
            "steps": 1,
            "batch_size": 1,
            "microbatches": 1,
            "eval_period": 1,
            "eval_batch_size": 1,
            "log_period": 1,
        }
        for name, lowest in (least | {"checkpoint_period": 0, "early_stop": 0, "seed": 0, "fraction_seed": 0}).items():
            value = getattr(self, name)
            if not isinstance(value, int) or value < lowest:
                raise ValueError(
                    f"{name} is {value!r}; it must be a whole number of at least {lowest}, written as 10000."
                )
        for name in ("fraction", "label_smoothing", "z_loss"):
            if not isinstance(getattr(self, name), int | float):
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be a number.")
        check_fraction(self.fraction)
        self.rules()
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing is {self.label_smoothing}; it must lie in [0, 1).")
        if self.rationale_policy not in ("label_only", "drop", "error"):
            raise ValueError(
                f"rationale_policy is {self.rationale_policy!r}; it must be 'label_only', 'drop' or 'error'."
            )

    def rules(self) -> Rules:
        """Where logical axes lie on the mesh."""
        return make_rules(self.sharding_rules)

    def store_request(self) -> StoreRequest:
        """The token store this run reads."""
        return self.data.for_method(self.method)

    def to_json(self) -> dict[str, Any]:
        """Every field, as JSON: what a checkpoint remembers of the run."""
        return dataclasses.asdict(self)


def reads_rationales(config: dict[str, Any]) -> bool:
    """Whether a run, by its `to_json`, learns from the teacher's rationales."""
    return any("{rationale}" in task["input"] + task["target"] for task in config["method"]["tasks"])


def reads_teacher(config: dict[str, Any]) -> bool:
    """Whether a run, by its `to_json`, learns anything from the teacher: rationales, labels, or which rows to keep."""
    uses_labels = config["method"]["label_source"] == "teacher"
    return reads_rationales(config) or uses_labels or config["data"].get("teacher_filter") is not None


def as_read(config: dict[str, Any]) -> dict[str, Any]:
    """A run's `to_json` with None for what its method does not read: two that are then equal train the same student."""
    data = dict(config["data"])
    if not reads_teacher(config):
        data["teacher"] = None
    if not reads_rationales(config):
        data["rationale_noise"] = None
    return config | {"data": data}


def changed_fields(
    before: dict[str, Any],
    after: dict[str, Any],
    may_change: Collection[str] = MAY_CHANGE,
    words: tuple[str, str] = ("before", "now"),
    path: str = "",
) -> list[str]:
    """Names of the fields, dotted, that differ between two `to_json`, except those that `may_change`, with both values.

    `words` stand behind the values; the default `may_change` is what a resumed run may change.
    """
    changed = []
    for name in sorted(before.keys() | after.keys()):
        field = f"{path}{name}"
        if field in may_change:
            continue
        old, new = before.get(name), after.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            changed += changed_fields(old, new, may_change, words, f"{field}.")
        elif _plain(old) != _plain(new):
            changed.append(f"{field} ({old!r} {words[0]}, {new!r} {words[1]})")
    return changed


def _plain(value: Any) -> Any:
    """Tuples and lists alike, as after a trip through JSON."""
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value
