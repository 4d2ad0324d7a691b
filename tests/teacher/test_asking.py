"""Asking a server through faults: every row exactly once, whatever the server does and whenever the process dies."""

import collections
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from dsbs_jax.teacher.asking import ask_all
from dsbs_jax.teacher.desk import Asked, Limits
from dsbs_jax.teacher.journal import Journal, JournalError, read_records
from dsbs_jax.teacher.openai_client import OPENAI_URL, OpenAITeacher, find_key
from dsbs_jax.teacher.pacing import Concurrency, Patience
from dsbs_jax.teacher.prices import Prices
from dsbs_jax.teacher.provider_batches import ProviderBatches
from dsbs_jax.teacher.requests import Answer, Failure, Request, Sampling, TeacherError, request_key

# Back-off in tests is as short as it may be.
QUICK = Patience(first_seconds=0.002, longest_seconds=0.02)
# For servers that hang. Long enough for a busy machine's answers: one that comes too late is asked for again.
IMPATIENT = {"timeout_s": 2.0, "concurrency": Concurrency(48, 32, 64)}


def requests(count, word="question"):
    return [Request(f"train/{n}", f"{word} {n}") for n in range(count)]


def teacher(server, **options):
    options = {"patience": QUICK, "timeout_s": 20.0, "concurrency": Concurrency(16, 1, 64)} | options
    return OpenAITeacher("toy", base_url=server.url, **options)


def texts(folder):
    """The journal's answers by row; a row that is there twice is an error."""
    found = {}
    for record in read_records(folder):
        if isinstance(record.outcome, Answer):
            assert record.row not in found
            found[record.row] = record.outcome.text
    return found


def ask(folder, asked, server, limits=Limits(), *, teacher_options=None, **options):
    with Journal(folder) as journal:
        return ask_all(asked, teacher(server, **(teacher_options or {})), journal, limits, **options)


@pytest.mark.parametrize("api", ["chat", "completions"])
def test_answers_are_journalled_with_their_tokens(tmp_path, fault_server, api):
    server = fault_server()
    done = ask(tmp_path, requests(3), server, teacher_options={"api": api})
    assert done.complete
    assert (done.answered, done.sent, done.prompt_tokens) == (3, 3, 30)
    assert texts(tmp_path) == {f"train/{n}": f"answer to question {n}" for n in range(3)}
    again = ask(tmp_path, requests(4), server, teacher_options={"api": api})
    assert (again.already, again.answered, again.sent) == (3, 1, 1)


def test_a_chat_is_sent_as_its_messages_and_parameters(tmp_path, fault_server):
    sampling = Sampling(max_tokens=7, temperature=0.5, top_p=0.9, stop=("Q:",), seed=3, extra=(("top_k", 4),))
    from dsbs_jax.teacher import replies

    prompt = (("system", "be brief"), ("user", "why?"))
    assert replies.body(Request("a", prompt, sample=2), "m", sampling, "chat", "max_completion_tokens") == {
        "model": "m",
        "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "why?"}],
        "max_completion_tokens": 7,
        "temperature": 0.5,
        "top_p": 0.9,
        "stop": ["Q:"],
        "seed": 5,
        "top_k": 4,
    }
    with pytest.raises(ValueError, match="Row train/0: its prompt is a chat and api is 'completions'"):
        ask(tmp_path, [Request("train/0", prompt)], fault_server(), teacher_options={"api": "completions"})


def test_rows_with_the_same_text_share_one_answer(tmp_path, fault_server):
    server = fault_server()
    rows = [Request(f"train/{n}", f"question {n % 3}") for n in range(30)]
    done = ask(tmp_path, rows, server)
    assert (done.answered, done.sent, done.requests) == (3, 3, 30)
    assert done.shared + done.already == 27
    assert {key: len(events) for key, events in server.log().items()} == {f"question {n}": 1 for n in range(3)}


def check_faults(folder, server, count, done):
    assert done.complete
    assert texts(folder) == {f"train/{n}": f"answer to question {n}" for n in range(count)}
    log = server.log()
    kinds = collections.Counter(event for events in log.values() for event in events)
    # Nothing is asked again once an answer came, however it came.
    for asked, events in log.items():
        assert [event in ("ok", "twice") for event in events] == [False] * (len(events) - 1) + [True], asked
    assert done.sent == kinds.total()
    assert sum(done.retried.values()) == kinds.total() - count
    return kinds


