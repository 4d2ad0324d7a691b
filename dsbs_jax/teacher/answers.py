"""A teacher's raw answers on disk: JSON lists of strings, in the order of the rows they answer."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

# The reference's file names: validation is `valid` there.
FILE_SPLITS = {"validation": "valid"}


def answer_files(folder: Path, teacher: str, split: str) -> list[Path]:
    """The files with a teacher's answers to one split, in numeric order: `_CoT_10` comes after `_CoT_9`.

    They lie in `{folder}/{teacher}/{split}_CoT_{i}.json` or, for a teacher with a folder of its own beside the
    datasets' (the reference's GPT-NeoX answers), in `{folder}/../{teacher}/{dataset}/{split}.json`.

    Args:
      folder: the dataset's folder.
      teacher: the teacher's folder name, e.g. `llm`.
      split: `train`, `validation` or `test`.

    Returns:
      The files; empty where there are none.
    """
    split = FILE_SPLITS.get(split, split)
    for place in (folder / teacher, folder.parent / teacher / folder.name):
        numbered = [
            (int(match[1]), path)
            for path in (place.iterdir() if place.is_dir() else ())
            if (match := re.fullmatch(rf"{re.escape(split)}_CoT_(\d+)\.json", path.name))
        ]
        if numbered:
            return [path for _, path in sorted(numbered)]
        if (place / f"{split}.json").is_file():
            return [place / f"{split}.json"]
    return []


def read_answers(folder: Path, teacher: str, split: str) -> list[str]:
    """The answers of `answer_files`, concatenated.

    Raises:
      ValueError: for a numbered file that is missing between others, and see `read_answer_files`.
    """
    files = answer_files(folder, teacher, split)
    numbers = [int(match[1]) for path in files if (match := re.search(r"_CoT_(\d+)\.json$", path.name))]
    if missing := sorted(set(range(len(numbers))) - set(numbers)):
        raise ValueError(
            f"{files[0].parent}: the answer file {files[0].name.rsplit('_', 1)[0]}_{missing[0]}.json is missing; "
            f"numbered files must run from 0 without a gap."
        )
    return read_answer_files(files)


def read_answer_files(files: Sequence[Path]) -> list[str]:
    """The answers of some files, concatenated.

    Raises:
      ValueError: for a file that is not a JSON list of strings.
    """
    answers: list[str] = []
    for path in files:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not valid JSON ({error}); it must be a JSON list of strings.") from None
        if not isinstance(content, list):
            raise ValueError(f"{path} holds a JSON {type(content).__name__}; it must be a list of strings.")
        for index, answer in enumerate(content):
            if not isinstance(answer, str):
                raise ValueError(f"{path}, answer {index}: {answer!r} is not a string.")
        answers += content
    return answers
