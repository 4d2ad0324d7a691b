"""Where data and vocabulary lie: what a caller names, else what the environment names."""

from __future__ import annotations

import os
from pathlib import Path

DATA_DIR_VARIABLE = "DSBS_DATA_DIR"
VOCABULARY_VARIABLE = "DSBS_VOCABULARY"


def find_data_dir(data_dir: str | None = None) -> str | None:
    """`data_dir`, else the environment's DSBS_DATA_DIR, else None."""
    return data_dir or os.environ.get(DATA_DIR_VARIABLE) or None


def find_vocabulary_file(path: str | None = None, data_dir: str | None = None) -> str | None:
    """T5's `spiece.model`: `path`, else DSBS_VOCABULARY, else `vocab/spiece.model` in or beside the data folder.

    Returns:
      The path; None where nothing is named and no such file lies there.
    """
    if named := path or os.environ.get(VOCABULARY_VARIABLE):
        return named
    folder = find_data_dir(data_dir)
    if folder is not None:
        for candidate in (Path(folder, "vocab"), Path(folder).absolute().parent / "vocab"):
            if (candidate / "spiece.model").is_file():
                return str(candidate / "spiece.model")
    return None
