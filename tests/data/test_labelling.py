"""Labelling a dataset's rows, against a server in a process of its own that remembers what it was sent."""

import collections
import dataclasses
import json
import logging
import os
import pathlib
import threading

import pytest

import dsbs_jax.tasks
from dsbs_jax.data import label_progress
from dsbs_jax.data.custom import CustomDataset
from dsbs_jax.data.label_card import summary
from dsbs_jax.data.label_folder import open_folder, take_journals
from dsbs_jax.data.label_progress import Progress, progress_line
from dsbs_jax.data.labelling import LabelConfig, Labelling
from dsbs_jax.tasks import DATASETS
from dsbs_jax.teacher.desk import Asked, Limits
from dsbs_jax.teacher.labelled import read_labelled
from dsbs_jax.teacher.openai_client import OpenAITeacher
from dsbs_jax.teacher.pacing import Concurrency
from dsbs_jax.teacher.parsers import RegexParser
from dsbs_jax.teacher.prices import Prices
from dsbs_jax.teacher.requests import Sampling

PROMPTS = pathlib.Path(dsbs_jax.tasks.__file__).with_name("prompts")
ROWS = 96  # 12 creatures, 8 of their 12 attributes.


@pytest.fixture
def label(label_server, tmp_path):
    """Makes labellings of a small bestiary that ask the server, which has forgotten what was before."""
    label_server.control()

    def make(**options) -> Labelling:
        teacher = {"model": "expert", "base_url": label_server.url} | options.pop("teacher", {})
        defaults = {"dataset": "bestiary", "output": str(tmp_path), "dataset_arguments": (("creatures", 12),)}
        return Labelling(LabelConfig(**defaults | options, teacher=OpenAITeacher(**teacher)))

    return make


@pytest.fixture
def sent(label_server):
    """The bodies that the server received."""
    return lambda: label_server.state()["bodies"]


def rows_of(labelling: Labelling) -> list[dict]:
    return list(read_labelled(labelling.folder / f"{labelling.config.split}.{labelling.config.format}"))


def questions(bodies: list[dict]) -> collections.Counter:
    return collections.Counter(body["messages"][-1]["content"] for body in bodies)


def test_every_row_is_labelled_in_its_order(label, sent):
    labelling = label()
    asked = labelling.ask()
    card = labelling.write()
    assert (asked.answered, asked.complete, len(sent())) == (ROWS, True, ROWS)
    rows = rows_of(labelling)
    source = DATASETS["bestiary"].with_arguments(creatures=12).source_rows("train")
    assert [(row["id"], row["input"], row["label"]) for row in rows] == [(e.id, e.input, e.label) for e in source]
    for row in rows:
        assert row["answers"][0].startswith(row["rationale"] or "A ")
        assert (row["teacher_label"] is None) == (row["failure"] == "no_marker")
        assert (row["samples"], row["prompt_tokens"]) == (1, 100)
    right = sum(row["teacher_label"] == row["label"] for row in rows)
    assert card["accuracy"] == right / ROWS > 0.5
    assert (card["rows"], card["gaps"], card["duplicates"], card["answers"]) == (ROWS, 0, 0, ROWS)
    assert f"{right / ROWS:.4f} of {ROWS}" in (labelling.folder / "card.md").read_text()
    assert "teacher's accuracy" in labelling.report()
    assert "<svg" in (labelling.folder / "train.report.html").read_text()


def test_rows_are_written_again_only_where_something_is_new(label):
    first = label()
    assert first.written() is None
    assert not first.ask().nothing_new
    card = first.write()
    assert label().ask().nothing_new
    assert label().written() == card
    assert label(format="parquet").written() is None
    assert label(limits=Limits(prices=Prices(1.0, 2.0))).written() is None
    assert label(dataset_arguments=(("creatures", 12), ("seed", 1))).written() is None
    (journal,) = (first.folder / "journal").glob("*.jsonl")
    os.utime(journal)
    assert label().written() is None