def test_through_faults_every_row_is_answered_exactly_once(tmp_path, fault_server):
    server = fault_server(rate=0.2)
    count = 2000
    # Hangs end by the time limit: a short one, or the test would wait.
    done = ask(tmp_path, requests(count), server, teacher_options=IMPATIENT)
    kinds = check_faults(tmp_path, server, count, done)
    assert len(kinds) == 15, f"every kind of fault came up: {kinds}"


@pytest.mark.slow
def test_20000_requests_through_faults(tmp_path, fault_server):
    server = fault_server(rate=0.2)
    done = ask(tmp_path, requests(20_000), server, teacher_options=IMPATIENT)
    check_faults(tmp_path, server, 20_000, done)


def test_an_answer_that_comes_unasked_is_not_the_next_ones(tmp_path, fault_server):
    server = fault_server(rate=1.0, faults=["twice"])
    # One at a time over one connection: each second copy lies there when the next request is sent.
    done = ask(tmp_path, requests(200), server, teacher_options={"concurrency": Concurrency(1, 1, 1)})
    check_faults(tmp_path, server, 200, done)


@pytest.mark.parametrize("tells", [True, False])
def test_a_rate_limit_by_the_clock_is_kept_to(tmp_path, fault_server, tells):
    server = fault_server(limit=20, window_s=0.2, limit_tells=tells)
    done = ask(tmp_path, requests(100), server)
    assert done.complete
    assert len(texts(tmp_path)) == 100
    # Five windows of 20 must pass.
    assert done.seconds > 0.8
    if tells:
        # Who honours Retry-After is refused at most once by what was in flight at each window's end.
        assert done.retried["rate_limited"] < 5 * 64


def test_row_failures_are_final_and_the_run_goes_on(tmp_path, fault_server):
    rows = [*requests(3), Request("train/3", "length"), Request("train/4", "invalid"), Request("train/5", "empty")]
    server = fault_server()
    done = ask(tmp_path, rows, server)
    assert done.complete
    assert done.failed == {"context_too_long": 1, "bad_request": 1}
    # An empty text is an answer.
    assert texts(tmp_path)["train/5"] == ""
    outcomes = {record.row: record.outcome for record in read_records(tmp_path)}
    assert outcomes["train/3"].reason == "context_too_long"
    assert "maximum context length is 8192" in outcomes["train/3"].message
    assert ask(tmp_path, rows, server).sent == 0
    assert ask(tmp_path, rows, server, retry_failures=True).sent == 2


def test_a_row_that_always_fails_is_unfinished_and_asked_again_by_the_next_start(tmp_path, fault_server):
    server = fault_server()
    rows = [*requests(3), Request("train/3", "poison")]
    options = {"teacher_options": {"patience": Patience(attempts=3, first_seconds=0.0, longest_seconds=0.0)}}
    done = ask(tmp_path, rows, server, **options)
    assert done.unfinished == {"status_500": 1}
    assert not done.complete
    assert "start again" in done.text()
    assert len(server.log()["poison"]) == 3
    written = [record for record in read_records(tmp_path) if record.row == "train/3"]
    assert [record.outcome for record in written] == [Failure("status_500", "HTTP 500: an error of ours", final=False)]
    assert ask(tmp_path, rows, server, **options).sent == 3


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (401, None, "refuses the key .HTTP 401: as the test wants it.*api_key_variable"),
        (403, None, "refuses to answer"),
        (404, None, "does not know this model or this address"),
        (429, {"error": {"message": "no credit", "code": "insufficient_quota"}}, "no credit left"),
        (307, None, "no OpenAI-compatible server does"),
    ],
)
def test_what_every_request_would_meet_ends_the_run(tmp_path, fault_server, status, body, message):
    server = fault_server(status=status, status_body=body)
    with pytest.raises(TeacherError, match=message):
        ask(tmp_path, requests(1000), server)
    assert not texts(tmp_path)


WRONG = {"error": {"message": "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens'."}}
LONG = {"error": {"message": "This model's maximum context length is 8192 tokens."}}


@pytest.mark.parametrize("body", [WRONG, LONG])
@pytest.mark.parametrize("count", [1000, 3])
def test_refusals_and_no_answer_end_the_run_and_none_is_final(tmp_path, fault_server, body, count):
    server = fault_server(status=400, status_body=body)
    with pytest.raises(TeacherError, match=rf"refused the first {min(count, 20)} requests as wrong .*max_tokens_name"):
        ask(tmp_path, requests(count), server)
    with Journal(tmp_path, read_only=True) as journal:
        assert len(journal) == 0
    # What is mended is asked again.
    server.control(status=None)
    done = ask(tmp_path, requests(count), server)
    assert done.complete
    assert len(texts(tmp_path)) == count


