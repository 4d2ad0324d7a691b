"""Accuracy of a student's label task on one split, by greedy decoding."""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dsbs_jax.data.batches import eval_batches
from dsbs_jax.data.store import Split
from dsbs_jax.data.vocabulary import Vocabulary
from dsbs_jax.inference.decoding import greedy_decode
from dsbs_jax.metrics.accuracy import score
from dsbs_jax.models.t5 import T5
from dsbs_jax.schema import Method
from dsbs_jax.sharding.arrays import put_batch


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What a student answered on one split.

    Attributes:
      accuracy: share of the rows answered correctly.
      rows: one dict per row in the split's order: `id`, `input`, `label`, `prediction`, `correct`, and `output`, the
        decoded text that the prediction was read from.
    """

    accuracy: float
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

    def decode(self, params: Any) -> np.ndarray:
        """int32 [rows of the split, max_length]: greedy ids of the first task, in the split's order."""
        ids = np.zeros((self.split.num_examples, self.max_length), np.int32)
        # Weights are arguments of the compiled function, so that new weights never compile again.
        decode = _compiled(self.model, self.mesh, self.max_length, self.vocabulary.num_pieces)
        pending = []
        for batch in eval_batches(self.split, self.method.tasks[0].name, self.batch_size):
            tokens = put_batch({"tokens": batch.tokens}, self.mesh)["tokens"]
            pending.append((batch, decode(params, tokens)))
        for batch, decoded in pending:
            ids[batch.indices[batch.valid]] = np.asarray(decoded)[batch.valid]
        return ids

    def __call__(self, params: Any) -> Evaluation:
        """Decodes every row and compares with the gold labels."""
        outputs = [self.vocabulary.decode(row) for row in self.decode(params)]
        predictions = [self.method.read_answer(text) for text in outputs]
        examples = self.split.examples(np.arange(self.split.num_examples))
        correct = score(self.metric, predictions, [example["label"] for example in examples])
        rows = [
            {
                "id": example["id"],
                "input": example["input"],
                "label": example["label"],
                "prediction": prediction,
                "correct": bool(right),
                "output": output,
            }
            for example, prediction, right, output in zip(examples, predictions, correct, outputs, strict=True)
        ]
        return Evaluation(float(np.mean(correct)), rows)


@functools.lru_cache(maxsize=16)
def _compiled(model: T5, mesh: Mesh, max_length: int, valid_vocabulary: int) -> Any:
    # Replicated results: every host can read all of them.
    return jax.jit(
        lambda params, tokens: greedy_decode(model, params, tokens, max_length, valid_vocabulary),
        out_shardings=NamedSharding(mesh, PartitionSpec()),
    )
