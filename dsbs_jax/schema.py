"""The few types every room speaks: examples, teacher outputs, and methods.

A method of the paper is data, not a branch in the code: one `TaskFormat` per task says how an example's text becomes
an (input, target) pair and how much that pair's loss weighs. `make_method` makes the paper's.
"""

from __future__ import annotations

import dataclasses
import string
from typing import Literal

LabelSource = Literal["gold", "teacher"]
RationalePolicy = Literal["label_only", "drop", "error"]
PrefixStyle = Literal["code", "paper"]

_FIELDS = ("input", "label", "rationale")


@dataclasses.dataclass(frozen=True, slots=True)
class TeacherOutput:
    """What was read out of one answer of the teacher.

    Attributes:
      rationale: the chain of thought, or None where the answer holds none.
      label: the teacher's label, or None where the answer holds none.
      failure: the reason code of a parse that failed (wholly or in part), or None.
      agreement: how many of the teacher's samples of this row have the label; 1 where there was one.
    """

    rationale: str | None
    label: str | None
    failure: str | None = None
    agreement: int = 1


@dataclasses.dataclass(frozen=True, slots=True)
class Example:
    """One row of a dataset.

    Attributes:
      id: stable and unique within its split; names the row in messages and predictions, e.g. `train/17`.
      input: the student's input, without a task prefix.
      label: the gold label, or None for unlabelled inputs.
      teacher: the teacher's answer to this row, or None where no teacher answered it.
      choices: the labels allowed for this row alone (multiple choice); empty where the dataset's label set rules.
    """

    id: str
    input: str
    label: str | None
    teacher: TeacherOutput | None = None
    choices: tuple[str, ...] = ()

    def target_label(self, source: LabelSource) -> str | None:
        """The label to train on: the gold one, or the teacher's."""
        if source == "gold":
            return self.label
        return self.teacher.label if self.teacher else None

    @property
    def rationale(self) -> str | None:
        """The teacher's rationale, or None."""
        return self.teacher.rationale if self.teacher else None


@dataclasses.dataclass(frozen=True, slots=True)
class TaskFormat:
    """How one task of a method reads an example.

    Attributes:
      name: the loss this task feeds, e.g. `label` or `rationale`.
      prefix: literal text in front of the input that tells the tasks apart; may be empty.
      input: template over `{input}`, `{label}`, `{rationale}`.
      target: template over the same fields.
      weight: factor of this task's mean token loss in the sum.
    """

    name: str
    prefix: str = ""
    input: str = "{input}"
    target: str = "{label}"
    weight: float = 1.0

    def __post_init__(self) -> None:
        for where in ("input", "target"):
            for _, field, _, _ in string.Formatter().parse(getattr(self, where)):
                if field is not None and field not in _FIELDS:
                    raise ValueError(
                        f"TaskFormat {self.name!r}: {where} template {getattr(self, where)!r} names the field "
                        f"{field!r}; the fields are {', '.join(_FIELDS)}."
                    )
        if self.weight < 0:
            raise ValueError(f"TaskFormat {self.name!r}: weight is {self.weight}; it must be at least 0.")

    def needs(self, field: str) -> bool:
        """Whether the input or the target reads `field`."""
        return "{" + field + "}" in self.input + self.target

    def render_input(self, example: Example) -> str:
        """The student's input text. A missing rationale reads as empty: at test time no row may be dropped."""
        rationale = example.rationale or ""
        return (self.prefix + self.input.format(input=example.input, label="", rationale=rationale)).rstrip()

    def render(self, example: Example, source: LabelSource) -> tuple[str, str] | None:
        """The training pair (input text, target text), or None where the example lacks a field this task reads."""
        label, rationale = example.target_label(source), example.rationale
        if (self.needs("label") and not label) or (self.needs("rationale") and not rationale):
            return None
        fields = {"input": example.input, "label": label, "rationale": rationale}
        return self.prefix + self.input.format(**fields), self.target.format(**fields)


@dataclasses.dataclass(frozen=True, slots=True)
class Method:
    """A way of training a student; the first task is the one that is evaluated and used at test time.

    Attributes:
      name: as in results and file names.
      tasks: one format per task; the order is that of the per-token task ids.
      label_source: `gold` or `teacher`.
      answer_marker: for targets that hold more than the label: the label is what follows the last marker.
    """

    name: str
    tasks: tuple[TaskFormat, ...]
    label_source: LabelSource = "gold"
    answer_marker: str | None = None

    def __post_init__(self) -> None:
        names = [task.name for task in self.tasks]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"Method {self.name!r}: needs at least one task and distinct task names, has {names}.")
        if self.label_source not in ("gold", "teacher"):
            raise ValueError(f"label_source is {self.label_source!r}; it must be 'gold' or 'teacher'.")

    def read_answer(self, text: str) -> str:
        """The label in a prediction of the first task."""
        if self.answer_marker is None:
            return text.strip()
        _, marker, answer = text.rpartition(self.answer_marker)
        return answer.strip() if marker else ""


# The reference code's prefixes, and those of the paper's text.
PREFIXES: dict[PrefixStyle, dict[str, str]] = {
    "code": {"label": "predict: ", "rationale": "explain: "},
    "paper": {"label": "[label] ", "rationale": "[rationale] "},
}
ANSWER_MARKER = "So the answer is"

METHOD_NAMES = ("standard", "step_by_step", "single_task", "rationale_input")


def make_method(
    name: str,
    label_source: LabelSource = "gold",
    prefix_style: PrefixStyle = "code",
    label_weight: float = 1.0,
    rationale_weight: float = 1.0,
) -> Method:
    """One of the paper's methods.

    Args:
      name: `standard` (finetuning with gold labels, task distillation with the teacher's), `step_by_step`
        (L_label + lambda * L_rationale, Eq. 5), `single_task` (the concatenation [rationale, label], Table 2), or
        `rationale_input` (f(x, r) -> y, Eq. 2, "PINTO tuning").
      label_source: whose labels are targets.
      prefix_style: `code` (`predict: `, `explain: `) or `paper` (`[label] `, `[rationale] `).
      label_weight: factor of L_label. The reference code's alpha is (label_weight, rationale_weight) =
        (alpha, 1 - alpha).
      rationale_weight: factor of L_rationale, the paper's lambda. Read by `step_by_step` alone.

    Raises:
      ValueError: for a name, a label source or a prefix style that does not exist.
    """
    if prefix_style not in PREFIXES:
        raise ValueError(f"prefix_style is {prefix_style!r}; it must be one of {', '.join(PREFIXES)}.")
    prefix = PREFIXES[prefix_style]
    marker = None
    tasks: tuple[TaskFormat, ...]
    match name:
        case "standard":
            tasks = (TaskFormat("label", weight=label_weight),)
        case "step_by_step":
            tasks = (
                TaskFormat("label", prefix["label"], weight=label_weight),
                TaskFormat("rationale", prefix["rationale"], target="{rationale}", weight=rationale_weight),
            )
        case "single_task":
            marker = ANSWER_MARKER
            tasks = (TaskFormat("label", target="{rationale} " + marker + " {label}", weight=label_weight),)
        case "rationale_input":
            tasks = (TaskFormat("label", input="{input}\n{rationale}", weight=label_weight),)
        case _:
            raise ValueError(f"There is no method {name!r}; the methods are {', '.join(METHOD_NAMES)}.")
    return Method(name, tasks, label_source, marker)
