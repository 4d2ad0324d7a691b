"""The weights a run starts from: any that `models.weights` reads, or those of another run."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from dsbs_jax.models.config import T5Config
from dsbs_jax.models.imported import open_params
from dsbs_jax.models.streaming import load
from dsbs_jax.models.weights import check_architecture, load_weights
from dsbs_jax.training.checkpoints import Checkpoints

logger = logging.getLogger(__name__)


def initial_weights(folder: str | Path, config: T5Config, shardings: Any) -> dict[str, Any]:
    """The parameters that INITIAL_CHECKPOINT_PATH names.

    Args:
      folder: another run's (its best step's weights, its last one's before the first evaluation), or see
        `models.weights.open_weights`.
      config: of the model to fill.
      shardings: where to put the parameters.

    Raises:
      ValueError: where they are another model's, or partial; lists what differs.
    """
    checkpoints = Path(folder) / "checkpoints"
    if not checkpoints.is_dir():
        return load_weights(folder, config, shardings)
    with Checkpoints(checkpoints, writer=False) as run:
        if (step := run.best_or_last()) is None:
            raise ValueError(f"The run in {folder} has no checkpoint yet: name another INITIAL_CHECKPOINT_PATH.")
        model = run.record(step)["config"]["model"]
    check_architecture(model, config, folder)
    logger.info("Starting from step %d of %s.", step, folder)
    return load(open_params(checkpoints / str(step) / "params", model), config, shardings)
