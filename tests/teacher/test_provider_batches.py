"""The batch API: submit, poll, ingest; a death between any two of them costs no answer and no second batch."""

import json
import re
import signal
import subprocess
import sys
import time

import pytest

from dsbs_jax.teacher.asking import ask_all
from dsbs_jax.teacher.desk import Limits
from dsbs_jax.teacher.journal import Journal, read_records
from dsbs_jax.teacher.prices import Prices
from dsbs_jax.teacher.provider_batches import ProviderBatches
from dsbs_jax.teacher.requests import Answer, Request, Sampling, TeacherError


def requests(count):
    return [Request(f"train/{n}", (("system", "be brief"), ("user", f"question {n}"))) for n in range(count)]


def ask(folder, server, asked, limits=Limits(), *, sampling=Sampling(), **options):
    options = {"poll_seconds": 0.01} | options
    with Journal(folder) as journal:
        return ask_all(
            asked, ProviderBatches("toy", base_url=server.url, **options), journal, limits, sampling=sampling
        )


def texts(folder):
    found = {}
    for record in read_records(folder):
        if isinstance(record.outcome, Answer):
            assert record.row not in found
            found[record.row] = record.outcome.text
    return found


def wanted(count):
    return {f"train/{n}": f"answer to question {n}" for n in range(count)}


def test_batches_are_split_answered_in_any_order_and_ingested_once(tmp_path, fault_server):
    server = fault_server(batch_polls=3, batch_faults={"twice": 1})
    done = ask(tmp_path, server, requests(25), requests_per_batch=10)
    assert done.complete
    assert (done.answered, done.sent) == (25, 25)
    assert texts(tmp_path) == wanted(25)
    assert server.state()["batch_creations"] == 3
    assert list((tmp_path / "batches-answers").iterdir()) == []
    assert ask(tmp_path, server, requests(25)).sent == 0


def test_files_are_split_by_size(tmp_path, fault_server):
    server = fault_server(max_batch_requests=3)
    assert ask(tmp_path, server, requests(9), bytes_per_batch=1000).complete
    assert server.state()["batch_creations"] >= 3


def test_what_comes_back_without_an_answer_goes_into_a_later_batch(tmp_path, fault_server):
    server = fault_server(batch_faults={"expired": 2, "line_500": 2, "missing": 2, "status": "expired"})
    done = ask(tmp_path, server, [*requests(10), Request("train/10", "length")])
    assert texts(tmp_path) == wanted(10)
    assert done.failed == {"context_too_long": 1}
    assert done.retried == {"no_answer_in_batch": 6}
    assert {events[-1] for events in server.log().values()} == {"ok", "length"}
    assert max(map(len, server.log().values())) == 2


def test_attempts_end(tmp_path, fault_server):
    server = fault_server(batch_faults={"expired": 100})
    done = ask(tmp_path, server, requests(4), attempts=2)
    assert done.unfinished == {"no_answer_in_batch": 4}
    assert done.sent == 8


def test_a_creation_whose_reply_is_lost_is_not_repeated(tmp_path, fault_server):
    server = fault_server(batch_faults={"create_cut": 1})
    assert ask(tmp_path, server, requests(4)).complete
    assert server.state()["batch_creations"] == 1


def test_a_refused_batch_is_told(tmp_path, fault_server):
    with pytest.raises(TeacherError, match=r"The batch API refuses .HTTP 400: too many requests in the file"):
        ask(tmp_path, fault_server(max_batch_requests=3), requests(4))
    server = fault_server(batch_faults={"missing": 4, "status": "failed"})
    with pytest.raises(TeacherError, match=r"The provider refused the batch batch-0 .no reason was given"):
        ask(tmp_path / "b", server, requests(4))


@pytest.mark.parametrize("word", ["length", "invalid"])
def test_a_batch_of_refusals_alone_ends_the_run_and_none_is_final(tmp_path, fault_server, word):
    server = fault_server()
    rows = [Request(f"train/{n}", (("user", f"{word} {n}"),)) for n in range(4)]
    with pytest.raises(TeacherError, match=r"refused the first 4 requests as wrong .HTTP 400"):
        ask(tmp_path, server, rows)
    with Journal(tmp_path, read_only=True) as journal:
        assert len(journal) == 0
    # With an answer beside them they are the rows' own.
    done = ask(tmp_path, server, [*rows, *requests(1)])
    assert done.complete
    assert sum(done.failed.values()) == 4
    # So are few that come last, not many.
    assert ask(tmp_path, server, [Request("train/5", (("user", f"{word} 5"),))]).complete
    with pytest.raises(TeacherError, match="refused the first 20 requests"):
        ask(tmp_path, server, [Request(f"train/{n}", (("user", f"{word} {n}"),)) for n in range(10, 30)])


def test_refused_batches_of_an_earlier_start_are_asked_with_the_mended_parameters(tmp_path, fault_server):
    server = fault_server(batch_refuses=True, batch_polls=0)
    with pytest.raises(TeacherError, match="refused the first 4 requests"):
        ask(tmp_path, server, requests(12), requests_per_batch=4)
    # The other two wait with the provider, as wrong as the first.
    assert len(list((tmp_path / "batches-answers").glob("*.rows.jsonl"))) == 2
    server.control(batch_refuses=False)
    assert ask(tmp_path, server, requests(12), requests_per_batch=4).complete
    assert texts(tmp_path) == wanted(12)


