"""The token store: what was written is read back, and only whole stores are ever seen."""

import json
import os
import pathlib
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsbs_jax.data import folders
from dsbs_jax.data.store import STORE_VERSION, StoreMeta, StoreWriter, Stream, TokenStore

META = StoreMeta(
    name="creatures",
    metric="exact",
    tasks=("label", "rationale"),
    vocabulary_fingerprint="f" * 64,
    vocabulary_size=100,
    feature_lengths=(16, 8),
    counts={"train": {"empty rationale": 1}},
)


def write(root, key="abc", rows=5, meta=META, splits=("train",)):
    with StoreWriter(root, key) as writer:
        for name in splits:
            split = writer.split(name, meta.tasks, meta.vocabulary_size)
            for i in range(rows):
                rationale = None if i % 2 else ([i + 2, 1], [i + 3, i + 4, 1])
                split.add([([i + 5, 1], [7, 1]), rationale][: len(meta.tasks)], {"id": f"{name}/{i}", "input": "ü"})
        return writer.commit(meta)


def test_round_trip(tmp_path):
    path = write(tmp_path)
    assert path == tmp_path / "abc"
    store = TokenStore.open(path)
    assert store.meta.splits == {"train": 5}
    assert store.meta.key == "abc"
    assert store.meta.tasks == META.tasks
    train = store.split("train")
    assert train.num_examples == 5
    assert train.tokens("label", "inputs", 3).tolist() == [8, 1]
    assert train.tokens("rationale", "targets", 2).tolist() == [5, 6, 1]
    assert train.tokens("rationale", "targets", 3).tolist() == []
    assert train.lengths("rationale", "targets").tolist() == [3, 0, 3, 0, 3]
    assert train.lengths("label", "inputs").dtype == np.int32
    assert isinstance(train.ragged("label", "inputs")[0], np.memmap)
    assert [row["id"] for row in train.examples([4, 0])] == ["train/4", "train/0"]
    assert train.examples([1])[0]["input"] == "ü"
    assert [path.name for path in tmp_path.iterdir()] == ["abc"]


def test_wide_vocabularies_take_int32(tmp_path):
    meta = StoreMeta("wide", "exact", ("label",), "f", 250_000, (4, 4))
    with StoreWriter(tmp_path, "k") as writer:
        writer.split("train", meta.tasks, meta.vocabulary_size).add([([200_000, 1], [1])], {"id": "0"})
        path = writer.commit(meta)
    split = TokenStore.open(path).split("train")
    assert split.ragged("label", "inputs")[0].dtype == np.int32
    assert split.tokens("label", "inputs", 0).tolist() == [200_000, 1]


ROWS = st.lists(st.lists(st.integers(0, 99), max_size=9), max_size=12)


@settings(max_examples=25, deadline=None)
@given(rows=ROWS)
def test_any_rows_come_back(tmp_path_factory, rows):
    root = tmp_path_factory.mktemp("store")
    meta = StoreMeta("any", "exact", ("label",), "f", 100, (9, 9))
    with StoreWriter(root, "k") as writer:
        split = writer.split("train", meta.tasks, 100)
        for i, row in enumerate(rows):
            split.add([(row, row[::-1])], {"id": str(i)})
        path = writer.commit(meta)
    store = TokenStore.open(path)
    if not rows:
        with pytest.raises(ValueError, match=r"split 'train' of any is empty"):
            store.split("train")
        return
    split = store.split("train")
    assert [split.tokens("label", "inputs", i).tolist() for i in range(len(rows))] == rows
    assert [split.tokens("label", "targets", i).tolist() for i in range(len(rows))] == [row[::-1] for row in rows]


def test_streams(tmp_path):
    streams = (Stream("a", 2.0, {"train": 3}), Stream("none", 5.0, {"train": 0}), Stream("b", 1.0, {"train": 2}))
    meta = StoreMeta("mixture", "exact", ("target",), "f", 100, (4, 4), streams=streams)
    split = TokenStore.open(write(tmp_path, meta=meta)).split("train")
    assert split.stream_sizes == (3, 2)
    assert split.stream_rates == (2.0, 1.0)
    with pytest.raises(ValueError, match="hold 5 rows, the split 4"):
        write(tmp_path, "other", rows=4, meta=meta)


def test_wrong_use_is_a_sentence(tmp_path):
    store = TokenStore.open(write(tmp_path))
    with pytest.raises(ValueError, match="has no split 'valid'; its splits are train"):
        store.split("valid")
    with pytest.raises(ValueError, match="has no task 'lable'; its tasks are label, rationale"):
        store.split("train").lengths("lable", "inputs")
    with pytest.raises(FileNotFoundError, match="is no token store"):
        TokenStore.open(tmp_path / "absent")
    with StoreWriter(tmp_path, "bad") as writer:
        split = writer.split("train", ("label",), 100)
        with pytest.raises(ValueError, match="ids reach from 5 to 100; the vocabulary has 100"):
            split.add([([5, 100], [1])], {})
        with pytest.raises(ValueError, match="Row 0 has 2 pairs"):
            split.add([None, None], {})
        with pytest.raises(ValueError, match="cannot name a split or a task"):
            writer.split("../train", ("label",), 100)
    assert not (tmp_path / "bad").exists()