def test_rows_are_written_again_for_another_parser(label, monkeypatch):
    first = label()
    first.ask()
    card = first.write()
    monkeypatch.setitem(
        DATASETS,
        "bestiary",
        dataclasses.replace(DATASETS["bestiary"], parse=RegexParser("(?P<rationale>.+) is (?P<label>x)")),
    )
    # The prompt's demonstrations do not read back with it; the labelling is the same, read in another way.
    monkeypatch.setattr("dsbs_jax.data.labelling.make_prompt", lambda *_, **__: first.prompt)
    again = label()
    assert again.folder == first.folder
    assert again.ask().nothing_new
    assert again.written() is None
    assert again.write()["labelled"] != card["labelled"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"demonstrations": "4"}, "demonstrations is '4'; it must be a whole number"),
        ({"demonstrations": 2.5}, "demonstrations is 2.5"),
        ({"samples": "3"}, "samples is '3'"),
        ({"sampling": {"max_tokens": 2.5}}, "max_tokens is 2.5"),
        ({"sampling": {"stop": (1,)}}, r"stop is \(1,\)"),
        ({"sampling": {"extra": (("a", b"b"),)}}, "its values must be JSON's"),
    ],
)
def test_values_of_a_wrong_type_are_refused_in_a_sentence(label, options, sentence):
    def make():
        sampling = {"sampling": Sampling(**options["sampling"])} if "sampling" in options else {}
        return label(**options | sampling)

    with pytest.raises(ValueError, match=sentence):
        make()


@pytest.mark.parametrize("api", ["chat", "completions"])
def test_dry_run_shows_exactly_what_is_sent(label, sent, api):
    sampling = Sampling(max_tokens=50, temperature=0.5, seed=3, extra=(("min_p", 0.1),))
    labelling = label(teacher={"api": api, "max_tokens_name": "max_completion_tokens"}, sampling=sampling)
    shown = labelling.dry_run(2)
    assert not sent()
    assert not labelling.folder.exists()
    blocks = shown.removeprefix("=== ").split("\n=== ")
    labelling.ask()
    bodies = {str(body.get("messages") or body["prompt"]): body for body in sent()}
    assert len(blocks) == 2
    for block in blocks:
        head, _, text = block.partition("\n")
        text, _, parameters = text.rpartition("\n--- with ")
        assert f", {api}, " in head
        assert "tokens" in head
        turns = [turn.partition("\n") for turn in ("\n" + text).split("\n--- ")[1:]]
        prompt = [{"role": role, "content": content} for role, _, content in turns] if api == "chat" else text
        body = bodies[str(prompt)]
        prompt_name = "messages" if api == "chat" else "prompt"
        assert json.loads(parameters) | {prompt_name: prompt} == body


def test_the_estimate_foresees_what_asking_takes(label, sent):
    limits = Limits(max_requests=30, prices=Prices(2.0, 8.0))
    labelling = label(limits=limits, sampling=Sampling(max_tokens=64))
    before = labelling.estimate()
    assert not sent()
    assert (before.requests, before.already) == (ROWS, 0)
    assert before.completion_tokens_at_most == ROWS * 64
    assert before.cost_at_most == pytest.approx((before.prompt_tokens * 2 + ROWS * 64 * 8) / 1e6)
    assert labelling.ask().stopped == "max_requests"
    after = labelling.estimate()
    assert (after.requests, after.already) == (ROWS - 30, 30)
    assert after.prompt_tokens == pytest.approx(before.prompt_tokens * (ROWS - 30) / ROWS, rel=0.02)


