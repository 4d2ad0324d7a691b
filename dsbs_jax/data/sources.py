"""Reading raw rows: JSON lines, JSON lists, Parquet and CSV files, and Hugging Face datasets."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dsbs_jax.data.dataset import Rows
from dsbs_jax.schema import Example
from dsbs_jax.teacher.answers import FILE_SPLITS

Row = dict[str, Any]
SUFFIXES = (".json", ".jsonl", ".parquet", ".csv")


def read_file(path: str | Path) -> Iterator[tuple[int, Row]]:
    """Yields (row number from 0, row) of a file; the suffix and, for JSON, the first character tell its format.

    Raises:
      FileNotFoundError: where there is no such file; names what lies beside it.
      ValueError: for an unknown suffix, and for a row that is broken or no JSON object, with its file and line.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}; {contents(path.parent)}.")
    if path.suffix in (".json", ".jsonl"):
        yield from _read_json(path)
    elif path.suffix == ".parquet":
        yield from _read_parquet(path)
    elif path.suffix == ".csv":
        yield from _read_csv(path)
    else:
        raise ValueError(f"{path}: the suffix {path.suffix!r} is unknown; readable are {', '.join(SUFFIXES)}.")


def contents(folder: Path) -> str:
    """What a folder holds, as the end of an error message."""
    if not folder.is_dir():
        return f"the folder {folder} does not exist"
    names = sorted(path.name for path in folder.iterdir())
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return f"the folder holds {', '.join(names[:20]) or 'nothing'}{more}"


def _read_json(path: Path) -> Iterator[tuple[int, Row]]:
    with path.open(encoding="utf-8") as file:
        try:
            start = ""
            while (line := file.readline()) and not (start := line.lstrip()[:1]):
                pass
            file.seek(0)
            if start == "[":
                rows = json.load(file)
                for number, row in enumerate(rows):
                    if not isinstance(row, dict):
                        raise ValueError(f"{path}, row {number}: {str(row)[:80]!r} is not a JSON object.")
                    yield number, row
                return
            number = 0
            for line_number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                row = _parse_line(path, line_number, line)
                yield number, row
                number += 1
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{path}, line {error.lineno}: this is not valid JSON ({error.msg}, column {error.colno})."
            ) from None
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}).") from None


def _parse_line(path: Path, line_number: int, line: str) -> Row:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}, line {line_number}: this is not valid JSON ({error.msg}, column {error.colno}); every line must "
            f"hold one JSON object."
        ) from None
    if not isinstance(row, dict):
        raise ValueError(f"{path}, line {line_number}: {line.strip()[:80]!r} is not a JSON object.")
    return row


def _read_csv(path: Path) -> Iterator[tuple[int, Row]]:
    with path.open(encoding="utf-8", newline="") as file:
        try:
            reader = csv.DictReader(file, strict=True)
            for number, row in enumerate(reader):
                # The csv module puts surplus fields under None, and None into missing ones.
                if None in row or None in row.values():
                    columns = len(reader.fieldnames or ())
                    raise ValueError(
                        f"{path}, line {reader.line_num}: the row has {'more' if None in row else 'fewer'} than the "
                        f"{columns} fields of the header; texts that hold commas or line breaks need quotes."
                    )
                yield number, row
        except csv.Error as error:
            raise ValueError(f"{path}, line {reader.line_num}: this is not valid CSV ({error}).") from None
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}).") from None


def _read_parquet(path: Path) -> Iterator[tuple[int, Row]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    yield number, row
                    number += 1
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path} cannot be read as Parquet: {str(error).splitlines()[0]}.") from None


def read_hub(source: str) -> dict[str, list[Row]]:
    """All splits of a Hugging Face dataset.

    Args:
      source: `hub:NAME`, `hub:NAME:CONFIGURATION` (either with `@REVISION` at the end), where a name may be a local
        folder of data files too; or `disk:FOLDER` for what `Dataset.save_to_disk` wrote.

    Raises:
      ValueError: for a source that does not exist, cannot be reached or cannot be read.
    """
    import datasets

    kind, _, rest = source.partition(":")
    if kind not in ("hub", "disk") or not rest:
        raise ValueError(
            f"The source {source!r} is unknown; it must be hub:NAME, hub:NAME:CONFIGURATION or disk:FOLDER."
        )
    rest, _, revision = rest.partition("@")
    name, _, configuration = rest.partition(":")
    try:
        if kind == "disk":
            loaded = datasets.load_from_disk(rest)
        else:
            loaded = datasets.load_dataset(name, configuration or None, revision=revision or None)
    # The hub client raises many classes, from this library, huggingface_hub, httpx and the standard library.
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"The Hugging Face dataset {source!r} could not be loaded: {reason}") from error
    splits = loaded if isinstance(loaded, dict) else {"train": loaded}
    return {str(split): rows.to_list() for split, rows in splits.items()}


