"""Reading teachers' answers: the reference's rules, its real answers, and any text at all."""

import dataclasses
import json
import re
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dsbs_jax.schema import TeacherOutput
from dsbs_jax.teacher.answers import read_answers
from dsbs_jax.teacher.parsers import PARSERS, MarkerParser, RegexParser, parser_from_json

NLI = ("entailment", "neutral", "contradiction")


def test_cqa_reads_what_stands_before_the_invented_next_question():
    answer = "It must be sums. So the answer is (d) math problem.\n\nQ: Next?\nA: No. So the answer is (a) x."
    assert PARSERS["cqa"](answer) == TeacherOutput("It must be sums.", "math problem")


def test_svamp_keeps_the_parentheses():
    answer = "So 10 - (3 + 6) = 1. The answer is (10 - (3 + 6)).\n\nQ: There are 15 trees"
    assert PARSERS["svamp"](answer) == TeacherOutput("So 10 - (3 + 6) = 1.", "(10 - (3 + 6))")
    assert PARSERS["asdiv"](answer) == PARSERS["svamp"](answer)


def test_esnli_ends_at_the_next_premise_even_where_it_is_cut_off():
    whole = "Not at the diner.\nAnswer: contradiction\n\nPremise: A person on a horse"
    cut = "Not at the diner.\nAnswer: contradiction\n\nPre"
    assert PARSERS["esnli"](whole) == PARSERS["esnli"](cut) == TeacherOutput("Not at the diner.", "contradiction")
    assert PARSERS["esnli"]("r\nAnswer: entailment\n\nPre").label == "entailment"


def test_anli1_ends_at_the_next_premise_too():
    for rest in ("", "\n\nPremise: Another", "\n\nPre"):
        answer = "It says so. So the answer is entailment." + rest
        assert PARSERS["anli1"](answer) == TeacherOutput("It says so.", "entailment")


@pytest.mark.parametrize(
    ("dataset", "answer", "expected"),
    [
        ("cqa", "", TeacherOutput(None, None, "empty_answer")),
        ("cqa", " \n ", TeacherOutput(None, None, "empty_answer")),
        ("cqa", "It must be a place where", TeacherOutput(None, None, "no_marker")),
        ("cqa", "a So the answer is (a) b. So the answer is (c) d.", TeacherOutput(None, None, "several_markers")),
        ("cqa", "It is none. So the answer is none.", TeacherOutput("It is none.", None, "no_label")),
        ("cqa", "So the answer is (a) b.", TeacherOutput(None, "b", "no_rationale")),
        ("cqa", "Q: So the answer is (a) b.", TeacherOutput(None, None, "no_marker")),
        ("svamp", "So 3. The answer is 3.", TeacherOutput("So 3.", None, "no_label")),
        ("svamp", "So. The answer is )(.", TeacherOutput("So.", None, "no_label")),
        ("esnli", "It is.\nAnswer:", TeacherOutput("It is.", None, "no_label")),
        ("esnli", "\nAnswer:\n\nPremise: A", TeacherOutput(None, None, "no_label")),
        ("esnli", "Cut off before the", TeacherOutput(None, None, "no_marker")),
        ("anli1", "So the answer is neutral.", TeacherOutput(None, "neutral", "no_rationale")),
    ],
)
def test_broken_answers_get_a_reason_and_no_blank_field(dataset, answer, expected):
    assert PARSERS[dataset](answer) == expected


def reference_label(dataset: str, answer: str) -> str | None:
    """The label by the reference's documented rules, written as slowly as they read; None where they give none."""
    if dataset == "esnli":
        parts = answer.split("Answer: ")
        return parts[1].split("Premise")[0].rstrip() if len(parts) > 1 else None
    stop, marker = {
        "cqa": ("Q:", "So the answer is"),
        "svamp": ("Q:", "The answer is"),
        "anli1": ("Premise:", "So the answer is"),
    }[dataset]
    parts = answer.split(stop)[0].rstrip().split(marker)
    if len(parts) != 2:
        return None
    if dataset == "cqa":
        choices = re.split(r"\(.\)", parts[1])
        return choices[1].strip().removesuffix(".") if len(choices) > 1 else None
    if dataset == "svamp":
        found = re.search(r"\(.*\)", parts[1])
        return found.group(0) if found else None
    return parts[1].lstrip().removesuffix(".")


# Texts dense in what the rules look for.
PIECES = st.sampled_from(
    (
        *("So the answer is", "The answer is", "Answer:", "Answer: ", "Q:", "Premise", "Premise:", "Pre"),
        *("(a)", "(b)", "(", ")", ".", " ", "\n", "\n\n", "\x0b", "\u2028", "é", " + ", "3", "dog", *NLI),
        *("**", "A:", "Reasoning:", "so the answer is", "answer: ", '"', "`"),
    )
)
ANSWERS = st.lists(PIECES, max_size=14).map("".join) | st.text(max_size=60)