@pytest.mark.parametrize(
    ("limits", "stopped"),
    [
        (Limits(max_requests=40), "max_requests"),
        (Limits(max_cost=0.6, prices=Prices(100.0, 100.0)), "max_cost"),
    ],
)
def test_a_limit_stops_cleanly_and_the_next_run_goes_on(label, sent, limits, stopped):
    labelling = label(limits=limits, sampling=Sampling(max_tokens=16))
    asked = labelling.ask()
    assert (asked.stopped, asked.complete) == (stopped, False)
    assert 0 < asked.answered == len(sent()) < ROWS
    assert asked.cost is None or asked.cost <= limits.max_cost
    card = labelling.write()
    assert card["gaps"] == ROWS - asked.answered
    assert card["first_gaps"][0] in summary(card)
    assert [row["id"] for row in rows_of(labelling) if row["failure"] == "unanswered"][:10] == card["first_gaps"]
    rest = label(sampling=Sampling(max_tokens=16)).ask()
    assert (rest.already, rest.answered) == (asked.answered, ROWS - asked.answered)
    assert set(questions(sent()).values()) == {1}


def test_what_a_provider_charges_is_on_the_card(label):
    labelling = label(limits=Limits(prices=Prices(1.0, 2.0)))
    asked = labelling.ask()
    card = labelling.write()
    assert card["cost"] == pytest.approx((ROWS * 100 + 2 * card["completion_tokens"]) / 1e6)
    assert card["cost"] == pytest.approx(asked.cost)


@pytest.mark.parametrize(
    ("changed", "phrase"),
    [
        ({"teacher": {"model": "other"}}, "model ('expert' there, 'other' here)"),
        ({"teacher": {"api": "completions"}}, "api ('chat' there, 'completions' here)"),
        ({"sampling": Sampling(max_tokens=99)}, "sampling.max_tokens (256 there, 99 here)"),
        ({"zero_shot": True}, "prompt.demonstrations ("),
        ({"demonstrations": 3}, "prompt.demonstrations ("),
    ],
)
def test_another_prompt_model_or_parameter_is_another_labelling_beside_the_first(label, caplog, changed, phrase):
    first, second = label(), label(**changed)
    caplog.set_level(logging.INFO)
    for labelling in (first, label(), second):
        open_folder(labelling.folder, labelling.identity)
    assert first.folder != second.folder
    assert first.folder.parent == second.folder.parent
    (told,) = caplog.messages
    assert phrase in told


def test_texts_that_are_not_sent_and_more_samples_are_the_same_labelling(label, tmp_path):
    text = (PROMPTS / "bestiary.toml").read_text()
    assert "Let's think step by step." in text
    changed = tmp_path / "changed.toml"
    changed.write_text(text.replace("Let's think step by step.", "Think."))
    hot = Sampling(temperature=0.7)
    assert label(prompt=str(changed)).folder == label().folder
    assert label(prompt=str(changed), zero_shot=True).folder != label(zero_shot=True).folder
    assert label(samples=3, sampling=hot).folder == label(sampling=hot).folder


