"""Raw rows from files and from Hugging Face datasets, and what is said about broken ones."""

import json

import datasets
import pytest

from dsbs_jax.data.sources import FolderSource, read_file, read_hub
from dsbs_jax.schema import Example

ROWS = [{"input": "one", "label": "a"}, {"input": "zwei ü", "label": "b"}, {"input": "three", "label": None}]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Hugging Face's cache stays inside the test."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf_cache")


def write_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_every_format_gives_the_same_rows(tmp_path):
    lines = write_lines(tmp_path / "lines.json", ROWS)
    (tmp_path / "list.json").write_text("\n " + json.dumps(ROWS, indent=2), encoding="utf-8")
    datasets.Dataset.from_list(ROWS).to_parquet(tmp_path / "table.parquet")
    assert [row for _, row in read_file(lines)] == ROWS
    assert list(read_file(tmp_path / "list.json")) == list(enumerate(ROWS))
    assert list(read_file(tmp_path / "table.parquet")) == list(enumerate(ROWS))


def test_csv_and_blank_lines(tmp_path):
    (tmp_path / "rows.csv").write_text('input,label\n"one, two",a\n', encoding="utf-8")
    (tmp_path / "rows.jsonl").write_text('\n{"a": 1}\n\n{"a": 2}\n', encoding="utf-8")
    assert list(read_file(tmp_path / "rows.csv")) == [(0, {"input": "one, two", "label": "a"})]
    assert list(read_file(tmp_path / "rows.jsonl")) == [(0, {"a": 1}), (1, {"a": 2})]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.json", b'{"a": 1}\n{"a": \n{"a": 3}\n', r"rows\.json, line 2: this is not valid JSON"),
        ("rows.json", b'{"a": 1}\n[1]\n', r"rows\.json, line 2: '\[1\]' is not a JSON object"),
        ("rows.json", b'[{"a": 1},\n 5]', r"rows\.json, row 1: '5' is not a JSON object"),
        ("rows.json", b'[{"a": 1},\n {"a": }]', r"rows\.json, line 2: this is not valid JSON"),
        ("rows.json", b'{"a": "\xff"}\n', r"rows\.json is not UTF-8 text"),
        ("rows.parquet", b"not parquet", r"rows\.parquet cannot be read as Parquet"),
        ("rows.txt", b"text", r"the suffix '\.txt' is unknown"),
    ],
)
def test_broken_files_are_named_with_their_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        list(read_file(tmp_path / name))


def test_a_missing_file_names_what_is_there(tmp_path):
    write_lines(tmp_path / "other.json", ROWS)
    with pytest.raises(FileNotFoundError, match=r"no file .*rows\.json; the folder holds other\.json"):
        list(read_file(tmp_path / "rows.json"))


def test_hugging_face_datasets_saved_or_as_folders_of_files(tmp_path):
    saved = datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS), dev=datasets.Dataset.from_list(ROWS[:1]))
    saved.save_to_disk(tmp_path / "saved")
    assert read_hub(f"disk:{tmp_path / 'saved'}") == {"train": ROWS, "dev": ROWS[:1]}

    (tmp_path / "folder").mkdir()
    datasets.Dataset.from_list(ROWS).to_parquet(tmp_path / "folder" / "train.parquet")
    datasets.Dataset.from_list(ROWS[:1]).to_parquet(tmp_path / "folder" / "test.parquet")
    assert read_hub(f"hub:{tmp_path / 'folder'}") == {"train": ROWS, "test": ROWS[:1]}

    write_lines(tmp_path / "lines" / "train.jsonl", ROWS)
    assert read_hub(f"hub:{tmp_path / 'lines'}") == {"train": ROWS}


def test_unreachable_or_unknown_sources_are_one_sentence(tmp_path):
    with pytest.raises(ValueError, match=r"The Hugging Face dataset 'disk:.*absent' could not be loaded: "):
        read_hub(f"disk:{tmp_path / 'absent'}")
    with pytest.raises(ValueError, match=r"The source 'web:x' is unknown"):
        read_hub("web:x")


def to_example(example_id, row):
    return Example(example_id, row["input"], row["label"])


def test_the_reference_layout(tmp_path):
    write_lines(tmp_path / "toy" / "toy_train.json", ROWS)
    write_lines(tmp_path / "toy" / "toy_valid.json", ROWS[:1])
    source = FolderSource("toy", to_example)
    rows = source("validation", tmp_path)
    assert rows.examples == [Example("validation/0", "one", "a")]
    assert rows.folder == tmp_path / "toy"
    assert [example.id for example in source("train", tmp_path).examples] == ["train/0", "train/1", "train/2"]


def test_missing_folders_splits_and_columns_are_named(tmp_path):
    write_lines(tmp_path / "toy" / "toy_train.json", [{"input": "x", "lable": "a"}])
    source = FolderSource("toy", to_example)
    with pytest.raises(ValueError, match="set DSBS_DATA_DIR"):
        source("train", None)
    with pytest.raises(FileNotFoundError, match=r"no folder .*toy2; the folder holds toy\."):
        FolderSource("toy2", to_example)("train", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"has no split 'test' \(toy_test\.json\): .* holds toy_train\.json"):
        source("test", tmp_path)
    with pytest.raises(ValueError, match=r"toy_train\.json, row train/0: .*no column 'label'; .* input, lable"):
        source("train", tmp_path)


def test_hub_splits_may_have_other_names(tmp_path):
    datasets.DatasetDict(train_r1=datasets.Dataset.from_list(ROWS)).save_to_disk(tmp_path / "saved")
    source = FolderSource("toy", to_example, hub=f"disk:{tmp_path / 'saved'}", hub_splits=(("train", "train_r1"),))
    assert len(source("train", None, source="hub").examples) == 3
    with pytest.raises(FileNotFoundError, match="has no split 'test'; it has train_r1"):
        source("test", None, source="hub")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a,b\n1,2\n1,2,3\n", r"rows\.csv, line 3: the row has more than the 2 fields"),
        ("a,b\n1\n", r"rows\.csv, line 2: the row has fewer than the 2 fields"),
        ('a,b\n"1" x,2\n', r"rows\.csv, line \d: this is not valid CSV"),
    ],
)
def test_a_broken_csv_row_is_named(tmp_path, text, sentence):
    (tmp_path / "rows.csv").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=sentence):
        list(read_file(tmp_path / "rows.csv"))
