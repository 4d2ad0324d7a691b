"""The quality report's numbers on rows whose answers are known."""

import collections
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsbs_jax.teacher.agreement import same_label
from dsbs_jax.teacher.prompts import load_prompt
from dsbs_jax.teacher.quality import measure

EXACT, EQUATION = same_label("exact"), same_label("equation")
NLI = ("entailment", "neutral", "contradiction")


def row(number=0, gold="neutral", label="neutral", rationale="It may be so, or not.", **other):
    return {
        "id": f"train/{number}",
        "input": "A man walks.</s>He is late.",
        "label": gold,
        "answers": [f"{rationale}\nAnswer: {label}"],
        "rationale": rationale,
        "teacher_label": label,
        "failure": None,
        "agreement": 1,
        "samples": 1,
        "prompt_tokens": 100,
        "completion_tokens": 20,
    } | other


def test_accuracy_counts_rows_without_a_label_as_wrong():
    rows = [
        row(0),
        row(1, label="contradiction"),
        row(2, label=None, failure="no_label"),
        row(3, gold=None),
        row(4, label=None, rationale=None, failure="no_marker"),
        # Nobody answered this one yet: it says nothing of the teacher.
        row(
            5,
            label=None,
            rationale=None,
            failure="unanswered",
            answers=[],
            samples=0,
            prompt_tokens=0,
            completion_tokens=0,
        ),
    ]
    quality = measure(rows, EXACT, label_set=NLI)
    assert (quality.rows, quality.read, quality.with_label, quality.with_rationale) == (6, 3, 3, 4)
    assert (quality.judged, quality.correct, quality.accuracy) == (4, 1, 0.25)
    assert quality.confusion == {"neutral": {"neutral": 1, "contradiction": 1, "(no label)": 2}}
    assert quality.classes() == {"neutral": (4, 1)}
    assert quality.failures == {"no_label": 1, "no_marker": 1, "unanswered": 1}
    assert [sample.id for sample in quality.failure_samples["no_marker"]] == ["train/4"]
    assert [sample.id for sample in quality.wrong_samples] == ["train/1"]
    assert [sample.id for sample in quality.right_samples] == ["train/0"]
    assert (quality.prompt_tokens, quality.completion_tokens) == (500, 100)


def test_equations_are_right_by_value():
    quality = measure([row(gold="( 84.0 / 2.0 )", label="(84 / 2)")], EQUATION)
    assert quality.accuracy == 1.0
    assert quality.confusion == {"( 84.0 / 2.0 )": {"( 84.0 / 2.0 )": 1}}


def test_labels_that_are_no_classes_have_no_confusion():
    quality = measure((row(i, gold=f"answer {i}", label=f"answer {i % 2}") for i in range(100)), EXACT)
    assert quality.confusion == {}
    assert quality.correct == 2
    few = measure([row(gold="a", label="b"), row(gold="b", label="c"), row(gold="b", label="d")], EXACT)
    assert few.confusion == {"a": {"b": 1}, "b": {"(other)": 2}}


def test_examples_are_limited_and_cut():
    rows = [row(i, label=None, failure="no_label", answers=["x" * 100_000]) for i in range(50)]
    quality = measure(rows, EXACT, examples=3)
    assert [sample.id for sample in quality.failure_samples["no_label"]] == ["train/0", "train/1", "train/2"]
    assert all(len(sample.answer) < 1000 for sample in quality.failure_samples["no_label"])


def test_lengths_are_counted_in_words():
    quality = measure([row(rationale=" ".join(["word"] * n)) for n in (1, 2, 2, 3, 100)], EXACT)
    assert quality.rationale_words == {1: 1, 2: 2, 3: 1, 100: 1}
    assert [quality.quantile(percent) for percent in (0, 50, 80, 81, 100)] == [1, 2, 3, 100, 100]
    assert measure([], EXACT).quantile(50) == 0


@given(st.lists(st.integers(1, 30), min_size=1), st.integers(0, 100))
def test_a_quantile_is_the_smallest_length_that_enough_do_not_exceed(lengths, percent):
    quality = measure([row(rationale=" ".join(["w"] * n)) for n in lengths], EXACT)
    value = quality.quantile(percent)
    assert value in lengths
    assert 100 * sum(n <= value for n in lengths) >= percent * len(lengths)
    assert value == min(lengths) or 100 * sum(n < value for n in lengths) < percent * len(lengths)


