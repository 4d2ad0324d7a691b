"""Stage 1 of `dsbs demo`: a teacher in a process of its own, asked over HTTP as `dsbs label` would ask an LLM.

What follows is a sweep, `recipes/demo`, and its report.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
import subprocess
import sys
from collections.abc import Iterator

from dsbs_jax.data.label_card import summary
from dsbs_jax.data.labelling import LabelConfig, Labelling
from dsbs_jax.data.prepare import StoreRequest
from dsbs_jax.teacher.openai_client import OpenAITeacher

TEACHER = "dsbs_jax.experiments.demo_teacher"
TEACHER_MODEL = "bestiary-expert"


def label(data: StoreRequest, output: pathlib.Path) -> tuple[pathlib.Path, str]:
    """Labels the training rows of the embedded dataset; what was answered before is not asked again.

    Args:
      data: names the dataset and its world.
      output: where labelled folders are made.

    Returns:
      The labelled folder, which TEACHER may name, and what came back in a line.

    Raises:
      RuntimeError: the teacher's process ended, or did not answer every question.
    """
    with _teacher(dict(data.dataset_arguments)) as url:
        labelling = Labelling(
            LabelConfig(
                dataset=data.name,
                teacher=OpenAITeacher(TEACHER_MODEL, url),
                output=str(output),
                dataset_arguments=data.dataset_arguments,
            )
        )
        asked = labelling.ask()
    if not asked.complete:
        raise RuntimeError(f"The teacher did not answer every question: {asked.text()}.")
    card = labelling.write()
    labelling.report()
    return labelling.folder, summary(card)


@contextlib.contextmanager
def _teacher(world: dict[str, int | float | str]) -> Iterator[str]:
    """The base URL of a teacher's process, which ends with the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", TEACHER, "--world", json.dumps(world)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        if not url:
            raise RuntimeError(f"The teacher's process ({TEACHER}) ended with status {process.wait()}.")
        yield url
    finally:
        process.kill()
        process.wait()
