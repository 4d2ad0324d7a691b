"""The folder of a labelling; `labelling.json` says what decides its answers, and where that differs is another folder.

{output}/{model}-{digest}/labelling.json          dataset, model, api, prompt, parameters
{output}/{model}-{digest}/journal/*.jsonl         every raw answer; see `teacher/journal.py`
{output}/{model}-{digest}/{split}.jsonl|.parquet  the labelled rows; see `teacher/labelled.py`
{output}/{model}-{digest}/card.json, card.md      counts, tokens, cost, accuracy, for each split
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dsbs_jax.files import write_whole

logger = logging.getLogger(__name__)

IDENTITY = "labelling.json"
# JSON values that decide a labelling's answers. A changed one makes another labelling.
Identity = dict[str, Any]


def labelling_folder(output: str | Path, identity: Identity) -> Path:
    """Where a labelling lies in the folder of all labellings of its dataset."""
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:10]
    model = re.sub(r"[^A-Za-z0-9._-]+", "_", str(identity["model"]).rstrip("/").rpartition("/")[2])
    return Path(output) / f"{model}-{digest}"


def open_folder(folder: Path, identity: Identity) -> None:
    """Makes a labelling's folder where it is missing, and says how it differs from the nearest of those beside it."""
    (folder / "journal").mkdir(parents=True, exist_ok=True)
    path = folder / IDENTITY
    if path.is_file():
        return
    others = [read_identity(other.parent) for other in folder.parent.glob(f"*/{IDENTITY}")]
    if others:
        nearest = min((differences(other, identity) for other in others), key=lambda phrases: len(phrases))
        logger.info(
            "A new labelling, beside %d in %s. From the nearest it differs in %s.",
            len(others),
            folder.parent,
            "; ".join(nearest),
        )
    write_whole(path, json.dumps(identity, indent=1) + "\n")


def take_journals(folder: Path, identity: Identity, others: Sequence[str | Path]) -> None:
    """Copies the journals of shards that other machines labelled into this labelling's.

    Args:
      folder: this labelling's.
      identity: likewise.
      others: folders of the same labelling, or the outputs in which it lies.

    Raises:
      FileNotFoundError: a folder holds no labelling.
      ValueError: a folder holds another labelling; says what differs.
    """
    found = []
    for other in map(Path, others):
        inside = other / folder.name
        found.append(inside if (inside / IDENTITY).is_file() else other)
        if differing := differences(read_identity(found[-1]), identity):
            raise ValueError(f"{other} holds another labelling than {folder}, different in {'; '.join(differing)}.")
    open_folder(folder, identity)
    for other in found:
        if other.resolve() == folder.resolve():
            continue
        # Two machines may have used one shard's name; where it came from keeps them apart.
        origin = hashlib.sha256(str(other.resolve()).encode()).hexdigest()[:6]
        for path in sorted((other / "journal").glob("*.jsonl")):
            shutil.copyfile(path, folder / "journal" / f"{path.stem}-from-{origin}.jsonl")


def read_identity(folder: Path) -> Identity:
    """What decides the answers in a labelling's folder.

    Raises:
      FileNotFoundError: it is none.
      ValueError: its file is damaged.
    """
    path = folder / IDENTITY
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path}: name the folder of a labelling, which `dsbs label` made.")
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged ({error}); remove it, and the next `dsbs label` writes it again."
        ) from None


def differences(there: Identity, here: Identity, prefix: str = "") -> list[str]:
    """What differs between two labellings, one phrase each."""
    phrases = []
    for name in sorted(there.keys() | here.keys()):
        old, new = there.get(name), here.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            phrases += differences(old, new, f"{prefix}{name}.")
        elif old != new:
            phrases.append(f"{prefix}{name} ({_shown(old)} there, {_shown(new)} here)")
    return phrases


def _shown(value: Any) -> str:
    text = repr(value)
    if len(text) <= 60:
        return text
    return f"{len(value)} of them" if isinstance(value, list) else f"{text[:57]}..."
