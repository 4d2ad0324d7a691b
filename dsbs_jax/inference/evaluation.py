"""Accuracy of a student's label task on one split, by greedy decoding."""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dsbs_jax.data.batches import EvalBatch, eval_batches
from dsbs_jax.data.store import Split
from dsbs_jax.data.vocabulary import EOS_ID, Vocabulary
from dsbs_jax.inference.decoding import greedy_decode
from dsbs_jax.metrics.accuracy import score
from dsbs_jax.models.t5 import T5
from dsbs_jax.schema import Example, Method
from dsbs_jax.sharding.arrays import local_rows, put_batch

# What the store says of a row's teacher.
_OF_TEACHER = ("teacher_label", "rationale")


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What a student answered on one split.

    Attributes:
      accuracy: share of the rows answered correctly.
      metric: what counts as correct.
      rows: one dict per row in the split's order: `id`, `input`, `label`, `prediction`, `correct`, and `output`, the
        decoded text that the prediction was read from; `teacher_label` and `rationale` where the teacher gave them.
    """

    accuracy: float
    metric: str
    rows: list[dict[str, Any]]

    @property
    def correct(self) -> np.ndarray:
        """bool [rows]."""
        return np.array([row["correct"] for row in self.rows], dtype=bool)

    def write(self, path: pathlib.Path) -> None:
        """One JSON line per row."""
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in self.rows))


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """Evaluates weights on one split; one compilation per input shape, shared by all evaluators of a model.

    Attributes:
      model: the student.
      split: the token store's split.
      method: its first task is decoded, its answer marker read.
      metric: name in `metrics.accuracy.METRICS`.
      vocabulary: turns ids into text.
      mesh: the devices; rows are divided over `data` and `fsdp`.
      batch_size: rows a decoding step, a multiple of the mesh's row multiple.
      max_length: most tokens decoded, EOS included.
    """

    model: T5
    split: Split
    method: Method
    metric: str
    vocabulary: Vocabulary
    mesh: Mesh
    batch_size: int
    max_length: int

    def decode(self, params: Any) -> list[str]:
        """The decoded text of the first task's answer to every row, in the split's order."""
        rows = local_rows(self.mesh, self.batch_size)
        batches = eval_batches(self.split, self.method.tasks[0].name, self.batch_size, rows=rows)
        return decode_batches(
            self.model, params, batches, self.split.num_examples, self.vocabulary, self.mesh, self.max_length
        )

    def __call__(self, params: Any) -> Evaluation:
        """Decodes every row and compares with the gold labels."""
        outputs = self.decode(params)
        predictions = [self.method.read_answer(text) for text in outputs]
        examples = self.split.examples(np.arange(self.split.num_examples))
        if unlabelled := sum(example["label"] is None for example in examples):
            raise ValueError(f"{unlabelled} rows of {self.split.path} have no gold label: evaluate another split.")
        correct = score(self.metric, predictions, [example["label"] for example in examples])
        rows = [
            {
                "id": example["id"],
                "input": example["input"],
                "label": example["label"],
                "prediction": prediction,
                "correct": bool(right),
                "output": output,
                **{name: example[name] for name in _OF_TEACHER if example.get(name)},
            }
            for example, prediction, right, output in zip(examples, predictions, correct, outputs, strict=True)
        ]
        return Evaluation(float(np.mean(correct)), self.metric, rows)


def decode_batches(
    model: T5,
    params: Any,
    batches: Iterable[EvalBatch],
    count: int,
    vocabulary: Vocabulary,
    mesh: Mesh,
    max_length: int,
) -> list[str]:
    """Greedy answers to `count` inputs that come in batches; one compilation per input shape.

    Args:
      model: the student.
      params: its weights.
      batches: this host's rows of every batch.
      count: how many inputs the batches hold.
      vocabulary: turns ids into text.
      mesh: the devices.
      max_length: most tokens decoded, EOS included.

    Returns:
      One text per input, in the order of the batches' `indices`.
    """
    # Weights are arguments of the compiled function, so that new weights never compile again.
    decode = _compiled(model, mesh, max_length, vocabulary.num_pieces)
    pending = [(batch, decode(params, put_batch({"tokens": batch.tokens}, mesh)["tokens"])) for batch in batches]
    ids = np.zeros((count, max_length), np.int32)
    for batch, decoded in pending:
        ids[batch.indices[batch.valid]] = np.asarray(decoded)[batch.valid]
    return [vocabulary.decode(row) for row in ids]


def predict(
    model: T5,
    params: Any,
    inputs: Sequence[str],
    method: Method,
    vocabulary: Vocabulary,
    mesh: Mesh,
    *,
    input_length: int,
    max_length: int,
    batch_size: int = 64,
) -> list[str]:
    """The student's answers to new inputs (without prefix), in their order. Single host.

    Args:
      model: the student.
      params: its weights.
      inputs: texts; the first task's prefix is put in front.
      method: how the student was trained.
      vocabulary: the one it was trained with.
      mesh: the devices.
      input_length: inputs are cut to this many tokens, EOS included.
      max_length: most tokens decoded, EOS included.
      batch_size: inputs a decoding step; a multiple of the mesh's row multiple.
    """
    if not inputs:
        return []
    task = method.tasks[0]
    rows = [vocabulary.encode(task.render_input(Example("", text, None)))[: input_length - 1] for text in inputs]
    outputs = decode_batches(model, params, _pad(rows, batch_size), len(rows), vocabulary, mesh, max_length)
    return [method.read_answer(text) for text in outputs]


def _pad(rows: Sequence[Sequence[int]], batch_size: int) -> Iterator[EvalBatch]:
    """Batches of one shape, [batch_size, longest row in multiples of 16], with an EOS after every row."""
    length = -(-(max(map(len, rows)) + 1) // 16) * 16
    for first in range(0, len(rows), batch_size):
        indices = np.arange(first, first + batch_size)
        tokens = np.zeros((batch_size, length), np.int32)
        for at, row in enumerate(rows[first : first + batch_size]):
            tokens[at, : len(row) + 1] = [*row, EOS_ID]
        yield EvalBatch(tokens, indices, indices < len(rows))


@functools.lru_cache(maxsize=16)
def _compiled(model: T5, mesh: Mesh, max_length: int, valid_vocabulary: int) -> Any:
    # Replicated results: every host can read all of them.
    return jax.jit(
        lambda params, tokens: greedy_decode(model, params, tokens, max_length, valid_vocabulary),
        out_shardings=NamedSharding(mesh, PartitionSpec()),
    )
