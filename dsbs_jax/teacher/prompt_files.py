"""Prompt files: found by path or name, read as TOML, every key checked. What they mean stands in `prompts.py`."""

from __future__ import annotations

import difflib
import importlib.util
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any


def find_prompt(name: str | Path) -> Path:
    """The prompt file of that path, or the packaged one of that name.

    Raises:
      FileNotFoundError: where there is neither; names the packaged ones.
    """
    if Path(name).is_file():
        return Path(name)
    # Where the package of the datasets lies; nothing is imported.
    tasks = importlib.util.find_spec("dsbs_jax.tasks")
    folder = Path(((tasks and tasks.submodule_search_locations) or [""])[0], "prompts")
    packaged = folder / f"{str(name).removesuffix('.toml')}.toml"
    if packaged.is_file():
        return packaged
    known = sorted(path.stem for path in folder.glob("*.toml"))
    raise FileNotFoundError(f"There is no prompt file {name}; prompts that come with the package: {', '.join(known)}.")


def read_prompt_file(path: Path) -> dict[str, Any]:
    """The fields of a `Prompt` as a file gives them, with `demonstrations` as a list of mappings.

    Raises:
      ValueError: for a file that is no TOML, and for keys that are missing, unknown or of the wrong type.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid TOML ({error}).") from None
    try:
        return _check(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error message: the known name that `name` is probably meant to be, or all of them."""
    known = list(known)
    matches = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" Did you mean {matches[0]!r}?" if matches else f" Known are {', '.join(map(repr, known[:20]))}."


_KEYS = {
    "": ("instruction", "question", "cue", "answer", "stop", "fields", "separator"),
    "zero_shot": ("instruction", "trigger"),
    "rationalisation": ("instruction", "question"),
}
_DEMONSTRATION = ("input", "rationale", "label")
_REQUIRED = {"": ("question", "answer"), "zero_shot": ("instruction",), "rationalisation": ("question",)}


def _check(content: Mapping[str, Any]) -> dict[str, Any]:
    tables = {"zero_shot", "rationalisation", "demonstrations"}
    top = {key: value for key, value in content.items() if key not in tables}
    values = _table("the file", top, _KEYS[""], _REQUIRED[""], also_known=tables)
    for name in ("zero_shot", "rationalisation"):
        if name in content:
            table = _table(f"[{name}]", content[name], _KEYS[name], _REQUIRED[name])
            values |= {f"{name}_{key}": value for key, value in table.items()}
    entries = content.get("demonstrations", [])
    if not isinstance(entries, list):
        raise ValueError("demonstrations is no list of tables; begin each one with [[demonstrations]].")
    demonstrations = []
    for number, entry in enumerate(entries, 1):
        where = f"demonstration {number}"
        fields = _table(where, entry, _DEMONSTRATION, _DEMONSTRATION)
        if empty := [key for key in _DEMONSTRATION if not fields[key].strip()]:
            raise ValueError(f"{where}: {empty[0]} is empty.")
        demonstrations.append({key: text.strip() for key, text in fields.items()})
    if not demonstrations and "zero_shot" not in content:
        raise ValueError("there is neither a [[demonstrations]] entry nor a [zero_shot] table; add one of them.")
    return {**values, "demonstrations": demonstrations}


def _table(
    where: str, table: Any, known: Sequence[str], required: Iterable[str], also_known: Iterable[str] = ()
) -> dict[str, Any]:
    """A table's values with their types checked; lists become tuples and texts lose outer line breaks."""
    if not isinstance(table, dict):
        raise ValueError(f"{where} is {table!r}; it must be a table of {', '.join(known)}.")
    for key in table:
        if key not in known:
            raise ValueError(f"{where}: the key {key!r} is unknown.{nearest(key, [*known, *also_known])}")
    if missing := [key for key in required if key not in table]:
        raise ValueError(f"{where}: the key {missing[0]!r} is missing.")
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key in ("stop", "fields"):
            if not isinstance(value, list) or not all(isinstance(text, str) and text for text in value):
                raise ValueError(f"{where}: {key} is {value!r}; it must be a list of texts.")
            values[key] = tuple(value)
        elif not isinstance(value, str):
            raise ValueError(f"{where}: {key} is {value!r}; it must be a text.")
        else:
            values[key] = value if key == "separator" else value.strip("\r\n")
    return values
