"""Few-shot chain-of-thought prompts: demonstrations and templates, read from a TOML file.

    instruction = "Decide which team a ticket belongs to. Give a reason first."
    question = "Ticket: {input}"
    cue = "Reason:"
    answer = "{rationale}\\nTeam: {label}"
    stop = ["\\nTicket:"]

    [[demonstrations]]
    input = "The screen stays black."
    rationale = "A black screen is a fault of the device."
    label = "hardware"

Two more tables are optional. `[zero_shot]` holds the `instruction` that stands in for demonstrations and a `trigger`
("Let's think step by step", Kojima et al., 2022); `[rationalisation]` holds a `question` that shows the gold label and
a further `instruction` (Zelikman et al., 2022).

A prompt is a value: what is sent is a function of its texts and of the row alone. `draw`, `without_demonstrations` and
`rationalising` return other prompts, and may be combined.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from dsbs_jax.schema import TeacherOutput
from dsbs_jax.teacher.prompt_files import find_prompt, nearest, read_prompt_file
from dsbs_jax.teacher.requests import Message
from dsbs_jax.teacher.templates import check_template, choice_letter, named_fields

Parser = Callable[[str], TeacherOutput]


@dataclasses.dataclass(frozen=True, slots=True)
class Demonstration:
    """One solved example of a prompt.

    Attributes:
      input: as the dataset's rows have it, before the prompt's templates.
      rationale: the chain of thought.
      label: the answer it leads to.
    """

    input: str
    rationale: str
    label: str


@dataclasses.dataclass(frozen=True)
class Prompt:
    """What a teacher is shown.

    Templates name fields in braces; two braces stand for one.

    Attributes:
      question: template of a question over `{input}` and `fields`. It shows the gold label (`{label}`, `{letter}`) only
        in a prompt for rationalisation.
      answer: template of a demonstration's answer over `{rationale}`, `{label}` and `{letter}`, the x of the line
        `(x) LABEL` in the input. The parser of the teacher's answers reads this layout.
      cue: what a completion's answer begins with, e.g. `A:`. A chat's turns need none.
      instruction: the system message of a chat, or the head of a completion; may be empty.
      stop: texts at which the server is to stop: where the next, invented question would begin.
      fields: names of the parts of an input, e.g. premise and hypothesis; empty where it is one text.
      separator: what stands between those parts in the input, e.g. `</s>`.
      demonstrations: in the order they are shown.
      zero_shot_instruction: in place of `instruction` where there are no demonstrations: it spells out the layout.
      zero_shot_trigger: what the answer, or in a chat the question, then goes on with.
      rationalisation_instruction: added to the instruction where the gold label is shown.
      rationalisation_question: the question that shows it.
    """

    question: str
    answer: str
    cue: str = ""
    instruction: str = ""
    stop: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()
    separator: str = ""
    demonstrations: tuple[Demonstration, ...] = ()
    zero_shot_instruction: str = ""
    zero_shot_trigger: str = ""
    rationalisation_instruction: str = ""
    rationalisation_question: str = ""

    def __post_init__(self) -> None:
        if bool(self.fields) != bool(self.separator):
            raise ValueError("fields and separator belong together: give both, or neither.")
        known = ("input", *self.fields)
        gold = ("label", "letter")
        check_template("question", self.question, known + gold if self.needs_label else known)
        if self.rationalisation_question:
            check_template("rationalisation_question", self.rationalisation_question, known + gold)
            if not named_fields(self.rationalisation_question) & set(gold):
                raise ValueError("the rationalisation's question shows no {label}; that is what it is for.")
        check_template("answer", self.answer, ("rationale", *gold))
        if missing := {"rationale", "label"} - named_fields(self.answer):
            raise ValueError(f"the answer template lacks {{{sorted(missing)[0]}}}; demonstrations must show it.")

    @property
    def needs_label(self) -> bool:
        """Whether a question shows the gold label."""
        return bool(self.rationalisation_question) and self.question == self.rationalisation_question

    def draw(self, count: int, seed: int) -> Prompt:
        """The prompt with `count` of its demonstrations: the first of an order that the seed alone chooses.

        Nested: with one seed, 4 demonstrations are the first 4 of 8. Labels are not balanced.

        Raises:
          ValueError: for fewer than one, or more than there are.
        """
        if not 1 <= count <= len(self.demonstrations):
            raise ValueError(
                f"{count} demonstrations were asked for, and the prompt has {len(self.demonstrations)}; draw at least "
                f"one, or ask for a prompt without demonstrations."
            )
        # Ranked by a hash: no version of Python or NumPy changes the order.
        order = sorted(range(len(self.demonstrations)), key=lambda i: hashlib.sha256(f"{seed}/{i}".encode()).digest())
        return dataclasses.replace(self, demonstrations=tuple(self.demonstrations[i] for i in order[:count]))

    def without_demonstrations(self) -> Prompt:
        """Zero-shot chain of thought: the instruction says in words what demonstrations would show.

        Raises:
          ValueError: for a prompt that has no such instruction.
        """
        if not self.zero_shot_instruction:
            raise ValueError(
                "The prompt cannot do without demonstrations: its file has no [zero_shot] table with an instruction."
            )
        return dataclasses.replace(self, demonstrations=())

    def rationalising(self) -> Prompt:
        """The prompt that shows the gold label and asks for the reasoning that leads to it.

        Raises:
          ValueError: for a prompt that has no such question.
        """
        if not self.rationalisation_question:
            raise ValueError(
                "The prompt cannot show gold labels: its file has no [rationalisation] table with a question."
            )
        return dataclasses.replace(self, question=self.rationalisation_question)

    def as_sent(self) -> Prompt:
        """The prompt without the texts that are not sent: two that are equal ask the same."""
        if self.demonstrations:
            prompt = dataclasses.replace(self, zero_shot_instruction="", zero_shot_trigger="")
        else:
            prompt = dataclasses.replace(
                self, instruction=self.zero_shot_instruction or self.instruction, zero_shot_instruction=""
            )
        if self.needs_label:
            return prompt
        return dataclasses.replace(prompt, rationalisation_instruction="", rationalisation_question="")

    def completion(self, input: str, label: str | None = None) -> str:
        """The text that a completion goes on from; it ends with the cue, without a space after it.

        Args:
          input: the row's input.
          label: its gold label; read only where `needs_label`.

        Raises:
          ValueError: for an input without the prompt's fields, or a row without the gold label that the prompt shows.
        """
        return self._completion_head + " ".join(filter(None, [self._asked(input, label), self._trigger()]))

    def chat(self, input: str, label: str | None = None) -> tuple[Message, ...]:
        """The (role, content) messages of a chat: instruction, demonstrations as turns, the question."""
        question = "\n\n".join(filter(None, [self._question(input, label), self._trigger()]))
        return (*self._chat_head, ("user", question))

    def render_answer(self, demonstration: Demonstration) -> str:
        """A demonstration's answer, in the layout that the teacher is to follow.

        Raises:
          ValueError: where the template names `{letter}` and the label is none of the input's choices.
        """
        values = {"rationale": demonstration.rationale, "label": demonstration.label}
        return self.answer.format(**values, **self._letter(self.answer, demonstration.input, demonstration.label))

    # What every row shares is rendered once: a labelling asks for it some 500,000 times.
    @functools.cached_property
    def _completion_head(self) -> str:
        head = [self._instruction()] if self._instruction() else []
        shown = [f"{self._asked(d.input, d.label)} {self.render_answer(d)}" for d in self.demonstrations]
        return "".join(f"{text}\n\n" for text in (*head, *shown))

    @functools.cached_property
    def _chat_head(self) -> tuple[Message, ...]:
        messages = [("system", self._instruction())] if self._instruction() else []
        for demonstration in self.demonstrations:
            messages.append(("user", self._question(demonstration.input, demonstration.label)))
            messages.append(("assistant", self.render_answer(demonstration)))
        return tuple(messages)

    def _instruction(self) -> str:
        first = self.instruction if self.demonstrations else self.zero_shot_instruction or self.instruction
        return "\n".join(filter(None, [first, self.rationalisation_instruction if self.needs_label else ""]))

    def _trigger(self) -> str:
        return "" if self.demonstrations else self.zero_shot_trigger

    def _asked(self, input: str, label: str | None) -> str:
        return f"{self._question(input, label)}\n{self.cue}".rstrip("\n")

    def _question(self, input: str, label: str | None) -> str:
        values = {"input": input, **self._parts(input)}
        if self.needs_label:
            if label is None:
                raise ValueError(f"The prompt shows the gold label, and the row {input[:60]!r} has none.")
            values |= {"label": label, **self._letter(self.question, input, label)}
        return self.question.format(**values)

    def _parts(self, input: str) -> dict[str, str]:
        parts = input.split(self.separator, maxsplit=len(self.fields) - 1) if self.fields else []
        if len(parts) < len(self.fields):
            raise ValueError(
                f"The input {input[:60]!r} has {len(parts)} of the {len(self.fields)} fields {', '.join(self.fields)}: "
                f"{self.separator!r} must stand between them."
            )
        return {name: part.strip() for name, part in zip(self.fields, parts, strict=True)}

    @staticmethod
    def _letter(template: str, input: str, label: str) -> dict[str, str]:
        return {"letter": choice_letter(input, label)} if "letter" in named_fields(template) else {}


def load_prompt(path: str | Path, parse: Parser | None = None, label_set: Sequence[str] = ()) -> Prompt:
    """Reads a prompt file and checks all of its demonstrations.

    Args:
      path: a TOML file, or the name of a dataset whose prompt comes with the package, e.g. `cqa`.
      parse: the parser of the teacher's answers: every demonstration's answer must read back as it was written.
      label_set: the labels that exist; empty for free text.

    Raises:
      FileNotFoundError: where there is no such file.
      ValueError: for anything wrong in it, with the file and the entry.
    """
    path = find_prompt(path)
    fields = read_prompt_file(path)
    demonstrations = tuple(Demonstration(**entry) for entry in fields.pop("demonstrations"))
    try:
        prompt = Prompt(**fields, demonstrations=demonstrations)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    seen: dict[str, int] = {}
    for number, demonstration in enumerate(prompt.demonstrations, 1):
        where = f"{path}, demonstration {number}"
        if demonstration.input in seen:
            raise ValueError(f"{where}: the input is that of demonstration {seen[demonstration.input]} again.")
        seen[demonstration.input] = number
        if label_set and demonstration.label not in label_set:
            mend = nearest(demonstration.label, label_set)
            raise ValueError(f"{where}: the label {demonstration.label!r} is not in the label set.{mend}")
        try:
            _check_demonstration(prompt, demonstration, parse)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
    return prompt


def make_prompt(
    path: str | Path,
    parse: Parser | None = None,
    label_set: Sequence[str] = (),
    *,
    demonstrations: int | None = None,
    seed: int = 0,
    zero_shot: bool = False,
    rationalise: bool = False,
) -> Prompt:
    """`load_prompt` with its options applied.

    Args:
      path: see `load_prompt`.
      parse: see `load_prompt`.
      label_set: see `load_prompt`.
      demonstrations: how many to draw; None for all, in the file's order.
      seed: which ones.
      zero_shot: no demonstrations.
      rationalise: show the gold label.

    Raises:
      FileNotFoundError, ValueError: see `load_prompt`; for options that the file does not support, or that contradict
        each other.
    """
    prompt = load_prompt(path, parse, label_set)
    if zero_shot and demonstrations is not None:
        raise ValueError("zero_shot means no demonstrations; do not ask for a number of them.")
    try:
        if zero_shot:
            prompt = prompt.without_demonstrations()
        elif demonstrations is not None:
            prompt = prompt.draw(demonstrations, seed)
        elif not prompt.demonstrations:
            prompt = prompt.without_demonstrations()
        return prompt.rationalising() if rationalise else prompt
    except ValueError as error:
        raise ValueError(f"{find_prompt(path)}: {error}") from None


def _check_demonstration(prompt: Prompt, demonstration: Demonstration, parse: Parser | None) -> None:
    prompt.completion(demonstration.input, demonstration.label)
    answer = prompt.render_answer(demonstration)
    if parse is None:
        return
    read = parse(answer)
    if read != TeacherOutput(demonstration.rationale, demonstration.label):
        why = f" ({read.failure})" if read.failure else ""
        raise ValueError(
            f"the answer {answer!r} reads back as rationale {read.rationale!r} and label {read.label!r}{why}; the "
            f"answer template must follow the layout that the parser reads, and the rationale must not hold its marker."
        )