def test_shards_of_two_machines_are_merged_and_gaps_and_duplicates_told(label, tmp_path, sent):
    shards = [label(shard=(index, 3), output=str(tmp_path / f"machine{index}")) for index in range(3)]
    for labelling in shards[:2]:
        labelling.ask()
    # A third machine did the first one's work again, by mistake.
    again = label(shard=(0, 3), output=str(tmp_path / "machine3"))
    again.ask()
    merged = label(output=str(tmp_path / "merged"))
    others = [shards[0].folder, tmp_path / "machine1", again.folder]
    for _ in range(2):  # Merging what is merged already changes nothing.
        take_journals(merged.folder, merged.identity, others)
        card = merged.write()
        assert (card["gaps"], card["duplicates"], card["labelled"] > 0) == (ROWS // 3, ROWS // 3, True)
    assert card["first_gaps"] == [row.id for row in merged.rows[2::3]][:10]
    take_journals(merged.folder, merged.identity, others)
    before = len(sent())
    assert merged.ask().answered == ROWS // 3
    assert len(sent()) == before + ROWS // 3
    assert merged.write()["gaps"] == 0


def test_merging_another_labelling_is_refused_and_says_what_differs(label, tmp_path):
    other = label(sampling=Sampling(max_tokens=99), output=str(tmp_path / "other"))
    open_folder(other.folder, other.identity)
    mine = label(output=str(tmp_path / "mine"))
    with pytest.raises(ValueError, match=r"sampling\.max_tokens \(99 there, 256 here\)"):
        take_journals(mine.folder, mine.identity, [other.folder])
    with pytest.raises(FileNotFoundError, match=r"name the folder of a labelling"):
        take_journals(mine.folder, mine.identity, [tmp_path])
    assert not mine.folder.exists()


def test_two_machines_may_share_one_folder(label, sent):
    shards = [label(shard=(index, 2)) for index in range(2)]
    threads = [threading.Thread(target=labelling.ask) for labelling in shards]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(list((shards[0].folder / "journal").glob("*.jsonl"))) == 2
    assert label().write()["gaps"] == 0
    assert label().ask().already == ROWS
    assert set(questions(sent()).values()) == {1}


def test_samples_vote(label, label_server, sent):
    label_server.control(answers=[f"Because {word}. So the answer is {word}." for word in ("moss", "clay", "moss")])
    labelling = label(samples=3, sampling=Sampling(temperature=0.7, seed=0))
    labelling.ask()
    card = labelling.write()
    assert len(sent()) == 3 * ROWS
    for row in rows_of(labelling):
        assert (row["teacher_label"], row["rationale"]) == ("moss", "Because moss.")
        assert (row["agreement"], row["samples"], len(row["answers"])) == (2, 3, 3)
    assert (card["answers"], card["samples"], card["rows_with_fewer_samples"]) == (3 * ROWS, 3, 0)


def test_more_samples_later_ask_only_what_is_new(label, sent):
    hot = Sampling(temperature=0.7, seed=5)
    label(sampling=hot).ask()
    asked = label(samples=2, sampling=hot).ask()
    assert (asked.already, asked.answered) == (ROWS, ROWS)
    assert collections.Counter(body["seed"] for body in sent()) == {5: ROWS, 6: ROWS}


def test_an_unfinished_sample_leaves_the_others(label):
    hot = Sampling(temperature=0.7, seed=5)
    label(sampling=hot).ask()
    label(samples=2, sampling=hot, limits=Limits(max_requests=20)).ask()
    card = label(samples=2, sampling=hot).write()
    assert (card["gaps"], card["rows_with_fewer_samples"]) == (0, ROWS - 20)
    assert f"{ROWS - 20} with fewer than 2 samples" in summary(card)


def test_greedy_samples_are_refused(label):
    with pytest.raises(ValueError, match=r"one answer 3 times: set Sampling\.temperature \(the macro TEMPERATURE\)"):
        label(samples=3)


TICKETS = """
instruction = "Decide which team a ticket belongs to."
question = "Ticket: {input}"
cue = "Reason:"
answer = "{rationale} => {label}"
stop = ["\\nTicket:"]

[rationalisation]
question = "Ticket: {input}\\nTeam: {label}"
instruction = "The team is given."

[[demonstrations]]
input = "The screen stays black."
rationale = "A screen is a device."
label = "hardware"

[[demonstrations]]
input = "I was charged twice."
rationale = "A charge is about money."
label = "billing"
"""


@pytest.fixture
def tickets(tmp_path):
    """A user's own dataset and prompt, without Python: three rows, one of them without a gold label."""
    rows = [("The dns fails", "network"), ("The card is lost", None), ("The fan is loud", "hardware")]
    (tmp_path / "tickets.jsonl").write_text("".join(json.dumps({"body": b, "team": t}) + "\n" for b, t in rows))
    (tmp_path / "prompt.toml").write_text(TICKETS)
    return {
        "dataset": "custom",
        "dataset_arguments": (),
        "data_dir": str(tmp_path),
        "prompt": str(tmp_path / "prompt.toml"),
        "custom": CustomDataset(
            name="tickets",
            train="tickets.jsonl",
            input="{body}",
            label="{team}",
            parser=RegexParser(r"(?s)^(?P<rationale>.+?)=>(?P<label>.+)$"),
            label_set=("billing", "hardware", "network"),
        ),
    }


def test_a_dataset_of_ones_own(label, label_server, sent, tickets):
    label_server.control(answers=["It is a NAME. => network"])
    labelling = label(**tickets)
    labelling.ask()
    labelling.write()
    assert [row["teacher_label"] for row in rows_of(labelling)] == ["network"] * 3
    assert rows_of(labelling)[0]["rationale"] == "It is a NAME."
    assert sent()[0]["messages"][0] == {"role": "system", "content": "Decide which team a ticket belongs to."}
    assert sent()[0]["stop"] == ["\nTicket:"]
    read = tickets["custom"].to_dataset().load("train", tickets["data_dir"], teacher=str(labelling.folder))
    assert {example.rationale for example in read.examples} == {"It is a NAME."}


def test_rows_with_the_same_text_share_one_answer_that_is_paid_once(label, label_server, sent, tickets, tmp_path):
    label_server.control(answers=["It is a name. => network"])
    lines = (tmp_path / "tickets.jsonl").read_text()
    (tmp_path / "tickets.jsonl").write_text(lines + lines)
    labelling = label(**tickets, limits=Limits(prices=Prices(1e4, 0.0)))
    assert labelling.ask().shared == len(sent()) == 3
    card = labelling.write()
    assert (card["rows"], card["labelled"], card["answers"], card["prompt_tokens"]) == (6, 6, 3, 300)
    assert card["cost"] == 3.0


def test_rationalisation_shows_the_gold_label_and_leaves_out_rows_without_one(label, label_server, sent, tickets):
    label_server.control(answers=["Names are the network's. => network"])
    labelling = label(**tickets, rationalise=True)
    shown = labelling.dry_run(5)
    assert shown.count("=== ") == 2
    assert labelling.ask().requests == 2
    assert set(questions(sent())) == {
        "Ticket: The dns fails\nTeam: network",
        "Ticket: The fan is loud\nTeam: hardware",
    }
    card = labelling.write()
    assert [row["failure"] for row in rows_of(labelling)] == [None, "no_gold_label", None]
    assert (card["failures"], card["gaps"]) == ({"no_gold_label": 1}, 0)


def test_what_a_dataset_lacks_is_said_before_anything_is_sent(label, tickets):
    without = dataclasses.replace(tickets["custom"], parser=None)
    with pytest.raises(ValueError, match=r"tickets.*give CustomDataset\.parser a MarkerParser or a RegexParser"):
        label(**tickets | {"custom": without})
    with pytest.raises(ValueError, match=r"comes without a prompt: name a prompt file with --prompt"):
        label(**tickets | {"prompt": ""})
    with pytest.raises(ValueError, match=r"has no split 'test' of its own.*label train"):
        label(**tickets, split="test")
    with pytest.raises(ValueError, match=r"shard is 2/2; it must be 0/2 to 1/2"):
        label(shard=(2, 2))
    with pytest.raises(ValueError, match=r"no \[zero_shot\] table"):
        label(**tickets, zero_shot=True)


def test_zero_shot_shows_no_demonstrations(label, sent):
    labelling = label(zero_shot=True)
    labelling.ask()
    for body in sent():
        assert [message["role"] for message in body["messages"]] == ["system", "user"]
        assert body["messages"][-1]["content"].endswith("Let's think step by step.")


def test_demonstrations_are_drawn_by_seed(label, sent):
    shown = {}
    for count, seed in ((3, 0), (4, 0), (3, 1)):
        messages = label(demonstrations=count, demonstration_seed=seed).rendered(label().rows[0])
        shown[count, seed] = [content for role, content in messages if role == "user"][:-1]
    assert shown[4, 0][:3] == shown[3, 0] != shown[3, 1]


def test_parquet_takes_the_place_of_json_lines(label):
    lines, parquet = label(), label(format="parquet")
    lines.ask()
    lines.write()
    expected = rows_of(lines)
    parquet.write()
    assert rows_of(parquet) == expected
    assert not (lines.folder / "train.jsonl").exists()
    assert "teacher's accuracy" in parquet.report()


def test_a_final_failure_stays_until_it_is_asked_for_again(label, label_server, sent):
    # A server that answered is right about the rows that it refuses.
    label_server.control(status=400, after=20)
    labelling = label()
    asked = labelling.ask()
    assert (asked.answered, asked.failed) == (20, {"bad_request": ROWS - 20})
    assert labelling.write()["failures"]["bad_request"] == ROWS - 20
    label_server.control()
    assert label().ask().sent == 0
    assert label(retry_failures=True).ask().answered == ROWS - 20
    assert labelling.write()["failures"].keys() == {"no_marker"}


def test_svamp_with_the_inputs_of_asdiv(label, label_server, shared_data, tmp_path):
    label_server.control(answers=["One and one. The answer is ( 1 + 1 )."])
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "svamp").symlink_to(shared_data / "dss" / "svamp")
    (tmp_path / "data" / "asdiv").symlink_to(shared_data / "asdiv")
    arguments = (("extra_inputs", "asdiv"),)
    options = {"dataset": "svamp", "dataset_arguments": arguments, "data_dir": str(tmp_path / "data")}
    label(**options, shard=(0, 20)).ask()
    whole = label(**options)
    card = whole.write()
    assert card["rows"] == 800 + 2305
    rows = rows_of(whole)
    answered = [row for row in rows if row["answers"]]
    assert len(answered) == -(-card["rows"] // 20)
    assert {row["id"].partition("/")[0] for row in answered} == {"train", "asdiv"}
    assert {row["teacher_label"] for row in answered} == {"( 1 + 1 )"}
    assert all(row["label"] is None for row in rows if row["id"].startswith("asdiv"))
    split = DATASETS["svamp"].with_arguments(arguments).load("train", options["data_dir"], teacher=str(whole.folder))
    assert {e.teacher.label for e in split.examples if e.teacher and e.teacher.label} == {"( 1 + 1 )"}
    assert split.counts.unlabelled > 0


def test_progress_is_told_as_a_line(label, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    before = Asked(already=100, answered=50, concurrency=8, seconds=10.0)
    now = Asked(already=100, answered=250, failed={"x": 1}, concurrency=16, seconds=20.0, cost=0.5, retried={"y": 3})
    assert progress_line(now, before, 1351) == (
        "351 of 1351 requests done (26.0%), 20.0 answers/s, 16 at a time, cost 0.50, 3 attempts failed, 0:00:50 left"
    )
    assert "left" not in progress_line(dataclasses.replace(before, seconds=20.0), before, 1351)
    with Progress(1351, terminal=False) as progress:
        progress(dataclasses.replace(before, seconds=5.0))
        assert not caplog.messages
        progress(before)
        progress(now)
    assert [line.partition(" ")[0] for line in caplog.messages] == ["150", "351"]
    caplog.clear()
    # A labelling tells it.
    monkeypatch.setattr(label_progress, "_LINE_SECONDS", 0.0)
    label(teacher={"concurrency": Concurrency(1, 1, 1)}).ask()
    assert any(f" of {ROWS} requests done" in line for line in caplog.messages)


def test_progress_is_a_bar_on_a_terminal(capsys):
    with Progress(400, terminal=True) as progress:
        progress(Asked(already=200, answered=100, seconds=10.0, concurrency=8))
    shown = capsys.readouterr().err
    assert "300/400" in shown
    assert "8 at a time" in shown
