"""Prompts: the packaged ones hold what their parsers read, files are checked, what is sent follows from the texts."""

import collections
import dataclasses
import json
import pathlib
import re
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsbs_jax.metrics import equation
from dsbs_jax.schema import TeacherOutput
from dsbs_jax.tasks import bestiary
from dsbs_jax.teacher.parsers import PARSERS, MarkerParser
from dsbs_jax.teacher.prompts import Demonstration, Prompt, load_prompt, make_prompt
from dsbs_jax.teacher.templates import choice_letter

NAMES = ("anli1", "asdiv", "bestiary", "cqa", "esnli", "svamp")
NLI = ("entailment", "neutral", "contradiction")


@pytest.mark.parametrize("name", NAMES)
def test_every_packaged_demonstration_reads_back_even_where_the_answer_runs_on(name):
    prompt, parse = load_prompt(name, PARSERS[name]), PARSERS[name]
    assert 9 <= len(prompt.demonstrations) <= 12
    for demonstration in prompt.demonstrations:
        expected = TeacherOutput(demonstration.rationale, demonstration.label)
        answer = prompt.render_answer(demonstration)
        invented = prompt.completion(demonstration.input).removeprefix(prompt.instruction)
        for text in (answer, f" {answer}", f"{answer}\n", f"{prompt.cue} {answer}", answer + invented):
            assert parse(text) == expected


@pytest.mark.parametrize("name", NAMES)
def test_stop_sequences_cut_where_the_parser_does(name):
    prompt = load_prompt(name)
    for demonstration in prompt.demonstrations:
        question = "\n\n" + prompt.completion(demonstration.input).rpartition("\n\n")[2]
        assert any(stop in question for stop in prompt.stop)
        assert not any(stop in prompt.render_answer(demonstration) for stop in prompt.stop)
    assert PARSERS[name].stop in prompt.stop[0]


@pytest.mark.parametrize("name", ["svamp", "asdiv"])
def test_equations_have_the_value_that_their_rationales_end_on(name):
    for demonstration in load_prompt(name).demonstrations:
        value = equation.evaluate(demonstration.label)
        assert value is not None
        # The last result that the rationale states.
        result = demonstration.rationale.rpartition("= ")[2].split()[0].rstrip(".")
        assert equation.evaluate(result) == value
    assert {sign for d in load_prompt(name).demonstrations for sign in "+-*/" if sign in d.label} == set("+-*/")


@pytest.mark.parametrize("name", ["svamp", "asdiv"])
def test_every_step_of_a_calculation_is_right(name):
    for demonstration in load_prompt(name).demonstrations:
        words = demonstration.rationale.replace(". ", " ; ").split()
        for index, word in enumerate(words):
            if word == "=":
                start = index
                while start and (words[start - 1] in "+-*/" or equation.evaluate(words[start - 1]) is not None):
                    start -= 1
                left, right = " ".join(words[start:index]), words[index + 1].rstrip(".")
                assert equation.same_value(left, right), f"{left} = {right}"


