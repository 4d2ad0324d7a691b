"""`dsbs label` and `dsbs parse` as a user meets them: processes of their own, against a server in another."""

import collections
import contextlib
import json
import pathlib
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from dsbs_jax.cli import main

ROWS = 96  # 12 creatures, 8 of their 12 attributes.
KEY = "sk-never-to-be-written-anywhere-0123456789"


@pytest.fixture
def words(label_server, tmp_path):
    """The command line of a labelling of a small bestiary; the server has forgotten what was before."""
    label_server.control()
    return (
        *("label", "--dataset", "bestiary", "--teacher", "teachers/vllm", "--output", tmp_path / "labels"),
        *("--gin.TEACHER_MODEL='expert'", f"--gin.TEACHER_URL='{label_server.url}'"),
        "--gin.DATASET_ARGUMENTS={'creatures': 12}",
    )


@pytest.fixture
def start(environment, tmp_path):
    """Starts `dsbs` without waiting for its end."""
    processes = []

    def run(*words):
        command = [sys.executable, "-m", "dsbs_jax", *map(str, words)]
        options = {"env": environment, "cwd": tmp_path, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        processes.append(subprocess.Popen(command, text=True, **options))
        return processes[-1]

    yield run
    for process in processes:
        process.kill()
        process.communicate()


def wait_for(server, count: int) -> None:
    """Returns when the server has received so many requests."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"{server.url}/wait?count={count}", timeout=60):
        pass


def asked(server) -> collections.Counter:
    """How often each question came in."""
    return collections.Counter(body["messages"][-1]["content"] for body in server.state()["bodies"])


def only_folder(path: pathlib.Path) -> pathlib.Path:
    (folder,) = path.iterdir()
    return folder


def test_a_split_is_labelled_once_and_judged(dsbs, words, tmp_path, label_server):
    process = dsbs(*words, "--report")
    assert process.returncode == 0, process.stderr
    folder = only_folder(tmp_path / "labels")
    lines = process.stdout.splitlines()
    assert lines[0].startswith(f"{ROWS} answers in ")
    assert lines[1].startswith(f"{ROWS} rows: ")
    assert lines[-1] == f"Labelled rows: {folder}"
    assert any(line.startswith("teacher's accuracy: ") for line in lines)
    assert {path.name for path in folder.iterdir()} == {
        *("labelling.json", "journal", "train.jsonl", "card.json", "card.md"),
        *("train.report.json", "train.report.html"),
    }
    again = dsbs(*words)
    assert again.returncode == 0
    assert again.stdout.startswith("0 answers in ")
    assert f"({ROWS} were there" in again.stdout
    assert set(asked(label_server).values()) == {1}

    # Training reads the folder: counts first, then the filter's.
    check = ("data", "check", "bestiary", "--json", f"--gin.TEACHER='{folder}'", words[-1])
    report = json.loads(dsbs(*check).stdout)["train"]
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    assert report["no_teacher_label"] == sum(row["teacher_label"] is None for row in rows)
    right = sum(row["teacher_label"] == row["label"] for row in rows)
    kept = dsbs(*check, "--gin.TEACHER_FILTER=@Filter()", "--gin.Filter.teacher_label_equals_gold=True")
    assert json.loads(kept.stdout)["train"]["kept"] == right < ROWS


def test_looking_sends_nothing_and_makes_nothing(dsbs, words, tmp_path, label_server):
    shown = dsbs(*words, "--dry-run", "-n", 1)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith("=== train/0, chat, ")
    estimate = dsbs(
        *words, "--estimate", "--gin.PRICES=@Prices()", "--gin.Prices.prompt=1", "--gin.Prices.completion=2"
    )
    assert estimate.stdout.startswith(f"{ROWS} requests (0 answered already")
    assert "cost: at most 0." in estimate.stdout
    assert not label_server.state()["bodies"]
    assert not (tmp_path / "labels").exists()


def test_a_limit_ends_with_status_3_and_says_how_to_go_on(dsbs, words, label_server):
    process = dsbs(*words, "--max-requests", 40)
    assert process.returncode == 3
    assert "stopped by max_requests; start again" in process.stdout
    assert f"{ROWS - 40} unanswered (train/" in process.stdout
    assert len(label_server.state()["bodies"]) == 40
    priceless = dsbs(*words, "--max-cost", 1)
    assert priceless.returncode == 1
    assert "give the prices per million tokens" in priceless.stderr
    prices = ("--gin.PRICES=@Prices()", "--gin.Prices.prompt=100", "--gin.Prices.completion=100")
    process = dsbs(*words, "--max-cost", 0.5, *prices, "--gin.MAX_TOKENS=256")
    assert process.returncode == 3
    assert "stopped by max_cost" in process.stdout
    assert set(asked(label_server).values()) == {1}


def hold_at_fifty(words, start, folder, server) -> subprocess.Popen:
    """A run of which fifty answers are on disk, and whose other requests are in flight and get no answer."""
    server.control(hold=50)
    process = start(*words)
    wait_for(server, 60)
    deadline = time.monotonic() + 60
    while sum(path.read_bytes().count(b"\n") for path in folder.glob("*/journal/*.jsonl")) < 50:
        assert time.monotonic() < deadline
        time.sleep(0.01)  # Of another process's file there is no event.
    return process


def test_after_a_kill_only_what_was_in_flight_is_asked_again(dsbs, words, start, tmp_path, label_server):
    process = hold_at_fifty(words, start, tmp_path / "labels", label_server)
    process.kill()
    process.wait()
    before = label_server.state()["bodies"]
    label_server.control()
    again = dsbs(*words)
    assert again.returncode == 0, again.stderr
    assert again.stdout.startswith(f"{ROWS - 50} answers in ")
    assert "(50 were there" in again.stdout
    now = asked(label_server)
    questions = [body["messages"][-1]["content"] for body in before]
    assert len(questions) >= 60
    assert not now.keys() & set(questions[:50])
    assert now.keys() >= set(questions[50:])
    rows = (only_folder(tmp_path / "labels") / "train.jsonl").read_text().splitlines()
    assert [json.loads(row)["samples"] for row in rows] == [1] * ROWS


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)],
)
def test_a_signal_ends_it_with_all_answers_on_disk(words, start, dsbs, tmp_path, label_server, number, status):
    process = hold_at_fifty(words, start, tmp_path / "labels", label_server)
    while process.poll() is None:
        # The second signal ends the waiting for what is in flight; sent at once, the two might be one.
        process.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=1)
    out, err = process.communicate()
    assert process.returncode == status, err
    assert out.startswith("50 answers in ")
    assert f"stopped by {number.name}; start again with the same settings to go on" in out
    assert "Traceback" not in err
    # `--merge` writes what there is, and asks nothing.
    merged = dsbs(*words, "--merge")
    assert f"{ROWS - 50} unanswered" in merged.stdout
    assert len(json.loads((only_folder(tmp_path / "labels") / "card.json").read_text())["train"]["first_gaps"]) == 10


def test_two_shards_at_once_in_one_folder(words, start, dsbs, label_server):
    shards = [start(*words, "--shard", f"{index}/2") for index in range(2)]
    for process in shards:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert out.startswith(f"{ROWS // 2} answers in ")
        assert out.splitlines()[-1].endswith("join all shards with --merge.")
    merged = dsbs(*words, "--merge")
    assert merged.returncode == 0, merged.stderr
    assert "unanswered" not in merged.stdout
    assert set(asked(label_server).values()) == {1}


def test_two_machines_with_disks_of_their_own_are_joined(dsbs, words, tmp_path):
    for index in (0, 1):
        process = dsbs(*words, "--output", tmp_path / f"machine-{index}", "--shard", f"{index}/2")
        assert process.returncode == 0, process.stderr
    one = dsbs(*words, "--output", tmp_path / "machine-0", "--merge")
    assert f"{ROWS // 2} unanswered" in one.stdout
    both = dsbs(*words, "--output", tmp_path / "machine-0", "--merge", tmp_path / "machine-1")
    assert both.returncode == 0, both.stderr
    assert f"{ROWS} rows: " in both.stdout
    assert "unanswered" not in both.stdout


@pytest.mark.parametrize(
    ("status", "sentence"),
    [
        (401, "The teacher refuses the key"),
        pytest.param(404, "The teacher does not know this model or this address", marks=pytest.mark.slow),
    ],
)
def test_a_refusal_is_one_sentence_and_the_key_is_nowhere(dsbs, words, tmp_path, label_server, status, sentence):
    label_server.control(status=status, echo=True)
    process = dsbs(*words, "--report", env={"OPENAI_API_KEY": KEY})
    assert process.returncode == 1
    assert process.stderr.splitlines()[-1].startswith(f"dsbs: {sentence} (HTTP {status}: no, Bearer [key])")
    assert "Traceback" not in process.stderr
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.name == "labelling.json" for path in written)
    texts = [process.stdout, process.stderr, *(path.read_text() for path in written)]
    assert not any(KEY in text for text in texts)


def test_a_server_that_is_not_there_is_one_sentence(dsbs, words):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # Bound and not listening: no connection.
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        quick = ("--gin.Patience.attempts=1", "--gin.OpenAITeacher.patience=@Patience()")
        process = dsbs(*words, f"--gin.TEACHER_URL='{url}'", *quick)
    assert process.returncode == 1
    assert "see whether the teacher is up, and start again to go on" in process.stderr.splitlines()[-1]
    assert "Traceback" not in process.stderr


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (("--shard", "1of2"), "--shard is '1of2'; it must be I/N"),
        (("--shard", "2/2"), "shard is 2/2; it must be 0/2 to 1/2"),
        (("--shard", "0/2", "--report"), "give it with --merge"),
        (("--split", "dev"), "has no split 'dev' of its own"),
        (("--prompt", "/nowhere.toml"), "/nowhere.toml"),
        (("--merge", "/nowhere"), "name the folder of a labelling"),
        (("--teacher", "teachers/vlm"), "Did you mean teachers/vllm.gin?"),
        (("--dataset", "bestiari"), "Did you mean"),
        (("--gin.SAMPELS=3",), "Did you mean SAMPLES?"),
        (("--gin.SAMPLES=3",), "set Sampling.temperature (the macro TEMPERATURE)"),
        (("--gin.DEMONSTRATIONS=50",), "50 demonstrations were asked for, and the prompt has 12"),
        (("--gin.TEACHER_URL='localhost:8000'",), "base_url is 'localhost:8000'; it must be like"),
        (("--gin.LabelConfig.format='csv'",), "format is 'csv'; it must be one of jsonl, parquet"),
    ],
)
def test_mistakes_end_in_one_sentence(words, more, sentence, capsys):
    # In this process: nothing here depends on its being another.
    assert main([*map(str, words), *more]) == 1
    told = capsys.readouterr().err.splitlines()
    assert sentence in told[-1]
    assert told[-1].startswith("dsbs: ")
    assert not any("Traceback" in line for line in told)


def test_a_dataset_of_ones_own_needs_two_text_files(dsbs, words, tmp_path, label_server):
    label_server.control(answers=["It is about money.\nTeam: billing"])
    rows = [{"body": f"Ticket {number}", "team": "billing"} for number in range(30)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "tickets.gin").write_text(
        "include 'datasets/custom.gin'\n"
        "CustomDataset.name = 'tickets'\n"
        "CustomDataset.train = 'rows.jsonl'\n"
        "CustomDataset.input = '{body}'\n"
        "CustomDataset.label = '{team}'\n"
        "CustomDataset.label_set = ('billing', 'net')\n"
        "CustomDataset.parser = @MarkerParser()\n"
        "MarkerParser.marker = 'Team:'\n"
        "MarkerParser.label = 'line'\n"
    )
    (tmp_path / "tickets.toml").write_text(
        'instruction = "Decide which team a ticket belongs to."\nquestion = "{input}"\nanswer = "{rationale}\\nTeam: '
        '{label}"\n[[demonstrations]]\ninput = "No money."\nrationale = "Money is billed."\nlabel = "billing"\n'
    )
    data = ("--data_dir", tmp_path)
    words = (*words[:2], tmp_path / "tickets.gin", *words[3:-1], "--prompt", tmp_path / "tickets.toml", *data)
    process = dsbs(*words, "--gin.LabelConfig.format='parquet'")
    assert process.returncode == 0, process.stderr
    assert "30 rows: 30 with a label, 30 with a rationale; accuracy 1.0000" in process.stdout
    folder = only_folder(tmp_path / "labels")
    vocabulary = ("--gin.VOCABULARY='bestiary'", "--gin.EXTRA_IDS=0")
    check = dsbs("data", "check", tmp_path / "tickets.gin", *data, "--json", f"--gin.TEACHER='{folder}'", *vocabulary)
    assert check.returncode == 0, check.stderr
    assert json.loads(check.stdout)["train"]["no_rationale"] == 0


@pytest.mark.slow
def test_a_student_learns_from_the_labelled_folder(dsbs, words, tmp_path):
    dsbs(*words)
    folder = only_folder(tmp_path / "labels")
    sizes = ("--gin.TRAIN_STEPS=4", "--gin.BATCH_SIZE=4", "--gin.EVAL_BATCH_SIZE=4")
    filtered = ("--gin.TEACHER_FILTER=@Filter()", "--gin.Filter.min_rationale_words=3")
    process = dsbs(
        *("train", "--gin_file", "datasets/bestiary", "--gin_file", "models/tiny", "--model_dir", tmp_path / "run"),
        *(words[-1], f"--gin.TEACHER='{folder}'", "--gin.LABEL_SOURCE='teacher'", *sizes, *filtered),
    )
    assert process.returncode == 0, process.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    short = sum(row["rationale"] is None for row in rows)
    assert f'"skipped: teacher filter: rationale_too_short": {short}' in json.dumps(summary)


ANSWERS = {
    0: ["A dog barks. So the answer is (a) dog.\n\nQ: And", "So the answer is (b) cat."],
    2: ["No idea."],
    10: ["A cat meows. So the answer is (b) cow."],
}


@pytest.fixture
def answer_files(tmp_path):
    for number, answers in ANSWERS.items():
        (tmp_path / f"test_CoT_{number}.json").write_text(json.dumps(answers))
    rows = [{"id": "x", "question": f"Who {word}?", "choices": ["dog", "cat"], "answer": "dog"} for word in "abcd"]
    (tmp_path / "rows.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "test_CoT_*.json", tmp_path / "rows.json"


def test_parse_tells_what_is_in_files_of_answers(dsbs, answer_files):
    answers, data = answer_files
    process = dsbs("parse", "--dataset", "cqa", "--answers", answers, "--data", data, "--json")
    assert process.returncode == 0, process.stderr
    report = json.loads(process.stdout)
    assert (report["rows"], report["parsed"], report["labels_outside_set"]) == (4, 2, 1)
    assert report["failures"] == {"no_rationale": 1, "no_marker": 1}
    assert report["teacher_accuracy"] == 0.25
    text = dsbs("parse", "--dataset", "cqa", "--answers", answers, "--data", data).stdout
    assert text.startswith("cqa: 2 of 4 answers read in full\n  no_rationale: 1\n")
    assert "teacher's accuracy: 25.00% of 4 rows" in text


def test_parse_reads_answers_of_a_dataset_of_ones_own_by_a_regular_expression(dsbs, tmp_path):
    (tmp_path / "rows.jsonl").write_text(
        '{"body": "no light", "team": "network"}\n{"body": "late", "team": "billing"}\n'
    )
    (tmp_path / "answers.json").write_text(json.dumps(["A cable. TEAM=network", "Who knows?"]))
    (tmp_path / "tickets.gin").write_text(
        "include 'datasets/custom.gin'\n"
        "CustomDataset.name = 'tickets'\n"
        "CustomDataset.train = 'rows.jsonl'\n"
        "CustomDataset.input = '{body}'\n"
        "CustomDataset.label = '{team}'\n"
        "CustomDataset.parser = @RegexParser()\n"
        "RegexParser.pattern = '(?P<rationale>.+) TEAM=(?P<label>\\\\w+)'\n"
    )
    words = ("--dataset", tmp_path / "tickets.gin", "--answers", tmp_path / "answers.json")
    process = dsbs("parse", *words, "--data", tmp_path / "rows.jsonl", "--json")
    assert process.returncode == 0, process.stderr
    report = json.loads(process.stdout)
    assert (report["parsed"], report["failures"], report["teacher_accuracy"]) == (1, {"no_match": 1}, 0.5)
    process = dsbs("parse", *words, "--gin.CustomDataset.nane='x'")
    assert "Did you mean name?" in process.stderr.splitlines()[-1]


def test_parse_refuses_in_one_sentence(dsbs, answer_files):
    answers, data = answer_files
    (answers.parent / "bad.json").write_text('{"answers": 3}')
    for words, sentence in (
        (("--dataset", "cqq", "--answers", answers), "There is no dataset 'cqq'"),
        (("--dataset", "cqa", "--answers", "/nowhere_*.json"), "There is no file of answers '/nowhere_*.json'"),
        (("--dataset", "cqa", "--answers", answers.parent / "bad.json"), "bad.json"),
        (("--dataset", "cqa", "--answers", answers.parent / "test_CoT_2.json", "--data", data), "has 4 rows, but"),
    ):
        process = dsbs("parse", *words)
        assert process.returncode == 1
        assert sentence in process.stderr.splitlines()[-1]
        assert "Traceback" not in process.stderr
