"""Store requests: what their keys depend on, and how a worker's end comes back. The real worker has its own test."""

import dataclasses
import logging
import os
import shutil
import sys
import time

import pytest

from dsbs_jax.data import prepare
from dsbs_jax.data.custom import CustomDataset
from dsbs_jax.data.prepare import PrepareError, StoreRequest, default_store_root, ensure_store
from dsbs_jax.data.store import TokenStore
from dsbs_jax.data.vocabulary import Vocabulary
from dsbs_jax.schema import TaskFormat, make_method
from dsbs_jax.teacher.filters import Filter

WORKER = """
import os, signal, sys
from dsbs_jax.data.prepare import read_job
from dsbs_jax.data.store import StoreMeta, StoreWriter

request, root, key = read_job(sys.stdin.read())
print("prepare: 1 row", file=sys.stderr)
print("chatter", file=sys.stderr)
assert os.environ["CUDA_VISIBLE_DEVICES"] == "-1"
match request.name:
    case "broken":
        raise ValueError("cqa_train.json, line 3: not JSON.")
    case "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    case "silent":
        sys.exit(0)
    case "mute":
        sys.exit(3)
with StoreWriter(root, key) as writer:
    tasks = tuple(task.name for task in request.tasks)
    writer.split("train", tasks, 100).add([([5, 1], [6, 1])] * len(tasks), {"id": "train/0"})
    writer.commit(StoreMeta(request.name, "exact", tasks, "f", 100, request.feature_lengths, request=request.to_json()))
"""


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    (folder / "cqa" / "llm").mkdir(parents=True)
    (folder / "cqa" / "cqa_train.json").write_text("{}\n")
    (folder / "cqa" / "llm" / "train_CoT_0.json").write_text("[]")
    (folder / "asdiv").mkdir()
    (folder / "asdiv" / "ASDiv.xml").write_text("<a/>")
    (folder / "spiece.model").write_bytes(b"pieces")
    return folder


@pytest.fixture
def request_(data):
    tasks = make_method("step_by_step").tasks
    return StoreRequest("cqa", Vocabulary(str(data / "spiece.model")), tasks, data_dir=str(data))


@pytest.fixture
def stub_worker(tmp_path, monkeypatch):
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "stub_worker.py").write_text(WORKER)
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    monkeypatch.setattr(prepare, "WORKER", "stub_worker")


def test_json_round_trip(request_, data):
    full = dataclasses.replace(
        request_,
        label_source="teacher",
        feature_lengths=(64, 32),
        custom=CustomDataset("mine", "rows.jsonl", label_set=("a", "b"), label_mapping={"0": "a"}),
        dataset_arguments=(("creatures", 50), ("noise", 0.5), ("extra_inputs", "asdiv")),
        teacher=None,
        holdout_seed=3,
    )
    for request in (request_, full):
        assert StoreRequest.from_json(request.to_json()) == request


def test_equal_rows_have_equal_keys(request_, data, tmp_path):
    key = request_.key()
    assert key.startswith("cqa-")
    assert key == request_.key()
    shutil.copytree(data, tmp_path / "elsewhere")
    elsewhere = dataclasses.replace(
        request_,
        data_dir=str(tmp_path / "elsewhere"),
        vocabulary=Vocabulary(str(tmp_path / "elsewhere" / "spiece.model")),
        tasks=tuple(dataclasses.replace(task, weight=0.25) for task in request_.tasks),
    )
    assert elsewhere.key() == key
    (data / "cqa" / ".cache").write_text("hidden")
    (data / "svamp").mkdir()
    assert request_.key() == key


@pytest.mark.parametrize(
    "change",
    [
        {"tasks": (TaskFormat("label", "answer: "),)},
        {"label_source": "teacher"},
        {"feature_lengths": (1024, 255)},
        {"teacher": "other"},
        {"holdout_seed": 1},
        {"dataset_arguments": (("a", 1),)},
        {"module": "json"},
    ],
)
def test_what_changes_rows_changes_the_key(request_, change):
    assert dataclasses.replace(request_, **change).key() != request_.key()


def test_file_contents_change_the_key(request_, data):
    with_asdiv = dataclasses.replace(request_, dataset_arguments=(("extra_inputs", "asdiv"),))
    keys = [request_.key(), with_asdiv.key()]
    (data / "asdiv" / "ASDiv.xml").write_text("<b/>")
    assert request_.key() == keys[0]
    assert with_asdiv.key() != keys[1]
    for path in (data / "cqa" / "cqa_train.json", data / "cqa" / "llm" / "train_CoT_0.json"):
        path.write_text(path.read_text() + " ")
        keys.append(request_.key())
    shutil.move(data / "cqa" / "llm", data / "cqa" / "palm")
    keys.append(request_.key())
    vocabulary = data / "other.model"
    vocabulary.write_bytes(b"other pieces")
    keys.append(dataclasses.replace(request_, vocabulary=Vocabulary(str(vocabulary))).key())
    assert len(set(keys)) == len(keys)