@given(ANSWERS)
@example("So the answer is(a)Answer: .")
def test_any_text_gives_a_result_without_blank_fields(answer):
    for parse in PARSERS.values():
        output = parse(answer)
        for field in (output.rationale, output.label):
            assert field is None or field.strip() == field != ""
        assert (output.failure is None) == (output.rationale is not None and output.label is not None)


@pytest.mark.parametrize("dataset", ["cqa", "svamp", "esnli", "anli1"])
@given(answer=ANSWERS)
def test_where_the_reference_reads_a_valid_label_so_does_ours(dataset, answer):
    expected = reference_label(dataset, answer)
    valid = {
        "cqa": expected == "dog",
        "svamp": expected is not None,
        "esnli": expected in NLI,
        "anli1": expected in NLI,
    }
    # Bold marks are no part of the reference's rules; PaLM writes none.
    if valid[dataset] and "**" not in answer:
        assert PARSERS[dataset](answer).label == expected


@pytest.mark.parametrize("dataset", sorted(PARSERS))
@pytest.mark.parametrize(
    "unit", ["(", "()", "So the answer is", "The answer is(", "Answer: ", "Q:", "Premise", "\n", " "]
)
def test_long_answers_take_linear_time(dataset, unit):
    # 1 MB takes some 10 ms; anything quadratic would take hours. The bound only tells those two apart.
    start = time.perf_counter()
    PARSERS[dataset]("x The answer is " + unit * (1_000_000 // len(unit)))
    assert time.perf_counter() - start < 10


def test_a_parser_of_ones_own_needs_no_code():
    parse = MarkerParser("####", label="rest")
    assert parse("3 and 4 are 7.\n#### 7") == TeacherOutput("3 and 4 are 7.", "7")
    with pytest.raises(ValueError, match="label is 'word'"):
        MarkerParser("####", label="word")
    with pytest.raises(ValueError, match="marker is empty"):
        MarkerParser("")


@pytest.mark.parametrize(
    ("dataset", "split", "labels", "rationales", "failures"),
    [
        # Counted with these parsers; a change of a rule shows here.
        ("cqa", "train", 9738, 9741, {"no_label": 3}),
        ("cqa", "test", 1221, 1221, {}),
        ("svamp", "train", 787, 789, {"no_marker": 11, "no_label": 2}),
        ("svamp", "test", 198, 198, {"no_marker": 2}),
        ("esnli", "train", 9830, 9856, {"no_marker": 143, "no_label": 27}),
        ("esnli", "validation", 9838, 9838, {"no_marker": 4}),
        ("esnli", "test", 9824, 9824, {}),
    ],
)
def test_palms_answers(shared_data, dataset, split, labels, rationales, failures):
    answers = read_answers(shared_data / "dss" / dataset, "llm", split)
    outputs = [PARSERS[dataset](answer) for answer in answers]
    found = [output.failure for output in outputs if output.failure]
    assert {code: found.count(code) for code in set(found)} == failures
    assert sum(output.label is not None for output in outputs) == labels
    assert sum(output.rationale is not None for output in outputs) == rationales
    for output, answer in zip(outputs, answers, strict=True):
        expected = reference_label(dataset, answer)
        if expected is not None and (dataset != "esnli" or expected in NLI):
            assert output.label == expected


@pytest.mark.parametrize(
    ("dataset", "answer", "expected"),
    [
        # Habits of chat-tuned and of reasoning models.
        ("cqa", "A: It floats. So the answer is (b) boat.", TeacherOutput("It floats.", "boat")),
        ("cqa", "It floats. **So the answer is (b) boat.**", TeacherOutput("It floats.", "boat")),
        ("cqa", "It floats. **So the answer is** (b) **boat**.", TeacherOutput("It floats.", "boat")),
        ("cqa", "It floats. So the answer is: (b) boat", TeacherOutput("It floats.", "boat")),
        ("cqa", "It floats, so the answer is (b) boat.", TeacherOutput("It floats,", "boat")),
        (
            "cqa",
            "<think>So the answer is (a) car. Q: no?</think>\n\nIt floats. So the answer is (b) boat.",
            TeacherOutput("It floats.", "boat"),
        ),
        # A server may take the first tag away.
        ("cqa", "Hm, a car?\n</think>\nIt floats. So the answer is (b) boat.", TeacherOutput("It floats.", "boat")),
        ("cqa", "<thinking>Hm</thinking>It floats. So the answer is (b) boat.", TeacherOutput("It floats.", "boat")),
        ("cqa", "<think>It floats. So the answer is (b) boat.", TeacherOutput(None, None, "unfinished_thinking")),
        ("cqa", "<think>Hm</think> \n", TeacherOutput(None, None, "empty_answer")),
        ("svamp", "3 * **4** are 12. **The answer is (3 * 4).**", TeacherOutput("3 * 4 are 12.", "(3 * 4)")),
        ("svamp", "So 8. The answer is (2 ** 3).", TeacherOutput("So 8.", "(2 ** 3)")),
        ("svamp", "So 8. The answer is (2**3).", TeacherOutput("So 8.", "(2**3)")),
        ("esnli", "They run.\n\nAnswer: **entailment**", TeacherOutput("They run.", "entailment")),
        ("esnli", "**Reasoning:** They run.\n**Answer:** entailment.", TeacherOutput("They run.", "entailment")),
        ("esnli", 'Reasoning: They run.\nAnswer: "neutral".', TeacherOutput("They run.", "neutral")),
        ("esnli", "They run.\nANSWER: `neutral`", TeacherOutput("They run.", "neutral")),
        ("esnli", "They run.\nAnswer: neutral\n\nDo you have another?", TeacherOutput("They run.", "neutral")),
        ("anli1", "It says so. So the answer is: neutral.\n\nPre", TeacherOutput("It says so.", "neutral")),
        ("anli1", "It says so. So the answer is “neutral”", TeacherOutput("It says so.", "neutral")),
    ],
)
def test_habits_of_chat_models_are_repaired(dataset, answer, expected):
    assert PARSERS[dataset](answer) == expected


LABEL_LINE = r"(?s)^(?P<rationale>.*?)\s*(?:####|Label:)\s*(?P<label>[^\n]+)"


@pytest.fixture
def regex_parser():
    pytest.importorskip("re2", reason="RegexParser needs google-re2")
    return RegexParser


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("3 and 4\nare 7.\n#### 7\nQ: more", TeacherOutput("3 and 4\nare 7.", "7")),
        ("Été. Label: **é** ", TeacherOutput("Été.", "é")),
        ("<think>#### 8</think>So. #### 7", TeacherOutput("So.", "7")),
        ("", TeacherOutput(None, None, "empty_answer")),
        ("no label", TeacherOutput(None, None, "no_match")),
        ("#### 7", TeacherOutput(None, "7", "no_rationale")),
        ("So. ####  \n 7", TeacherOutput("So.", "7")),
        ("Why. Q: So. #### 7", TeacherOutput(None, None, "no_match")),
        ("\ud800 #### \ud800", TeacherOutput("?", "?")),
    ],
)
def test_a_regular_expression_reads_answers(regex_parser, answer, expected):
    assert regex_parser(LABEL_LINE, stop="Q:")(answer) == expected


