"""A trained student, read back from its run's folder: evaluated again, or put to new inputs."""

from __future__ import annotations

import dataclasses
import json
import logging
import pathlib
from collections.abc import Sequence
from typing import Any

from jax.sharding import Mesh

from dsbs_jax.data.shared_store import ensure_store_on_hosts
from dsbs_jax.data.store import TokenStore
from dsbs_jax.inference import evaluation
from dsbs_jax.metrics.accuracy import check_metric
from dsbs_jax.models.platform import check_platform
from dsbs_jax.models.t5 import T5
from dsbs_jax.sharding.mesh import make_mesh
from dsbs_jax.teacher.noise import RationaleNoise
from dsbs_jax.training.checkpoints import Checkpoints
from dsbs_jax.training.config import TrainConfig
from dsbs_jax.training.step import placed_params

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Student:
    """Weights of one step of a run.

    Attributes:
      config: the run's.
      step: whose weights these are.
      params: the weights.
      mesh: where they lie.
      max_length: most tokens decoded, as during training.
      trained_on: name of the dataset.
    """

    config: TrainConfig
    step: int
    params: Any
    mesh: Mesh
    max_length: int
    trained_on: str

    def evaluate(self, split: str, metric: str | None = None) -> evaluation.Evaluation:
        """Accuracy and predictions on a split of the dataset that `config` names, which may be another than the run's.

        Args:
          split: of that dataset.
          metric: a key of `metrics.accuracy.METRICS`; None takes the dataset's own.

        Raises:
          ValueError: no such split or metric, or rows without a gold label.
        """
        config = self.config
        store = evaluation_store(config, self.trained_on)
        metric = metric or store.meta.metric
        check_metric(metric)
        evaluator = evaluation.Evaluator(
            model=T5(config.model),
            split=store.split(split),
            method=config.method,
            metric=metric,
            vocabulary=config.data.vocabulary,
            mesh=self.mesh,
            batch_size=config.eval_batch_size,
            max_length=self.max_length,
        )
        return evaluator(self.params)

    def predict(self, inputs: Sequence[str]) -> list[str]:
        """Answers to new inputs, without prefix, in their order."""
        return evaluation.predict(
            T5(self.config.model),
            self.params,
            inputs,
            self.config.method,
            self.config.data.vocabulary,
            self.mesh,
            input_length=self.config.data.feature_lengths[0],
            max_length=self.max_length,
            batch_size=self.config.eval_batch_size,
        )


def load_student(config: TrainConfig, step: str = "best") -> Student:
    """The student of a run.

    Args:
      config: the run's configuration (`config.gin` in its folder makes it again); its `data` may be another's.
      step: `best` on validation, `last`, or the number of a step that has a checkpoint.

    Raises:
      FileNotFoundError: the folder has no checkpoint, or none of that step.
      ValueError: the checkpoint is another model's, or was trained with another vocabulary.
    """
    folder = pathlib.Path(config.model_dir) / "checkpoints"
    if not folder.is_dir():
        raise FileNotFoundError(f"{config.model_dir} has no checkpoints: is it the folder of a run?")
    mesh = make_mesh(config.mesh)
    check_platform(config.model, mesh.local_devices[0], training=False)
    with Checkpoints(folder, writer=False) as checkpoints:
        number = _number(checkpoints, step, config.model_dir)
        record = checkpoints.record(number)
        if record["vocabulary"] != config.data.vocabulary.fingerprint:
            raise ValueError(
                f"{config.model_dir} was trained with another vocabulary than {config.data.vocabulary.path}: name its "
                "own with VOCABULARY."
            )
        params = checkpoints.restore(number, placed_params(T5(config.model), mesh, config.rules())).params
    logger.info("Weights of step %d.", number)
    return Student(config, number, params, mesh, record["decode_length"], record["config"]["data"]["name"])


def evaluation_store(config: TrainConfig, trained_on: str) -> TokenStore:
    """The token store that a student is evaluated on.

    Args:
      config: its run's, perhaps with other `data`.
      trained_on: name of the run's own dataset. Of another one only the inputs and gold labels are asked for: it need
        have no teacher, and no labels or rationales of one.
    """
    request = config.store_request()
    if request.name != trained_on and "{rationale}" not in config.method.tasks[0].input:
        request = dataclasses.replace(
            request,
            tasks=request.tasks[:1],
            label_source="gold",
            teacher=None,
            teacher_filter=None,
            rationale_noise=RationaleNoise(),
        )
    return TokenStore.open(ensure_store_on_hosts(request, config.store_root))


def _number(checkpoints: Checkpoints, step: str, model_dir: str) -> int:
    steps, best = checkpoints.steps, checkpoints.best_or_last()
    if best is None:
        raise FileNotFoundError(f"{model_dir} has no checkpoint yet.")
    if step == "last":
        return steps[-1]
    if step == "best":
        return best
    if not step.isdecimal() or int(step) not in steps:
        raise FileNotFoundError(
            f"{model_dir} has no checkpoint of step {step!r}: there are best, last, {', '.join(map(str, steps))}."
        )
    return int(step)


def read_inputs(text: str, where: str) -> list[str]:
    """One input a line, or JSON lines with `input`.

    Raises:
      ValueError: a line of JSON that cannot be read; names file and line.
    """
    inputs = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.lstrip().startswith("{"):
            inputs.append(line)
            continue
        try:
            inputs.append(json.loads(line)["input"])
        except (json.JSONDecodeError, KeyError) as error:
            raise ValueError(f"{where}, line {number}: no JSON object with `input` ({error}).") from None
    return inputs