@dataclasses.dataclass(frozen=True)
class FolderSource:
    """The reference's layout, `{data_dir}/{name}/{name}_{split}.json`, or a Hugging Face dataset with the same columns.

    Attributes:
      name: of the dataset and its folder. Besides `.json`, the other readable suffixes are looked for.
      to_example: (id, raw row) -> Example; a `KeyError` of it becomes an error that names the missing column.
      hub: what `source="hub"` stands for: this dataset's name on the Hugging Face hub, see `read_hub`.
      hub_splits: (our split, the hub's split) where the names differ.
    """

    name: str
    to_example: Callable[[str, Row], Example]
    hub: str = ""
    hub_splits: tuple[tuple[str, str], ...] = ()

    def __call__(self, split: str, data_dir: str | Path | None, *, source: str = "") -> Rows:
        """The rows of a split; `source` (`hub`, or see `read_hub`) replaces the files where it is not empty.

        Raises:
          FileNotFoundError: for a data folder or a split that is not there.
          ValueError: for rows that cannot be read.
        """
        if source:
            # Answers of a teacher may lie in the data folder even where the rows come from the hub.
            folder = Path(data_dir) / self.name if data_dir is not None else None
            source = self.hub if source == "hub" else source
            splits = read_hub(source)
            hub_split = dict(self.hub_splits).get(split, split)
            if hub_split not in splits:
                raise FileNotFoundError(f"{source} has no split {hub_split!r}; it has {', '.join(sorted(splits))}.")
            return Rows(self.examples(split, enumerate(splits[hub_split]), source), source, folder, split)
        path = self.path(split, data_dir)
        return Rows(self.examples(split, read_file(path), str(path)), str(path), path.parent, split)

    def path(self, split: str, data_dir: str | Path | None) -> Path:
        """The file of a split.

        Raises:
          FileNotFoundError: where there is none; names what there is.
        """
        folder = require_folder(self.name, data_dir)
        stem = f"{self.name}_{FILE_SPLITS.get(split, split)}"
        found = [folder / (stem + suffix) for suffix in SUFFIXES if (folder / (stem + suffix)).is_file()]
        if not found:
            raise FileNotFoundError(f"{folder} has no split {split!r} ({stem}.json): {contents(folder)}.")
        return found[0]

    def examples(self, split: str, rows: Iterator[tuple[int, Row]], where: str) -> list[Example]:
        """The examples of (number, raw row) pairs, with ids `{split}/{number}`."""
        return [convert(self.to_example, f"{split}/{number}", row, where) for number, row in rows]


def convert(to_example: Callable[[str, Row], Example], example_id: str, row: Row, where: str) -> Example:
    """`to_example(example_id, row)`, with errors that name file, row and column."""
    try:
        return to_example(example_id, row)
    except KeyError as error:
        raise ValueError(
            f"{where}, row {example_id}: there is no column {error.args[0]!r}; columns there: {', '.join(row)}."
        ) from None
    except (ValueError, TypeError, IndexError) as error:
        raise ValueError(f"{where}, row {example_id}: {error}") from error


def require_folder(name: str, data_dir: str | Path | None) -> Path:
    """The folder of a dataset.

    Raises:
      ValueError: where no data folder is given.
      FileNotFoundError: where the dataset has no folder in it; names the folders there are.
    """
    if data_dir is None:
        raise ValueError(
            f"The dataset {name!r} needs a data folder: give --data_dir, or set DSBS_DATA_DIR, to the folder that "
            f"holds {name}/."
        )
    folder = Path(data_dir) / name
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}; {contents(Path(data_dir))}.")
    return folder
