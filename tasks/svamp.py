"""SVAMP (Patel et al., 2021): word problems; the label is an equation, compared by its value.

The reference draws 800 of the 1,000 problems for training with a fixed seed; 10 % of those is held out for validation
(Table 3 of the paper: 720 / 80 / 200). `extra_inputs="asdiv"` adds ASDiv's questions, without their labels, to train
(Fig. 7 and 9): they serve where labels and rationales come from a teacher.
"""

import dataclasses
from pathlib import Path

import numpy as np

from dsbs_jax.data.dataset import Dataset, Rows
from dsbs_jax.data.sources import SUFFIXES, FolderSource, Row, read_file, read_hub, require_folder
from dsbs_jax.schema import Example
from dsbs_jax.tasks import asdiv
from dsbs_jax.teacher.parsers import PARSERS

HUB = "hub:ChilleD/SVAMP"
ORIGINAL = "SVAMP.json"
_TRAIN_ROWS = 800


def to_example(example_id: str, row: Row) -> Example:
    """A row of the reference's files (`input`, `label`) or of the original (`Body`, `Question`, `Equation`)."""
    if "input" in row:
        return Example(example_id, str(row["input"]), row["label"])
    return Example(example_id, f"{row['Body']}\n{row['Question']}", row["Equation"])


_SOURCE = FolderSource("svamp", to_example)


def read(split: str, data_dir: str | Path | None, *, source: str = "", extra_inputs: str = "") -> Rows:
    """The rows of `train` or `test`.

    Args:
      split: `train` or `test`.
      data_dir: holds `svamp/` with `svamp_train.json` and `svamp_test.json`, or with the original `SVAMP.json`.
      source: `hub`, or a Hugging Face dataset (see `read_hub`) with the columns of the original.
      extra_inputs: `asdiv` to add its questions to train.

    Raises:
      FileNotFoundError, ValueError: for files or rows that are missing or cannot be read.
    """
    if extra_inputs not in ("", "asdiv"):
        raise ValueError(f"svamp: extra_inputs is {extra_inputs!r}; it must be 'asdiv' or empty.")
    if source:
        name = HUB if source == "hub" else source
        # The hub splits the 1,000 problems in its own way; put together they are the original again.
        problems = [row for rows in read_hub(name).values() for row in rows]
        folder = Path(data_dir) / "svamp" if data_dir is not None else None
        rows = Rows(_reference_split(split, problems, name), name, folder, split)
    elif _prepared(require_folder("svamp", data_dir)):
        rows = _SOURCE(split, data_dir)
    else:
        path = require_folder("svamp", data_dir) / ORIGINAL
        problems = [row for _, row in read_file(path)]
        rows = Rows(_reference_split(split, problems, str(path)), str(path), path.parent, split)
    if split == "train" and extra_inputs:
        rows = dataclasses.replace(rows, extra=asdiv.read("asdiv", data_dir))
    return rows


def _prepared(folder: Path) -> bool:
    return any((folder / f"svamp_train{suffix}").is_file() for suffix in SUFFIXES) or not (folder / ORIGINAL).is_file()


def _reference_split(split: str, problems: list[Row], where: str) -> list[Example]:
    """The reference's split of the original problems, which it draws from them in the order of their `chal-N`."""
    try:
        problems = sorted(problems, key=lambda row: int(str(row["ID"]).removeprefix("chal-")))
    except (KeyError, ValueError):
        raise ValueError(f"{where}: the problems have no column ID with values like 'chal-17'.") from None
    order = np.random.RandomState(seed=0).permutation(len(problems))
    chosen = order[:_TRAIN_ROWS] if split == "train" else order[_TRAIN_ROWS:]
    return _SOURCE.examples(split, enumerate(problems[index] for index in chosen), where)


DATASET = Dataset("svamp", read, source_splits=("train", "test"), metric="equation", parse=PARSERS["svamp"])