def test_a_group_that_takes_no_part_reads_nothing(regex_parser):
    parse = regex_parser(r"(?P<rationale>\w+)(?: = (?P<label>\w+))?")
    assert parse("a = b") == TeacherOutput("a", "b")
    assert parse("a") == TeacherOutput("a", None, "no_label")


@given(st.text() | ANSWERS)
def test_any_text_gives_a_result_with_a_regular_expression(answer):
    pytest.importorskip("re2", reason="RegexParser needs google-re2")
    output = RegexParser(LABEL_LINE)(answer)
    assert (output.failure is None) == (output.rationale is not None and output.label is not None)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(?P<label>a)", "has no group rationale; write"),
        ("(?P<label>a)(?P<rationale>b", "is not one of RE2 .*missing"),
        (r"(?P<label>a)(?=x)(?P<rationale>b)", "which knows neither look-around"),
    ],
)
def test_patterns_that_cannot_work_are_refused(regex_parser, pattern, message):
    with pytest.raises(ValueError, match=message):
        regex_parser(pattern)


def test_an_evil_pattern_takes_linear_time(regex_parser):
    # Python's re would not come back from 30 of these letters.
    parse = regex_parser(r"(?P<rationale>(x+x+)+)y(?P<label>z)")
    start = time.perf_counter()
    assert parse("x" * 1_000_000).failure == "no_match"
    assert time.perf_counter() - start < 10


@pytest.mark.parametrize("unit", ["**", " **a", "**a**", "<think>", "</think>", "**a*", "***", "so the answer is", "`"])
@pytest.mark.parametrize("dataset", ["cqa", "esnli"])
def test_repairs_take_linear_time(dataset, unit):
    # As above: the bound tells linear (some 0.1 s) from quadratic (hours).
    start = time.perf_counter()
    PARSERS[dataset](unit * (1_000_000 // len(unit)) + " Answer: " + unit)
    assert time.perf_counter() - start < 10


def test_parsers_survive_a_trip_through_json(regex_parser):
    for parser in (*PARSERS.values(), regex_parser(LABEL_LINE, stop="Q:")):
        assert parser_from_json(json.loads(json.dumps(dataclasses.asdict(parser)))) == parser