def test_a_refusal_before_the_first_answer_is_final_once_there_is_one(tmp_path, fault_server):
    server = fault_server()
    rows = [Request("train/0", "invalid"), Request("train/1", "length"), *requests(3)]
    options = {"teacher_options": {"concurrency": Concurrency(1, 1, 1)}}
    # What is refused sets nothing aside for longer: the limit is enough for one at a time.
    limits = Limits(max_cost=0.4, prices=Prices(0.0, 1000.0))
    done = ask(tmp_path, rows, server, limits, **options)
    assert done.complete
    assert (done.failed, done.answered) == ({"bad_request": 1, "context_too_long": 1}, 3)
    assert ask(tmp_path, rows, server, **options).sent == 0
    # The last row may be the one that is refused.
    done = ask(tmp_path, [*rows, Request("train/9", "invalid again")], server, **options)
    assert (done.complete, done.failed) == (True, {"bad_request": 1})


def test_a_server_that_is_gone_ends_the_run(tmp_path, fault_server):
    server = fault_server()
    server.process.kill()
    server.process.wait()
    patience = Patience(attempts=2, first_seconds=0.0, longest_seconds=0.0, unfinished_in_a_row=5)
    with pytest.raises(TeacherError, match="requests in a row came to nothing, the last by no_connection"):
        ask(tmp_path, requests(1000), server, teacher_options={"patience": patience})


def test_a_wait_that_is_too_long_ends_the_run(tmp_path, fault_server):
    server = fault_server(limit=0, window_s=7200.0)
    with pytest.raises(TeacherError, match=r"asks to wait 7\d\d\d s"):
        ask(tmp_path, requests(10), server)


def test_a_row_that_cannot_be_read_costs_no_answer_that_is_on_its_way(tmp_path, fault_server):
    def rows():
        yield from requests(200)
        raise ValueError("train.jsonl, row 200: not a row.")

    server = fault_server(delay_s=0.2)
    with pytest.raises(ValueError, match="row 200: not a row"):
        ask(tmp_path, rows(), server)
    assert len(texts(tmp_path)) == len(server.log()) > 0


def test_max_requests_is_never_exceeded(tmp_path, fault_server):
    server = fault_server(rate=0.3, faults=["500", "429", "not_json"])
    done = ask(tmp_path, requests(500), server, Limits(max_requests=100))
    assert done.stopped == "max_requests"
    assert done.sent == 100 == sum(map(len, server.log().values()))
    # What was in flight is kept.
    assert done.answered == len(texts(tmp_path)) == 100 - sum(done.retried.values())
    assert ask(tmp_path, requests(500), server).complete


def test_max_cost_is_never_exceeded(tmp_path, fault_server):
    server = fault_server(rate=0.3, faults=["500", "429", "not_json"], delay_s=0.005)
    prices = Prices(prompt=1.0, completion=2.0)
    limits = Limits(max_cost=0.05, prices=prices)
    done = ask(tmp_path, requests(2000), server, limits, sampling=Sampling(max_tokens=100))
    assert done.stopped == "max_cost"
    # Answers that were lost count at their bound.
    spent = prices.cost(done.prompt_tokens, done.completion_tokens)
    lost = done.retried.get("malformed", 0)
    assert spent < done.cost <= 0.05
    assert lost > 0
    # It stops where one more request might cross the bound, not long before.
    bound = prices.cost(13 + 32, 100)
    assert done.cost > 0.05 - bound
    assert done.cost == pytest.approx(spent + sum(prices.cost(12 + 32, 100) for _ in range(lost)), rel=0.02)


def test_progress_tells_only_what_is_on_disk(tmp_path, fault_server):
    seen = []

    def progress(asked: Asked):
        seen.append((asked.answered, sum(1 for _ in read_records(tmp_path))))

    ask(tmp_path, requests(300), fault_server(), progress=progress, progress_seconds=0.0)
    assert len(seen) > 1
    assert all(told <= written for told, written in seen)
    assert seen[-1] == (300, 300)


def test_concurrency_grows_to_its_maximum_where_nothing_is_wrong_and_not_beyond(tmp_path, fault_server):
    server = fault_server(delay_s=0.01)
    # From 2 it takes 2 + 3 + ... + 32 = 527 answers. How many are in flight at once is the machine's business.
    asked = ask(tmp_path / "free", requests(600), server, teacher_options={"concurrency": Concurrency(2, 1, 32)})
    assert asked.concurrency == 32
    assert server.state()["most_in_flight"] <= 32


# --- processes that die ---