def test_a_custom_datasets_files_are_in_its_key(request_, data):
    (data / "rows.jsonl").write_text("{}\n")
    custom = dataclasses.replace(request_, name="mine", custom=CustomDataset("mine", "rows.jsonl"))
    key = custom.key()
    (data / "rows.jsonl").write_text("{} \n")
    assert custom.key() != key


def test_hashing_is_cheap(request_, data):
    (data / "cqa" / "big.json").write_bytes(os.urandom(2**20) * 32)
    started = time.perf_counter()
    request_.key()
    # 32 MB; even without hardware SHA, 100 MB/s.
    assert time.perf_counter() - started < 2


def test_modules_are_found_without_importing_them(request_, tmp_path, monkeypatch):
    package = tmp_path / "modules" / "their_tasks"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "mixtures.py").write_text("x = 1")
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    keys = [dataclasses.replace(request_, module=name).key() for name in ("their_tasks", "their_tasks.mixtures")]
    (package / "mixtures.py").write_text("x = 2")
    keys += [dataclasses.replace(request_, module=name).key() for name in ("their_tasks", "their_tasks.mixtures")]
    assert len(set(keys)) == 4
    assert "their_tasks" not in sys.modules
    for name in ("absent_tasks", "their_tasks.absent"):
        with pytest.raises(ValueError, match=f"There is no Python module '{name}'"):
            dataclasses.replace(request_, module=name).key()


def test_modules_in_the_working_folder_are_found(request_, tmp_path, monkeypatch):
    (tmp_path / "my_tasks.py").write_text("")
    monkeypatch.chdir(tmp_path)
    assert dataclasses.replace(request_, module="my_tasks").key()


def test_labelled_rows_and_their_filter_are_in_the_key(request_, tmp_path):
    folder = tmp_path / "labels" / "teacher-0123456789"
    folder.mkdir(parents=True)
    (folder / "train.jsonl").write_text("{}\n")
    request = dataclasses.replace(request_, teacher=str(folder))
    filtered = dataclasses.replace(request, teacher_filter=Filter(min_agreement=2))
    keys = [request_.key(), request.key(), filtered.key()]
    (folder / "train.jsonl").write_text("{}\n{}\n")
    assert len({*keys, request.key()}) == 4
    assert StoreRequest.from_json(filtered.to_json()) == filtered


def test_bad_requests(request_):
    with pytest.raises(ValueError, match=r"feature_lengths is \(1024, 1\)"):
        dataclasses.replace(request_, feature_lengths=(1024, 1))
    with pytest.raises(FileNotFoundError, match="Cannot read the vocabulary"):
        dataclasses.replace(request_, vocabulary=Vocabulary("absent.model")).key()


def test_makes_a_store_once(request_, stub_worker, tmp_path, caplog, monkeypatch):
    with caplog.at_level(logging.INFO):
        path = ensure_store(request_, tmp_path / "stores")
    assert [record.getMessage() for record in caplog.records if "row" in record.getMessage()] == ["1 row"]
    store = TokenStore.open(path)
    assert store.meta.tasks == ("label", "rationale")
    assert StoreRequest.from_json(dict(store.meta.request)) == request_
    monkeypatch.setattr(prepare, "WORKER", "no_such_module")
    assert ensure_store(request_, tmp_path / "stores") == path


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("broken", r"^cqa_train\.json, line 3: not JSON\.$"),
        ("killed", "was ended by signal 9 .*try again"),
        ("silent", "ended without an error, but there is no token store"),
        ("mute", "chatter"),
    ],
)
def test_a_workers_end_comes_back_in_one_sentence(request_, stub_worker, tmp_path, name, message):
    with pytest.raises(PrepareError, match=message):
        ensure_store(dataclasses.replace(request_, name=name), tmp_path / "stores")
    assert not list((tmp_path / "stores").glob("*/meta.json"))


def test_a_folder_that_is_no_store_is_named(request_, stub_worker, tmp_path):
    folder = ensure_store(request_, tmp_path / "stores")
    (folder / "meta.json").unlink()
    with pytest.raises(PrepareError, match=r"meta\.json is missing. Remove the folder"):
        ensure_store(request_, tmp_path / "stores")


def test_an_unwritable_root_is_one_sentence(request_, stub_worker, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(PrepareError, match=r"^Cannot write the token store in .* DSBS_STORE_DIR\.$"):
        ensure_store(request_, tmp_path / "file" / "stores")


def test_default_root(monkeypatch, tmp_path):
    monkeypatch.setenv("DSBS_STORE_DIR", str(tmp_path))
    assert default_store_root() == tmp_path
    monkeypatch.delenv("DSBS_STORE_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_store_root() == tmp_path / ".cache" / "dsbs_jax" / "stores"
