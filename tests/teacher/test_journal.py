"""The journal: what counts is on disk, what is on disk is found, whatever ended the process that wrote it."""

import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsbs_jax.teacher import journal as journal_module
from dsbs_jax.teacher.journal import Journal, JournalError, Record, read_records
from dsbs_jax.teacher.requests import Answer, Failure


def record(number, text="an answer", name=""):
    return Record(f"{name}{number:032x}", f"train/{number}", 0, Answer(text, "stop", 700, 60))


texts = st.text(st.characters(exclude_categories=()), max_size=40)
counts = st.none() | st.integers(0, 1 << 40)
outcomes = st.builds(Answer, texts, st.none() | texts, counts, counts) | st.builds(Failure, texts, texts, st.booleans())
records = st.builds(Record, texts.filter(bool), texts, st.integers(0, 99), outcomes)


@settings(deadline=None)
@given(st.lists(records, max_size=8, unique_by=lambda one: one.key))
def test_what_is_written_is_read_back(tmp_path_factory, written):
    folder = tmp_path_factory.mktemp("journal")
    with Journal(folder) as journal:
        journal.append(written)
        known = [one for one in written if isinstance(one.outcome, Answer) or one.outcome.final]
        for opened in (journal, Journal(folder, read_only=True)):
            assert len(opened) == len(known)
            assert [opened.get(one.key) for one in known] == known
            assert list(read_records(folder)) == written
            opened.close()


@settings(deadline=None)
@given(cut=st.integers(0, 400))
def test_a_torn_end_is_cut_off_and_counted_and_nothing_else(tmp_path_factory, cut):
    folder = tmp_path_factory.mktemp("journal")
    with Journal(folder) as journal:
        journal.append([record(n) for n in range(3)])
    path = folder / "answers.jsonl"
    whole = path.read_bytes()
    size = max(0, len(whole) - cut)
    path.write_bytes(whole[:size])
    # A line without its end is complete all the same.
    kept = whole[: size + 1].count(b"\n")
    with Journal(folder) as journal:
        assert len(journal) == kept
        lines = whole.splitlines(keepends=True)
        assert journal.torn_bytes == max(0, size - len(b"".join(lines[:kept])))
        journal.append([record(n) for n in range(kept, 3)])
    assert path.read_bytes() == whole
    assert [one.row for one in read_records(folder)] == ["train/0", "train/1", "train/2"]


def test_zeros_that_a_power_loss_leaves_are_cut_off(tmp_path):
    with Journal(tmp_path) as journal:
        journal.append([record(0)])
    path = tmp_path / "answers.jsonl"
    whole = path.read_bytes()
    line = record(2).to_json().encode() + b"\n"
    # Blocks of the last group reach the disk in any order.
    path.write_bytes(whole + b"\0" * 100 + b"\n" + line)
    with Journal(tmp_path) as journal:
        assert len(journal) == 1
        assert journal.torn_bytes == 101 + len(line)
    assert path.read_bytes() == whole


def test_a_broken_line_in_the_middle_is_an_error_that_names_it(tmp_path):
    with Journal(tmp_path) as journal:
        journal.append([record(n) for n in range(5)])
    path = tmp_path / "answers.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    for broken in (lines[2][:30] + b"\n", b'{"key": "a"}\n', b"[]\n", b"\n"):
        path.write_bytes(b"".join([*lines[:2], broken, *lines[3:]]))
        with pytest.raises(JournalError, match=r"answers\.jsonl, line 3 is not a record of a journal"):
            Journal(tmp_path)
        with pytest.raises(JournalError, match="line 3"):
            list(read_records(tmp_path))


def test_several_files_are_one_journal(tmp_path):
    with Journal(tmp_path, "shard-0") as first, Journal(tmp_path, "shard-1") as second:
        first.append([record(0), record(1)])
        second.append([record(1), record(2)])
        # Each knows what was there when it was opened, and its own.
        assert len(first) == len(second) == 2
    with Journal(tmp_path, "shard-2") as journal:
        assert (len(journal), journal.duplicates) == (3, 1)
        assert journal.get(record(2).key) == record(2)
        assert [one.row for one in read_records(tmp_path)] == ["train/0", "train/1", "train/1", "train/2"]
        # A file that another process is writing may end in a line that is not whole yet: it is left alone.
        with (tmp_path / "shard-1.jsonl").open("ab") as file:
            file.write(b'{"key": "ab')
        size = (tmp_path / "shard-1.jsonl").stat().st_size
        assert len(list(read_records(tmp_path))) == 4
    assert len(Journal(tmp_path, read_only=True)) == 3
    assert (tmp_path / "shard-1.jsonl").stat().st_size == size


def test_an_answer_takes_the_place_of_a_failure(tmp_path):
    failure = Record("k", "train/0", 0, Failure("context_too_long", "too long"))
    later = Record("k", "train/0", 0, Failure("timeout", "no answer", final=False))
    answer = Record("k", "train/0", 0, Answer("yes"))
    with Journal(tmp_path) as journal:
        journal.append([later])
        assert "k" not in journal
        journal.append([failure])
        assert journal.failed("k")
        journal.append([answer])
        assert not journal.failed("k")
        journal.append([failure])
    with Journal(tmp_path) as journal:
        assert journal.get("k") == answer
        assert (len(journal), journal.duplicates) == (1, 0)