@pytest.mark.parametrize("name", ["esnli", "anli1"])
def test_nli_labels_are_balanced_and_follow_no_pattern(name):
    labels = [d.label for d in load_prompt(name, label_set=NLI).demonstrations]
    assert set(collections.Counter(labels).values()) == {len(labels) // 3}
    assert labels != labels[:3] * (len(labels) // 3)


def test_the_right_choice_stands_at_every_letter_equally_often():
    demonstrations = load_prompt("cqa").demonstrations
    letters = [choice_letter(d.input, d.label) for d in demonstrations]
    assert collections.Counter(letters) == dict.fromkeys("abcde", 2)
    for demonstration in demonstrations:
        lines = demonstration.input.splitlines()
        assert lines[1] == "Answer Choices:"
        assert [line[:4] for line in lines[2:]] == ["(a) ", "(b) ", "(c) ", "(d) ", "(e) "]
        assert len({line[4:] for line in lines[2:]}) == 5


@pytest.mark.parametrize("name", NAMES)
def test_zero_shot_and_rationalisation_are_there_and_combine(name):
    demonstration = load_prompt(name).demonstrations[0]
    few = make_prompt(name)
    zero = make_prompt(name, zero_shot=True)
    shown = make_prompt(name, rationalise=True)
    both = make_prompt(name, zero_shot=True, rationalise=True)
    assert "step by step" in zero.completion(demonstration.input)
    assert "step by step" in zero.chat(demonstration.input)[-1][1]
    assert "step by step" not in few.completion(demonstration.input).rpartition("\n\n")[2]
    # What zero-shot instructions ask for is what the parser looks for.
    assert PARSERS[name].marker in zero.chat(demonstration.input)[0][1]
    assert len(zero.chat(demonstration.input)) == 2
    for prompt in (shown, both):
        question = prompt.chat(demonstration.input, demonstration.label)[-1][1]
        assert demonstration.label in question.removeprefix(few.chat(demonstration.input)[-1][1])
        with pytest.raises(ValueError, match="has none"):
            prompt.completion(demonstration.input)
    # A gold label that is at hand is not shown unless asked for.
    assert few.chat(demonstration.input) == few.chat(demonstration.input, demonstration.label)


def test_nli_inputs_are_shown_as_premise_and_hypothesis():
    text = load_prompt("esnli").completion("A dog runs. </s> An animal moves.")
    assert text.endswith("\n\nPremise: A dog runs.\nHypothesis: An animal moves.\nReasoning:")
    assert "</s>" not in text
    with pytest.raises(ValueError, match=r"'A dog runs.' has 1 of the 2 fields premise, hypothesis: '</s>' must stand"):
        load_prompt("esnli").chat("A dog runs.")


def test_what_is_sent_to_the_letter():
    prompt = Prompt(
        question="Q: {input}",
        answer="{rationale} So {label}.",
        cue="A:",
        instruction="Answer.",
        demonstrations=(Demonstration("1 + 1?", "Two ones.", "2"),),
        zero_shot_instruction="Answer in the form: why. So x.",
        zero_shot_trigger="Think.",
        rationalisation_instruction="Pretend.",
        rationalisation_question="Q: {input}\nKey: {label}",
    )
    assert prompt.completion("2 + 2?") == "Answer.\n\nQ: 1 + 1?\nA: Two ones. So 2.\n\nQ: 2 + 2?\nA:"
    assert prompt.chat("2 + 2?") == (
        ("system", "Answer."),
        ("user", "Q: 1 + 1?"),
        ("assistant", "Two ones. So 2."),
        ("user", "Q: 2 + 2?"),
    )
    zero = prompt.without_demonstrations()
    assert zero.completion("2 + 2?") == "Answer in the form: why. So x.\n\nQ: 2 + 2?\nA: Think."
    assert zero.chat("2 + 2?")[1:] == (("user", "Q: 2 + 2?\n\nThink."),)
    shown = prompt.rationalising()
    assert shown.completion("2 + 2?", "4") == (
        "Answer.\nPretend.\n\nQ: 1 + 1?\nKey: 2\nA: Two ones. So 2.\n\nQ: 2 + 2?\nKey: 4\nA:"
    )
    assert dataclasses.replace(prompt, instruction="", cue="").completion("2 + 2?").endswith("2.\n\nQ: 2 + 2?")


@given(st.text(), st.text(min_size=1))
def test_texts_with_braces_are_put_in_as_they_are(text, label):
    prompt = Prompt("Q: {input}", "{rationale} {label}", rationalisation_question="{input}|{label}")
    assert prompt.chat(text) == (("user", f"Q: {text}"),)
    assert prompt.rationalising().chat(text, label) == (("user", f"{text}|{label}"),)


@given(st.integers(0, 2**40), st.integers(1, 10), st.integers(1, 10))
def test_drawn_demonstrations_are_nested(seed, few, many):
    prompt = load_prompt("cqa")
    few, many = sorted((few, many))
    drawn = prompt.draw(many, seed).demonstrations
    assert prompt.draw(few, seed).demonstrations == drawn[:few]
    assert len(set(drawn)) == many
    assert set(drawn) <= set(prompt.demonstrations)


def test_seeds_draw_differently_and_always_the_same():
    prompt = load_prompt("cqa")
    assert len({prompt.draw(10, seed).demonstrations for seed in range(20)}) == 20
    # The order may never change: a labelling that goes on would pay for every row again.
    assert [prompt.demonstrations.index(d) for d in prompt.draw(5, 0).demonstrations] == [4, 0, 6, 9, 7]
    with pytest.raises(ValueError, match="11 demonstrations were asked for, and the prompt has 10"):
        prompt.draw(11, 0)


FILE = """
question = "Ticket: {input}"
answer = "{rationale}\\nTeam: {label}"
[[demonstrations]]
input = "The screen stays black."
rationale = "A black screen is a fault of the device."
label = "hardware"
[[demonstrations]]
input = "I was charged twice."
rationale = "Charges are about money."
label = "billing"
"""
PARSE = MarkerParser("Team:", label="line")


def written(tmp_path: pathlib.Path, text: str) -> pathlib.Path:
    path = tmp_path / "tickets.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_of_ones_own_needs_no_python(tmp_path):
    prompt = load_prompt(written(tmp_path, FILE), PARSE, ("hardware", "billing"))
    assert prompt.completion("It beeps.").endswith("Team: billing\n\nTicket: It beeps.")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("question =", "qestion =", r"the file: the key 'qestion' is unknown. Did you mean 'question'\?"),
        ('question = "Ticket: {input}"', "", "the file: the key 'question' is missing"),
        (
            'label = "billing"',
            'lable = "billing"',
            r"demonstration 2: the key 'lable' is unknown. Did you mean 'label'",
        ),
        ('label = "billing"', "", "demonstration 2: the key 'label' is missing"),
        ('label = "billing"', 'label = " "', "demonstration 2: label is empty"),
        ('label = "billing"', "label = 3", "demonstration 2: label is 3; it must be a text"),
        ('label = "billing"', 'label = "biling"', r"demonstration 2: the label 'biling' is not .* mean 'billing'\?"),
        ("I was charged twice.", "The screen stays black.", "demonstration 2: the input is that of demonstration 1"),
        ("Charges are", "Team: Charges are", "demonstration 2: the answer 'Team: .* reads back as .*several_markers"),
        ("{rationale}\\nTeam: {label}", "{label}: {rationale}", r"demonstration 1: the answer .*\(no_marker\)"),
        ("{rationale}\\nTeam: {label}", "{label}", r"the answer template lacks \{rationale\}"),
        ("Ticket: {input}", "Ticket: {text}", r"the template question names \{text\}; it may name \{input\}"),
        ("Ticket: {input}", "{input}, is it {label}?", r"the template question names \{label\}"),
        ("Ticket: {input}", "Ticket: {input!r}", r"formats \{input\}; it can only be put in as it is"),
        ("Ticket: {input}", "Ticket: {input", "is broken"),
        ("Ticket: {input}", "{input.__class__}", r"names \{input.__class__\}"),
        ("[[demonstrations]]\ninput", "[demonstrations]\ninput", "not valid TOML|is no list of tables"),
        ("question =", "stop = 'Q:'\nquestion =", "stop is 'Q:'; it must be a list of texts"),
        ("question =", "fields = ['a']\nquestion =", "fields and separator belong together"),
        ("Team: {label}", "Team: ({letter}) {label}", "demonstration 1: The label 'hardware' is none of the choices"),
        ("question =", "question ", "is not valid TOML"),
        ("[[demonstrations]]", "[zero_shot]\ntrigger='a'\n[[demonstrations]]", r"\[zero_shot\]: the key 'instruction'"),
    ],
)
def test_errors_name_the_file_the_entry_and_the_mend(tmp_path, old, new, message):
    assert old in FILE
    path = written(tmp_path, FILE.replace(old, new, 1))
    with pytest.raises(ValueError, match=message) as caught:
        load_prompt(path, PARSE, ("hardware", "billing"))
    assert str(path) in str(caught.value)