@pytest.mark.parametrize("name", ["cqa", "svamp", "esnli", "anli1", "asdiv", "bestiary"])
def test_a_demonstration_is_known_again_and_again(name):
    prompt = load_prompt(name)
    for demonstration in prompt.demonstrations:
        altered = demonstration.rationale.upper() + " Well then."
        quality = measure([row(rationale=altered)], EXACT, prompt=prompt)
        assert (quality.leaked, len(quality.leaked_samples)) == (1, 1)
    own = measure(
        [row(rationale="Walking says nothing about the time, so he may be late or early.")], EXACT, prompt=prompt
    )
    assert own.leaked == 0
    assert measure([row(rationale=prompt.demonstrations[0].rationale)], EXACT).leaked == 0, "without a prompt"


def test_a_rationale_that_repeats_its_question_is_counted():
    question = "A tall man walks along the wet beach with his dog.</s>He is late."
    copied = row(input=question, rationale="A tall man walks along the wet beach.")
    own = row(input=question, rationale="A tall man may be late or early when he walks; nothing tells which it is.")
    short = row(input=question, rationale="He is late.")
    quality = measure([copied, own, short], EXACT)
    assert quality.copied == 1
    assert [sample.rationale for sample in quality.copied_samples] == [copied["rationale"]]


def test_agreement_is_reported_where_rows_have_several_samples():
    rows = [
        row(agreement=3, samples=3),
        row(agreement=3, samples=3, label="entailment"),
        row(agreement=2, samples=3, gold=None),
        row(agreement=1, samples=2),
    ]
    levels = measure(rows, EXACT).agreement
    assert [(level.agreement, level.samples, level.rows, level.judged, level.correct) for level in levels] == [
        (3, 3, 2, 2, 1),
        (2, 3, 1, 0, 0),
        (1, 2, 1, 1, 1),
    ]
    assert measure([row()], EXACT).agreement == []


def test_a_row_of_another_kind_is_named():
    with pytest.raises(ValueError, match=r"Row 1 is no row of a labelled folder: \{'id': 'x'}"):
        measure([row(), {"id": "x"}], EXACT)


def test_rows_are_read_once_and_not_kept():
    class Rows:
        seen = 0

        def __iter__(self):
            for number in range(20_000):
                self.seen += 1
                yield row(number, answers=["x" * 5_000 + str(number)])

    rows = Rows()
    tracemalloc.start()
    quality = measure(rows, EXACT)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert quality.rows == rows.seen == 20_000
    # The answers alone are 100 MB.
    assert peak < 20e6


@given(st.lists(st.tuples(st.sampled_from([*NLI, None]), st.sampled_from([*NLI, "else", None]))))
def test_the_confusion_accounts_for_every_judged_row(pairs):
    quality = measure([row(i, gold, label) for i, (gold, label) in enumerate(pairs)], EXACT, label_set=NLI)
    judged = [(gold, label) for gold, label in pairs if gold]
    assert sum(sum(of.values()) for of in quality.confusion.values()) == quality.judged == len(judged)
    assert sum(right for _, right in quality.classes().values()) == quality.correct
    assert collections.Counter(gold for gold, _ in judged) == {
        gold: rows for gold, (rows, _) in quality.classes().items()
    }


def test_palms_labels(shared_data):
    from dsbs_jax.tasks import DATASETS
    from dsbs_jax.teacher.answers import read_answers

    dataset = DATASETS["esnli"]
    examples = dataset.load("validation", shared_data / "dss").examples
    answers = read_answers(shared_data / "dss" / "esnli", "llm", "validation")
    rows = [
        row(i, e.label, e.teacher.label, e.teacher.rationale, input=e.input, failure=e.teacher.failure, answers=[a])
        for i, (e, a) in enumerate(zip(examples, answers, strict=True))
    ]
    quality = measure(rows, EXACT, label_set=dataset.label_set, prompt=load_prompt("esnli"))
    # PaLM never saw these demonstrations: what it writes resembles none of them.
    assert (quality.rows, quality.failures, quality.leaked) == (9842, {"no_marker": 4}, 0)
    assert quality.accuracy == pytest.approx(0.7317, abs=1e-4)
    assert quality.duplicates.exact == 446