def test_damage_and_foreign_versions_are_named(tmp_path):
    path = write(tmp_path)
    tokens = path / "train" / "label.inputs.tokens.npy"
    tokens.write_bytes(tokens.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"label\.inputs\.tokens\.npy is damaged: delete the folder"):
        TokenStore.open(path).split("train").tokens("label", "inputs", 0)
    np.save(path / "train" / "label.targets.offsets.npy", np.arange(3))
    with pytest.raises(ValueError, match="is damaged"):
        TokenStore.open(path).split("train").lengths("label", "targets")
    meta = json.loads((path / "meta.json").read_text())
    (path / "meta.json").write_text(json.dumps(meta | {"version": STORE_VERSION + 1}))
    with pytest.raises(ValueError, match="delete it"):
        TokenStore.open(path)


def test_an_error_leaves_nothing(tmp_path):
    def fail():
        with StoreWriter(tmp_path, "abc") as writer:
            writer.split("train", META.tasks, 100)
            raise RuntimeError("teacher")

    with pytest.raises(RuntimeError, match="teacher"):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_the_loser_of_a_race_takes_the_winners_store(tmp_path):
    with StoreWriter(tmp_path, "abc") as slow:
        slow.split("train", META.tasks, 100)
        winner = write(tmp_path)
        before = (winner / "meta.json").read_bytes()
        assert slow.commit(META) == winner
    assert (winner / "meta.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["abc"]


def test_unwritable_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"Cannot write the token store in .* DSBS_STORE_DIR"):
        write(tmp_path / "file" / "stores")


# Writes rows until it is told otherwise; run as a process of its own.
WRITER = """
import sys
from dsbs_jax.data.store import StoreMeta, StoreWriter
root, rows, pause = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "pause"
meta = StoreMeta("creatures", "exact", ("label",), "f" * 64, 100, (16, 8))
with StoreWriter(root, "abc") as writer:
    train = writer.split("train", meta.tasks, meta.vocabulary_size)
    print("started", flush=True)
    sys.stdin.readline()
    for i in range(rows):
        train.add([([i % 90, 1], [7, 1])], {"id": str(i), "input": "x" * 50})
    if pause:
        print("written", flush=True)
        sys.stdin.readline()
    print(writer.commit(meta))
"""


def start(root, rows=2000, pause=False, **options):
    command = [sys.executable, "-c", WRITER, str(root), str(rows), "pause" if pause else ""]
    process = subprocess.Popen(
        command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options
    )
    assert process.stdout.readline() == "started\n"
    return process


def test_two_processes_at_once(tmp_path):
    processes = [start(tmp_path), start(tmp_path)]
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        out, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        assert out.strip() == str(tmp_path / "abc")
    assert TokenStore.open(tmp_path / "abc").split("train").tokens("label", "inputs", 1999).tolist() == [1999 % 90, 1]
    assert [path.name for path in tmp_path.iterdir()] == ["abc"]


def test_a_killed_writer_leaves_nothing_usable_and_the_next_cleans_up(tmp_path):
    process = start(tmp_path, pause=True)
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.stdout.readline() == "written\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "abc").exists()
    assert len(list(tmp_path.iterdir())) == 1
    TokenStore.open(write(tmp_path)).split("train")
    assert [path.name for path in tmp_path.iterdir()] == ["abc"]


def test_a_living_writer_is_not_cleaned_up(tmp_path):
    process = start(tmp_path)
    write(tmp_path, "other")
    out, errors = process.communicate("\n", timeout=60)
    assert process.returncode == 0, errors
    assert out.strip() == str(tmp_path / "abc")


def test_folders_of_other_hosts_go_after_a_day(tmp_path):
    folder = tmp_path / ".tmp-abc@elsewhere@1@00000000"
    folder.mkdir()
    folders.remove_stale(tmp_path)
    assert folder.exists()
    os.utime(folder, (time.time() - 2 * 24 * 3600,) * 2)
    folders.remove_stale(tmp_path)
    assert not folder.exists()


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path):
    def limit_file_size():
        # Stands in for a full disk: writing beyond the limit fails with an OSError.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    process = start(tmp_path, preexec_fn=limit_file_size)
    _, errors = process.communicate("\n", timeout=60)
    assert process.returncode != 0
    assert errors.strip().splitlines()[-1].startswith("OSError: Cannot write the token store in")
    assert list(tmp_path.iterdir()) == []


def test_reading_needs_no_tensorflow(tmp_path):
    path = write(pathlib.Path(tmp_path))
    code = (
        "import sys; from dsbs_jax.data.store import TokenStore; "
        f"TokenStore.open({str(path)!r}).split('train').examples([0]); "
        "assert not {'tensorflow', 'seqio', 'jax', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