def test_options_that_a_file_does_not_have(tmp_path):
    path = written(tmp_path, FILE)
    with pytest.raises(ValueError, match=r"tickets.toml: .* \[zero_shot\]"):
        make_prompt(path, zero_shot=True)
    with pytest.raises(ValueError, match=r"tickets.toml: .* \[rationalisation\]"):
        make_prompt(path, rationalise=True)
    with pytest.raises(ValueError, match="do not ask for a number"):
        make_prompt("cqa", zero_shot=True, demonstrations=2)
    with pytest.raises(ValueError, match=r"neither a \[\[demonstrations\]\] entry nor a \[zero_shot\] table"):
        load_prompt(written(tmp_path, FILE[: FILE.index("[[")]))
    with pytest.raises(FileNotFoundError, match="prompts that come with the package: anli1, asdiv, bestiary, cqa"):
        load_prompt("sqa")


def test_a_file_without_demonstrations_is_zero_shot(tmp_path):
    path = written(tmp_path, FILE[: FILE.index("[[")] + '[zero_shot]\ninstruction = "End with Team: NAME."')
    assert make_prompt(path).completion("It beeps.") == "End with Team: NAME.\n\nTicket: It beeps."


def shingles(text: str) -> set[tuple[str, ...]]:
    words = "".join(c if c.isalnum() else " " for c in text.casefold()).split()
    return {tuple(words[i : i + 3]) for i in range(max(1, len(words) - 2))}