def test_one_fsync_a_group_before_the_keys_are_known(tmp_path, monkeypatch):
    synced = []
    with Journal(tmp_path) as journal:

        def fsync(descriptor):
            synced.append((os.fstat(descriptor).st_size, len(journal)))

        monkeypatch.setattr(journal_module.os, "fsync", fsync)
        journal.append([record(n) for n in range(1000)])
        assert len(synced) == 1
        assert synced[0][1] == 0, "known before it was on disk"
        assert len(journal) == 1000
        journal.append([record(n, "x" * 1000) for n in range(1000, 4000)])
        assert len(synced) < 8


def test_a_failed_write_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    with Journal(tmp_path) as journal:
        journal.append([record(0)])
        whole = journal.path.read_bytes()

        def fsync(descriptor):
            monkeypatch.undo()
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(journal_module.os, "fsync", fsync)
        with pytest.raises(
            JournalError, match=r"1 answers could not be written \(No space left on device\); make room"
        ):
            journal.append([record(1)])
        assert journal.path.read_bytes() == whole
        assert len(journal) == 1
        journal.append([record(2)])
    with Journal(tmp_path) as journal:
        assert [one.row for one in read_records(tmp_path)] == ["train/0", "train/2"]


def test_a_reader_does_not_write(tmp_path):
    journal = Journal(tmp_path, read_only=True)
    with pytest.raises(JournalError, match="open for reading only"):
        journal.append([record(0)])


# Starts a run over argv[2] finished rows of 1.5 kB, which it writes first where they are missing; prints what it took.
OPENING = """
import json, pathlib, sys, time
from dsbs_jax.teacher.asking import ask_all
from dsbs_jax.teacher.journal import Journal, Record
from dsbs_jax.teacher.openai_client import OpenAITeacher
from dsbs_jax.teacher.requests import Answer, Request, Sampling, request_key

folder, count = pathlib.Path(sys.argv[1]), int(sys.argv[2])
text = "Dogs bark at strangers, and the question asks for what barks. " * 22
text_shown = "what is known of it. " * 12
shown = tuple((role, f"{role} {n} {text_shown}") for n in range(10) for role in ("user", "assistant"))
sampling = Sampling()


def keyed():
    for n in range(count):
        request = Request(f"train/{n}", (*shown, ("user", f"question {n}")))
        yield request_key(request, "toy", sampling), request


if not folder.exists():
    begun = time.perf_counter()
    marks = []
    with Journal(folder) as journal:
        group = []
        for key, request in keyed():
            group.append(Record(key, request.row, 0, Answer(text, "stop", 800, 300)))
            if len(group) == 500:
                journal.append(group)
                group = []
                marks.append(time.perf_counter() - begun)
        journal.append(group)
    half = len(marks) // 2
    print(json.dumps({"write_s": marks[-1], "second_half_to_first": (marks[-1] - marks[half]) / marks[half]}))
else:
    begun, busy = time.perf_counter(), time.process_time()
    with Journal(folder) as journal:
        opened = time.process_time() - busy
        assert len(journal) == count
        teacher = OpenAITeacher("toy", base_url="http://127.0.0.1:1/v1")
        done = ask_all((request for _, request in keyed()), teacher, journal, sampling=sampling)
        assert (done.already, done.sent) == (count, 0)
        checked = time.process_time() - busy
    wall = time.perf_counter() - begun
    # Not getrusage: its peak begins with that of the process that started this one.
    status = pathlib.Path("/proc/self/status").read_text()
    peak = int(status.partition("VmHWM:")[2].split()[0]) * 1024
    print(json.dumps({"open_s": opened, "restart_s": checked, "wall_s": wall, "peak_bytes": peak}))
"""


def measure(folder, count):
    import json

    told = []
    for _ in range(2):
        command = [sys.executable, "-c", OPENING, str(folder), str(count)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=True)
        told.append(json.loads(done.stdout))
    return told[0] | told[1]


def test_opening_takes_time_and_memory_by_the_number_of_keys_not_by_their_texts(tmp_path):
    few, many = measure(tmp_path / "few", 4_000), measure(tmp_path / "many", 24_000)
    # Six times the rows; twice as much again for a machine that does other things.
    assert many["open_s"] < 12 * few["open_s"]
    # Below 400 bytes a row of 1.5 kB.
    assert many["peak_bytes"] - few["peak_bytes"] < 20_000 * 400


@pytest.mark.slow
@pytest.mark.lengthy
def test_opening_550000_finished_rows(tmp_path):
    took = measure(tmp_path / "journal", 550_000)
    print(took)
    # Processor time: the machine may do other things.
    assert took["restart_s"] < 20
    assert took["peak_bytes"] < 1e9
    # Appending stays linear.
    assert took["second_half_to_first"] < 1.5
