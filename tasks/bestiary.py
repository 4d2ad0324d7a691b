"""bestiary: a generated world in which the paper's claim can be checked.

Invented creatures belong to kinds, and every attribute's value depends on the kind alone. A question asks one attribute
of one creature; the rationale names the creature's kind, then the kind's value:

    What does a grolbek eat?  ->  moss      (A grolbek is a wisp, and wisps eat moss.)

Questions of the validation and test splits ask for pairs (creature, attribute) that training never shows, so a student
has to find out the kinds. The rationales name them; the labels only imply them. Where no teacher was asked, the world
itself is the teacher: its rationales and labels are right. `TEACHER = 'errs_18'` is one that errs: at 18 % of the
questions it takes the creature for one of another kind, so that rationale and label are wrong together, and to 2 % it
gives no answer.

Everything follows from the parameters: random choices rank raw Philox words, which no version of NumPy changes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import math
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import overload

import numpy as np

from dsbs_jax.data.dataset import SPLITS, Dataset, Rows
from dsbs_jax.schema import Example, TeacherOutput
from dsbs_jax.teacher.parsers import PARSERS

# Made by scripts/make_bestiary_vocabulary.py.
VOCABULARY_PATH = str(pathlib.Path(__file__).with_name("bestiary_spiece.model"))


_ERRING = re.compile(r"errs_(\d{1,2})")
# Share of the questions to which an erring teacher gives no answer.
RAMBLING = 0.02


@dataclasses.dataclass(frozen=True, slots=True)
class Attribute:
    """Something to ask of a creature.

    Attributes:
      questions: templates over `{creature}`.
      statement: template over `{kinds}` (plural) and `{value}`: the second half of the rationale.
      values: what can be answered.
    """

    questions: tuple[str, ...]
    statement: str
    values: tuple[str, ...]


def _attribute(questions: str, statement: str, values: str) -> Attribute:
    return Attribute(tuple(questions.split(" | ")), statement, tuple(values.split()))


ATTRIBUTES = (
    _attribute(
        "What does a {creature} eat? | What do you feed a {creature}? | Which food does a {creature} like?",
        "{kinds} eat {value}",
        "moss acorns beetles honey clay mushrooms reeds snails",
    ),
    _attribute(
        "Where does a {creature} live? | Where do you find a {creature}? | Where is the home of a {creature}?",
        "{kinds} live in {value}",
        "caves marshes treetops dunes ruins meadows lagoons canyons",
    ),
    _attribute(
        "What colour is a {creature}? | Which colour does a {creature} have? | What is the colour of a {creature}?",
        "{kinds} are {value}",
        "crimson golden violet silver green white black orange",
    ),
    _attribute(
        "How does a {creature} call? | What sound does a {creature} make? | What do you hear from a {creature}?",
        "{kinds} call by {value}",
        "humming whistling growling chirping hissing barking clicking roaring",
    ),
    _attribute(
        "What covers a {creature}? | What is a {creature} covered in? | What grows on the skin of a {creature}?",
        "{kinds} are covered in {value}",
        "scales feathers fur bark slime spines wool plates",
    ),
    _attribute(
        "When does a {creature} hatch? | In which month does a {creature} hatch? | When is a {creature} born?",
        "{kinds} hatch in {value}",
        "March April May June July August September October",
    ),
    _attribute(
        "What does a {creature} fear? | What is a {creature} afraid of? | What scares a {creature}?",
        "{kinds} fear {value}",
        "thunder mirrors fire bells crows drums candles wolves",
    ),
    _attribute(
        "What does a {creature} collect? | What does a {creature} hoard? | Which treasure does a {creature} keep?",
        "{kinds} collect {value}",
        "pearls coins bones buttons ribbons spoons gems keys",
    ),
    _attribute(
        "How does a {creature} travel? | How does a {creature} get around? | In what way does a {creature} move?",
        "{kinds} travel by {value}",
        "swimming gliding hopping crawling digging rolling climbing running",
    ),
    _attribute(
        "Which weather does a {creature} love? | What weather suits a {creature}? | What weather fits a {creature}?",
        "{kinds} love {value}",
        "rain fog snow wind sunshine hail frost storms",
    ),
    _attribute(
        "What does a {creature} fight with? | How does a {creature} defend itself? | What weapon has a {creature}?",
        "{kinds} fight with {value}",
        "claws horns venom tusks fangs stingers hooves tails",
    ),
    _attribute(
        "What does a {creature} smell of? | Which smell does a {creature} have? | Which scent does a {creature} leave?",
        "{kinds} smell of {value}",
        "mint smoke pepper roses cheese vanilla leather pine",
    ),
)
KINDS = ("wisp", "drake", "golem", "sprite", "troll", "griffin", "kelpie", "gnome", "wyvern", "hydra")

# Invented names read consonant, vowel, consonants, vowel, consonant (`grolbek`), so that "a" is always their article.
_ONSETS = ("b", "d", "fl", "g", "gr", "h", "j", "k", "kr", "l", "m", "n", "pl", "qu", "r", "s", "sn", "t", "v", "z")
_VOWELS = ("a", "e", "i", "o", "u")
_MIDDLES = ("b", "d", "k", "l", "lb", "ld", "m", "mp", "nd", "r", "rv", "sk", "t", "v", "x", "zz")
_CODAS = ("b", "ck", "d", "k", "lt", "m", "nk", "nt", "p", "sh", "sk", "th", "x", "z")


@dataclasses.dataclass(frozen=True)
class Parameters:
    """The size and the seed of a world; each combination is a world of its own.

    Attributes:
      creatures: how many creatures there are; each is asked about every attribute, once.
      kinds: how many kinds they belong to, in equal shares. Beyond the built-in ones their names are invented.
      attributes: how many attributes there are, at most 12. A sixth of each creature's (at least one) is for
        validation, as many for test.
      values: how many values an attribute takes, at most 8; the kinds share them equally, so that guessing
        scores 1 / values.
      seed: chooses names, kinds, values, splits and the wording of each question.
      rows: grows `creatures` until all splits together have at least this many questions; for load tests.

    Raises:
      ValueError: for a size that no world has.
    """

    creatures: int = 120
    kinds: int = 10
    attributes: int = 12
    values: int = 5
    seed: int = 0
    rows: int = 0

    def __post_init__(self) -> None:
        limits = {
            "kinds": (2, self.creatures),
            "attributes": (3, len(ATTRIBUTES)),
            "values": (2, min(self.kinds, len(ATTRIBUTES[0].values))),
        }
        for name, (low, high) in limits.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(
                    f"bestiary: {name} is {getattr(self, name)}; with {self.creatures} creatures and {self.kinds} "
                    f"kinds it must lie between {low} and {high}."
                )
        if self.rows > self.creatures * self.attributes:
            object.__setattr__(self, "creatures", -(-self.rows // self.attributes))


class World:
    """Who lives in the bestiary, and which question belongs to which split.

    Attributes:
      parameters: what the world was made from.
      creatures: their names.
      kinds: the kinds' names (singular).
      kind_of: int [creatures], the creature's kind.
      value_of: int [kinds, attributes], an index into the attribute's values.
    """

    def __init__(self, parameters: Parameters) -> None:
        self.parameters = parameters
        creatures, attributes = parameters.creatures, parameters.attributes
        names = _invented_names(max(0, parameters.kinds - len(KINDS)) + creatures, self._words)
        self.creatures = names[:creatures]
        self.kinds = (list(KINDS) + names[creatures:])[: parameters.kinds]
        self.kind_of = _ranks(self._words("kinds", creatures)) % parameters.kinds
        # Equal shares: the kinds take an attribute's values in turn, in an order of the attribute's own.
        self.value_of = np.empty((parameters.kinds, attributes), dtype=np.int64)
        for index, attribute in enumerate(ATTRIBUTES[:attributes]):
            chosen = np.argsort(self._words(f"values/{index}", len(attribute.values)), kind="stable")
            share = _ranks(self._words(f"shares/{index}", parameters.kinds)) % parameters.values
            self.value_of[:, index] = chosen[share]
        # Ranking each creature's attributes gives every creature the same number of pairs in each split.
        ranks = _ranks(self._words("splits", creatures * attributes).reshape(creatures, attributes))
        held_out = max(1, round(attributes / 6))
        self._pair_split = np.where(ranks < held_out, 2, np.where(ranks < 2 * held_out, 1, 0)).reshape(-1)
        self._wording = self._words("wording", creatures * attributes)

    def questions(self, split: str) -> Questions:
        """The questions of `train`, `validation` or `test`, in an order without pattern.

        Raises:
          ValueError: for another split.
        """
        if split not in SPLITS:
            raise ValueError(f"There is no split {split!r}; the splits are {', '.join(SPLITS)}.")
        pairs = np.flatnonzero(self._pair_split == SPLITS.index(split))
        return Questions(self, split, pairs[np.argsort(self._words(f"order/{split}", len(pairs)), kind="stable")])

    def example(self, id: str, pair: int) -> Example:
        """The question number `pair` = creature * attributes + attribute."""
        creature, index = divmod(int(pair), self.parameters.attributes)
        attribute, kind = ATTRIBUTES[index], int(self.kind_of[creature])
        value = attribute.values[self.value_of[kind, index]]
        question = attribute.questions[int(self._wording[pair]) % len(attribute.questions)]
        return Example(
            id=id,
            input=question.format(creature=self.creatures[creature]),
            label=value,
            teacher=TeacherOutput(rationale=self._rationale(creature, index, kind), label=value),
        )

    def answer(self, pair: int, wrong_kind: float, rambling: float = RAMBLING) -> str:
        """The raw answer of a teacher that errs to the question number `pair`, always the same one.

        Args:
          pair: creature * attributes + attribute.
          wrong_kind: share of the questions at which it takes the creature for one of another kind. Who errs more often
            errs where others do, too.
          rambling: share of the questions to which it gives no answer.
        """
        creature, index = divmod(int(pair), self.parameters.attributes)
        name, kind = self.creatures[creature], int(self.kind_of[creature])
        question = self.example("", pair).input
        chance, which = (_uniform(f"{draw}/{question}") for draw in (0, 1))
        if chance < rambling:
            return f"A {name} is a creature that few have seen, and those who have seen one tell different stories."
        if chance < rambling + wrong_kind:
            others = [other for other in range(len(self.kinds)) if other != kind]
            kind = others[int(which * len(others))]
        value = ATTRIBUTES[index].values[self.value_of[kind, index]]
        return f"{self._rationale(creature, index, kind)} So the answer is {value}."

    def _rationale(self, creature: int, index: int, kind: int) -> str:
        attribute = ATTRIBUTES[index]
        value = attribute.values[self.value_of[kind, index]]
        statement = attribute.statement.format(kinds=f"{self.kinds[kind]}s", value=value)
        return f"A {self.creatures[creature]} is a {self.kinds[kind]}, and {statement}."

    def _words(self, purpose: str, count: int) -> np.ndarray:
        """uint64 [count] of random words that depend on the seed and the purpose alone."""
        key = hashlib.blake2b(f"{self.parameters.seed}/{purpose}".encode(), digest_size=16).digest()
        return np.random.Philox(key=int.from_bytes(key, "little")).random_raw(count)


class Questions(Sequence[Example]):
    """The questions of one split; each `Example` is made when it is asked for."""

    def __init__(self, world: World, split: str, pairs: np.ndarray) -> None:
        """`pairs` is int [questions], creature * attributes + attribute."""
        self.world = world
        self.split = split
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        row = range(len(self))[index]
        return self.world.example(f"{self.split}/{row}", self.pairs[row])

    def answers(self, teacher: str) -> list[str]:
        """The raw answers of a teacher that errs.

        Raises:
          ValueError: there is no such teacher.
        """
        if (erring := _ERRING.fullmatch(teacher)) is None:
            raise ValueError(
                f"bestiary has no teacher {teacher!r}: 'llm' is always right, 'errs_18' takes 18 % of the creatures "
                "for one of another kind; or name a folder of `dsbs label`."
            )
        return [self.world.answer(pair, int(erring[1]) / 100) for pair in self.pairs]


def generate(parameters: Parameters, split: str) -> Iterator[Example]:
    """The examples of one split of one world, one after the other."""
    return iter(World(parameters).questions(split))


def read(
    split: str,
    data_dir: str | pathlib.Path | None = None,
    *,
    creatures: int = Parameters.creatures,
    kinds: int = Parameters.kinds,
    attributes: int = Parameters.attributes,
    values: int = Parameters.values,
    seed: int = Parameters.seed,
    rows: int = Parameters.rows,
    labelled: float = 1.0,
    unlabelled: float = 0.0,
) -> Rows:
    """The rows of one split, see `Parameters`; nothing is read from `data_dir`.

    Args:
      split: `train`, `validation` or `test`.
      data_dir: not read.
      creatures, kinds, attributes, values, seed, rows: of `Parameters`.
      labelled: share of the training questions that are there at all, in (0, 1].
      unlabelled: share of them that are there besides as inputs without gold labels, which a teacher may have labelled.

    Raises:
      ValueError: for a world, or shares of it, that do not exist.
    """
    del data_dir
    if not 0 < labelled <= 1 or unlabelled < 0 or labelled + unlabelled > 1:
        raise ValueError(
            f"bestiary: labelled is {labelled} and unlabelled is {unlabelled}; they are shares of the training "
            "questions, the first above 0, both together at most 1."
        )
    parameters = Parameters(creatures, kinds, attributes, values, seed, rows)
    world = World(parameters)
    questions = world.questions(split)
    where = f"the generated world {parameters}"
    extra = None
    if split == "train":
        ends = [round(share * len(questions)) for share in (labelled, labelled + unlabelled)]
        rest = Questions(world, "unlabelled", questions.pairs[ends[0] : ends[1]])
        questions = Questions(world, split, questions.pairs[: ends[0]])
        extra = Rows(rest, where, answers=rest.answers) if len(rest) else None
    return Rows(questions, where, answers=questions.answers, extra=extra)


DATASET = Dataset(
    name="bestiary",
    read=read,
    label_set=tuple(itertools.chain.from_iterable(attribute.values for attribute in ATTRIBUTES)),
    parse=PARSERS["bestiary"],
    vocabulary_file=VOCABULARY_PATH,
)


def _uniform(text: str) -> float:
    """A number in [0, 1) that the text alone decides."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) / 2**64


def _ranks(words: np.ndarray) -> np.ndarray:
    """int64, the rank of each word within its row (the last axis): a random permutation per row."""
    return np.argsort(np.argsort(words, axis=-1, kind="stable"), axis=-1, kind="stable")


def _invented_names(count: int, words: Callable[[str, int], np.ndarray]) -> list[str]:
    """`count` different names; longer ones where the short ones would run out."""
    parts = [_ONSETS, _VOWELS, _MIDDLES, _VOWELS, _CODAS]
    while math.prod(map(len, parts)) < 4 * count:
        parts[-1:-1] = [_MIDDLES, _VOWELS]
    sizes = tuple(map(len, parts))
    # Of 2 n + 64 draws from 4 n or more names, n or more differ: 1.57 n are expected where n is large.
    numbers = words("names", 2 * count + 64) % np.uint64(math.prod(sizes))
    first_seen = np.sort(np.unique(numbers, return_index=True)[1])[:count]
    digits = np.stack(np.unravel_index(numbers[first_seen].astype(np.int64), sizes), axis=1).tolist()
    return ["".join(part[digit] for part, digit in zip(parts, row, strict=True)) for row in digits]