def test_no_demonstration_resembles_a_row_of_the_real_data(shared_data):
    index = collections.defaultdict(set)
    demonstrations = [
        (name, shingles(d.input.partition("\nAnswer Choices:")[0]))
        for name in NAMES
        for d in load_prompt(name).demonstrations
    ]
    for number, (_, own) in enumerate(demonstrations):
        for shingle in own:
            index[shingle].add(number)
    texts = real_inputs(shared_data)
    assert len(texts) > 40_000
    for text in texts:
        own = shingles(text)
        shared = collections.Counter(number for shingle in own for number in index.get(shingle, ()))
        for number, count in shared.items():
            alike = count / (len(own) + len(demonstrations[number][1]) - count)
            assert alike < 0.3, f"{demonstrations[number]} resembles {text!r}"


def real_inputs(folder: pathlib.Path) -> list[str]:
    """The inputs of all rows; questions without their choices."""
    texts = []
    for path in sorted((folder / "dss").glob("*/*_*.json")):
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            texts.append(" ".join(row[key] for key in ("input", "question", "premise", "hypothesis") if key in row))
    for problem in ElementTree.parse(folder / "asdiv" / "ASDiv.xml").iter("Problem"):
        texts.append(f"{problem.findtext('Body')} {problem.findtext('Question')}")
    return texts


def test_the_bestiarys_demonstrations_tell_nothing_of_a_world():
    world = bestiary.World(bestiary.Parameters())
    demonstrations = load_prompt("bestiary", PARSERS["bestiary"], bestiary.DATASET.label_set).demonstrations
    words = {word.rstrip("s") for d in demonstrations for word in re.findall(r"\w+", f"{d.input} {d.rationale}")}
    assert not words & {*bestiary.KINDS, *world.creatures, *world.kinds}
    # One question about each attribute, asked and answered as the world does it.
    asked = [
        next(a for a in bestiary.ATTRIBUTES if d.label in a.values and any(is_asked(q, d.input) for q in a.questions))
        for d in demonstrations
    ]
    assert len(set(asked)) == len(asked) == len(bestiary.ATTRIBUTES)
    for demonstration, attribute in zip(demonstrations, asked, strict=True):
        kinds = demonstration.rationale.partition(" is a ")[2].partition(",")[0] + "s"
        assert attribute.statement.format(kinds=kinds, value=demonstration.label) in demonstration.rationale


def is_asked(template: str, question: str) -> bool:
    before, _, after = template.partition("{creature}")
    return question.startswith(before) and question.endswith(after)