def test_answers_that_are_gone_are_told_and_asked_again(tmp_path, fault_server, caplog):
    server = fault_server(batch_faults={"gone": 1})
    limits = Limits(prices=Prices(0.0, 1.0))
    done = ask(tmp_path, server, requests(4), limits)
    assert done.complete
    assert texts(tmp_path) == wanted(4)
    assert done.retried == {"no_answer_in_batch": 4}
    # They were paid for.
    assert done.cost > 4 * 256 / 1e6
    assert re.search(
        r"no longer the answers of the batch batch-0 \(.*batches-answers/\w{32}\.json\); 4 rows", caplog.text
    )


def test_a_batch_that_the_provider_does_not_know_is_named(tmp_path, fault_server):
    first = fault_server(batch_polls=1_000_000)
    process = start(first, tmp_path)
    deadline = time.monotonic() + 60
    while len(list((tmp_path / "batches-answers").glob("*.json"))) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.communicate(timeout=60)
    with pytest.raises(
        TeacherError, match=r"does not know the batch batch-\d; see whether .*/batches-answers/\w{32}\."
    ):
        ask(tmp_path, fault_server(), requests(12))


def test_max_cost_bounds_what_is_submitted(tmp_path, fault_server):
    server = fault_server(batch_polls=2)
    sampling = Sampling(max_tokens=100)
    limits = Limits(max_cost=0.0021, prices=Prices(0.0, 1.0))
    done = ask(tmp_path, server, requests(500), limits, sampling=sampling)
    # 21 fit at their bound; their answers take 5 to 6 tokens of the 100 and so others fit, batch after batch.
    assert done.stopped == "max_cost"
    assert 0.0020 < done.cost <= 0.0021
    assert done.answered == len(texts(tmp_path)) > 100
    assert ask(tmp_path, server, requests(500), Limits(max_requests=7)).sent == 7


PROGRAM = """
import json, os, signal, sys
from dsbs_jax.teacher import provider_batches
from dsbs_jax.teacher.asking import ask_all
from dsbs_jax.teacher.journal import Journal
from dsbs_jax.teacher.requests import Request

url, folder, die = sys.argv[1:4]

def dying(name, before):
    function = getattr(provider_batches._Run, name)
    def wrapped(self, *arguments):
        os.kill(os.getpid(), signal.SIGKILL)
    async def around(self, *arguments):
        result = await function(self, *arguments)
        await self._desk.written()
        os.kill(os.getpid(), signal.SIGKILL)
    setattr(provider_batches._Run, name, wrapped if before else around)

where = {
    "before_submit": ("_submit", True), "after_create": ("_create", False), "after_submit": ("_submit", False),
    "while_ingesting": ("_ingest", False), "before_cleaning": ("_remove", True),
}
if die in where:
    dying(*where[die])
rows = [Request(f"train/{n}", (("system", "be brief"), ("user", f"question {n}"))) for n in range(12)]
with Journal(folder) as journal:
    teacher = provider_batches.ProviderBatches("toy", base_url=url, poll_seconds=0.01, requests_per_batch=5)
    print(ask_all(rows, teacher, journal).text())
"""


def start(server, folder, die=""):
    command = [sys.executable, "-c", PROGRAM, server.url, str(folder), die]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


# The two that cost most if they were wrong are tried each time.
@pytest.mark.parametrize(
    "die",
    ["after_create", "while_ingesting"]
    + [pytest.param(die, marks=pytest.mark.slow) for die in ("before_submit", "after_submit", "before_cleaning")],
)
def test_killed_anywhere_nothing_is_submitted_twice(tmp_path, fault_server, die):
    server = fault_server(batch_polls=2)
    # Dies at the same place again and again, then is left alone.
    for _ in range(2):
        process = start(server, tmp_path, die)
        process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL
    process = start(server, tmp_path)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 0, error
    assert texts(tmp_path) == wanted(12)
    log = server.log()
    assert len(log) == 12
    assert set(map(len, log.values())) == {1}, "a request was paid for twice"


def test_a_signal_leaves_batches_with_the_provider(tmp_path, fault_server):
    server = fault_server(batch_polls=1_000_000)
    process = start(server, tmp_path)
    deadline = time.monotonic() + 60
    while len(list((tmp_path / "batches-answers").glob("*.json"))) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    told, error = process.communicate(timeout=60)
    assert process.returncode == 0, error
    assert "stopped by SIGTERM" in told
    server.control(batch_polls=1)
    done = ask(tmp_path, server, requests(12))
    assert done.complete
    assert texts(tmp_path) == wanted(12)
    assert set(map(len, server.log().values())) == {1}
    state = json.dumps(server.state()["batches"])
    assert state.count("dsbs_batch") == 3


@pytest.mark.parametrize("echo", ["echo", "echo escaped"])
def test_the_key_is_in_no_file_and_no_message(tmp_path, fault_server, monkeypatch, echo):
    key = "sk-12345678/90=abcdef"
    monkeypatch.setenv("OPENAI_API_KEY", key)
    server = fault_server(batch_faults={"expired": 1})
    ask(tmp_path, server, requests(3))
    server.control(status=401, status_body=echo)
    with pytest.raises(TeacherError, match=r"refuses the key .*Bearer \[key\]") as refused:
        ask(tmp_path, server, requests(9))
    error = refused.value
    assert error.__cause__ is None
    assert error.__context__ is None
    assert all(key.encode() not in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
