"""A labelled dataset on disk: the files that `dsbs label` writes and that training reads.

    {folder}/{split}.jsonl or {split}.parquet    one row of the dataset a line, in the dataset's order

A row holds `id`, `input`, `label` (gold, or null), `answers` (the teacher's raw texts, one a sample), `rationale`,
`teacher_label`, `failure` (a reason code, or null), `agreement` (how many samples have the teacher's label), `samples`,
`prompt_tokens`, `completion_tokens`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from dsbs_jax.files import appearing
from dsbs_jax.schema import TeacherOutput

FORMATS = ("jsonl", "parquet")
# Rows of a Parquet file that are held in memory at a time.
_ROWS_A_GROUP = 10_000

LabelledRow = dict[str, Any]


def labelled_file(folder: Path, split: str) -> Path | None:
    """The file with a split's rows in a labelled folder, or None."""
    found = [path for suffix in FORMATS if (path := folder / f"{split}.{suffix}").is_file()]
    return found[0] if found else None


def read_labelled(path: Path) -> Iterator[LabelledRow]:
    """The rows of a file, one at a time.

    Raises:
      ValueError: for a line that is no labelled row; names file and line.
    """
    if path.suffix == ".parquet":
        import pyarrow.parquet

        with pyarrow.parquet.ParquetFile(path) as file:
            if missing := {"id", "input", "rationale", "teacher_label"} - set(file.schema_arrow.names):
                raise ValueError(f"{path} is no labelled dataset: it has no column {', '.join(sorted(missing))}.")
            for batch in file.iter_batches(_ROWS_A_GROUP):
                yield from batch.to_pylist()
        return
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                row["id"], row["input"], row["rationale"], row["teacher_label"]
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{path}, line {number}: this is no row of a labelled dataset ({type(error).__name__}: {error})."
                ) from None
            yield row


def write_labelled(path: Path, rows: Iterable[LabelledRow]) -> int:
    """Writes rows in the format of the path's suffix and returns their number; the file appears whole or not at all."""
    count = 0
    with appearing(path) as temporary:
        if path.suffix == ".parquet":
            count = _write_parquet(temporary, rows)
        else:
            with temporary.open("w", encoding="utf-8") as file:
                for row in rows:
                    # ASCII: half of a surrogate pair, which a server may send, has no UTF-8.
                    file.write(json.dumps(row) + "\n")
                    count += 1
    return count


def _write_parquet(path: Path, rows: Iterable[LabelledRow]) -> int:
    import pyarrow
    import pyarrow.parquet

    text, number = pyarrow.string(), pyarrow.int64()
    schema = pyarrow.schema(
        [(name, text) for name in ("id", "input", "label")]
        + [("answers", pyarrow.list_(text))]
        + [(name, text) for name in ("rationale", "teacher_label", "failure")]
        + [(name, number) for name in ("agreement", "samples", "prompt_tokens", "completion_tokens")]
    )
    count, group = 0, list[LabelledRow]()
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:

        def flush() -> None:
            writer.write_table(pyarrow.Table.from_pylist(group, schema))
            group.clear()

        for row in rows:
            group.append({name: _utf8(value) for name, value in row.items()})
            count += 1
            if len(group) == _ROWS_A_GROUP:
                flush()
        if group:
            flush()
    return count


def _utf8(value: Any) -> Any:
    """The value with what UTF-8 cannot hold replaced; Parquet's texts are UTF-8."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    return [_utf8(item) for item in value] if isinstance(value, list) else value


def output_of(row: LabelledRow) -> TeacherOutput:
    """What the teacher said of a row."""
    return TeacherOutput(row["rationale"], row["teacher_label"], row.get("failure"), row.get("agreement", 1))