PROGRAM = """
import sys
from dsbs_jax.teacher.asking import ask_all
from dsbs_jax.teacher.journal import Journal
from dsbs_jax.teacher.openai_client import OpenAITeacher
from dsbs_jax.teacher.pacing import Concurrency, Patience
from dsbs_jax.teacher.requests import Request

url, folder, count = sys.argv[1:4]
teacher = OpenAITeacher("toy", base_url=url, concurrency=Concurrency(16, 1, 16), timeout_s=30.0)
rows = (Request(f"train/{n}", f"question {n}") for n in range(int(count)))
with Journal(folder) as journal:
    print(ask_all(rows, teacher, journal, grace_seconds=40.0).text(), flush=True)
"""


def start(server, folder, count):
    command = [sys.executable, "-c", PROGRAM, server.url, str(folder), str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_answers(folder, count):
    """Until the journal has so many lines."""
    deadline = time.monotonic() + 60
    path = folder / "answers.jsonl"
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_killed_at_any_moment_nothing_is_lost_and_nothing_on_disk_asked_again(tmp_path, fault_server):
    server = fault_server(delay_s=0.005, rate=0.05, faults=["500", "not_json", "cut_within"])
    count = 1500
    # How often a row had been asked when its answer was first seen on disk.
    asked_before: dict[str, int] = {}

    def check():
        found, log = texts(tmp_path), server.log()
        times = {row: len(log[row.replace("train/", "question ")]) for row in found}
        assert set(asked_before) <= set(found), "an answer was lost"
        assert {row: times[row] for row in asked_before} == asked_before, "a row was asked again"
        asked_before.update(times)

    for wanted in (1, 150, 600, 601, 1100):
        process = start(server, tmp_path, count)
        wait_for_answers(tmp_path, wanted)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
        check()
    process = start(server, tmp_path, count)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    check()
    assert texts(tmp_path) == {f"train/{n}": f"answer to question {n}" for n in range(count)}
    log = server.log()
    # Asked twice after an answer: only what was in flight at one of the five deaths.
    twice = sum(max(0, sum(event == "ok" for event in events) - 1) for events in log.values())
    assert twice <= 5 * 16 * 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_with_what_is_in_flight(tmp_path, fault_server, number):
    server = fault_server(delay_s=0.05)
    process = start(server, tmp_path, 5000)
    wait_for_answers(tmp_path, 20)
    process.send_signal(number)
    told, error = process.communicate(timeout=60)
    assert process.returncode == 0, error
    assert f"stopped by {number.name}" in told
    assert "start again with the same settings" in told
    # Everything that was asked has its answer on disk.
    assert len(texts(tmp_path)) == len(server.log()) < 5000


def test_a_second_signal_waits_for_nothing(tmp_path, fault_server):
    server = fault_server()
    process = start(server, tmp_path, 64)
    wait_for_answers(tmp_path, 64)
    process.communicate(timeout=60)
    server.control(rate=1.0, faults=["hang"])
    process = start(server, tmp_path, 5000)
    deadline = time.monotonic() + 60
    while len(server.log()) < 64 + 16:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    process.communicate(timeout=60)
    # Without the second one it would be the grace of 40 s.
    assert time.monotonic() - began < 30
    assert len(texts(tmp_path)) == 64


# --- a disk that is full ---

FULL = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
"""


def test_a_full_disk_is_one_sentence_and_what_counts_is_on_disk(tmp_path, fault_server):
    server = fault_server()
    command = [sys.executable, "-c", FULL + PROGRAM, server.url, str(tmp_path), "5000"]
    process = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert process.returncode == 1
    last = process.stderr.strip().splitlines()[-1]
    assert "could not be written (File too large); make room there and start again" in last
    assert process.stderr.count("Traceback") == 1, process.stderr
    with Journal(tmp_path) as journal:
        assert journal.torn_bytes == 0
        known = len(journal)
    assert f"the {known} known answers are on disk" in last
    assert 50 < known < 5000
    assert ask(tmp_path, requests(500), server).complete


# --- keys ---

KEY = "sk-secret/+=1234567890abcdef"

SECRETIVE = """
import logging, os, sys, traceback
logging.basicConfig(level=logging.DEBUG)
from dsbs_jax.teacher.asking import ask_all
from dsbs_jax.teacher.journal import Journal
from dsbs_jax.teacher.openai_client import OpenAITeacher
from dsbs_jax.teacher.requests import Request

teacher = OpenAITeacher("toy", base_url=sys.argv[1], api_key_variable="TEACHER_KEY")
print(repr(teacher))
rows = [Request(f"train/{n}", f"question {n}") for n in range(3)]
with Journal(sys.argv[2]) as journal:
    try:
        print(ask_all(rows, teacher, journal, progress=print))
    except Exception as error:
        traceback.print_exc()
        while error is not None:
            print(repr(error), vars(error), error.__traceback__ and error.__traceback__.tb_frame.f_locals.keys())
            error = error.__cause__ or error.__context__
"""


@pytest.mark.parametrize(
    ("status", "echo"),
    [(status, "echo") for status in (None, 400, 401, 500, 429)] + [(400, "echo escaped"), (401, "echo escaped")],
)
def test_the_key_shows_nowhere(tmp_path, fault_server, status, echo):
    server = fault_server(status=status, status_body=echo, faults=["500"], rate=0.2)
    folder = tmp_path / "out"
    folder.mkdir()
    with (folder / "log").open("w") as log:
        environment = os.environ | {"TEACHER_KEY": KEY, "OPENAI_LOG": "debug"}
        # A status for ever: the patience of a run is not what is tested.
        program = SECRETIVE.replace(
            'api_key_variable="TEACHER_KEY"',
            'api_key_variable="TEACHER_KEY", patience=__import__("dsbs_jax.teacher.pacing").teacher.pacing.Patience('
            "attempts=2, rate_limited=2, first_seconds=0.01)",
        )
        command = [sys.executable, "-c", program, server.url, str(folder)]
        subprocess.run(command, stdout=log, stderr=log, env=environment, timeout=120, check=True)
    # It was sent, and the server sent it back.
    assert server.state()["headers"][-1]["authorization"] == f"Bearer {KEY}"
    written = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    if status is not None:
        assert b"bad credentials: Bearer [key]" in written
    assert b"sk-secret" not in written
    assert b"1234567890abcdef" not in written


def test_no_key_is_needed_but_for_openai(tmp_path, fault_server, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    server = fault_server()
    assert ask(tmp_path, requests(1), server).complete
    assert "authorization" not in server.state()["headers"][-1]
    with (
        Journal(tmp_path) as journal,
        pytest.raises(ValueError, match="needs a key; put it into the environment variable OPENAI_API_KEY"),
    ):
        ask_all(requests(2), OpenAITeacher("gpt"), journal)


def test_what_cannot_be_a_key_is_refused_without_repeating_it(monkeypatch):
    monkeypatch.setenv("TEACHER_KEY", "\u201csk-123456789\u201d")
    with pytest.raises(ValueError, match="TEACHER_KEY holds characters that no key has") as refused:
        find_key("TEACHER_KEY", "http://localhost:1/v1")
    assert "sk-1" not in repr(refused.value)


@pytest.mark.parametrize("key", ["sk-proj-123456789", "sk 1", "", "1key", "schl\u00fcssel", "KEY\n"])
def test_what_is_no_variables_name_is_refused_without_repeating_it(key):
    url = "http://localhost:1/v1"
    for use in (
        lambda: find_key(key, url),
        lambda: OpenAITeacher("m", base_url=url, api_key_variable=key),
        lambda: ProviderBatches("m", base_url=url, api_key_variable=key),
    ):
        with pytest.raises(ValueError, match="api_key_variable is not the name of an environment variable") as refused:
            use()
        assert not key or key not in str(refused.value)


def test_a_key_that_looks_like_a_name_is_not_repeated():
    with pytest.raises(ValueError, match="the environment variable that api_key_variable names"):
        find_key("gsk_1234567890abcdef", OPENAI_URL)


def test_an_address_with_a_password_is_refused_without_repeating_it():
    with pytest.raises(ValueError, match="holds a user name or a password") as refused:
        OpenAITeacher("m", base_url="https://me:hunter2@host/v1")
    assert "hunter2" not in str(refused.value)


def test_the_journal_knows_what_makes_an_answer_reusable(tmp_path, fault_server):
    server = fault_server()
    assert ask(tmp_path, requests(2), server).sent == 2
    assert ask(tmp_path, requests(2), server, sampling=Sampling(max_tokens=99)).sent == 2
    with Journal(tmp_path) as journal:
        assert request_key(requests(1)[0], "toy", Sampling(max_tokens=99)) in journal
    assert json.loads((tmp_path / "answers.jsonl").read_text().splitlines()[0])["row"].startswith("train/")


def test_nothing_is_asked_that_could_not_be_written(tmp_path, fault_server):
    server = fault_server()
    with pytest.raises(JournalError, match="open for reading only"):
        ask_all(requests(3), teacher(server), Journal(tmp_path, read_only=True))
    assert not server.log()


def test_a_journal_that_is_being_written_is_refused(tmp_path):
    with Journal(tmp_path), pytest.raises(JournalError, match="is being written by another process"):
        Journal(tmp_path)
