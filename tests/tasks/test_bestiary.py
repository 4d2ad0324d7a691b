import collections
import dataclasses
import itertools
import os
import pathlib
import subprocess
import sys

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from dsbs_jax.data.accounts import NOTHING_TO_LEARN
from dsbs_jax.data.dataset import SPLITS
from dsbs_jax.data.vocabulary import Vocabulary
from dsbs_jax.tasks.bestiary import ATTRIBUTES, DATASET, KINDS, VOCABULARY_PATH, Parameters, World, generate

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def world() -> World:
    return World(Parameters())


def _pairs(world: World, split: str) -> set[tuple[int, int]]:
    return {divmod(int(pair), world.parameters.attributes) for pair in world.questions(split).pairs}


def test_the_default_world_has_the_promised_size(world):
    assert (len(set(world.creatures)), len(set(world.kinds))) == (120, 10)
    assert {split: len(world.questions(split)) for split in SPLITS} == {"train": 960, "validation": 240, "test": 240}
    labels = collections.defaultdict(set)
    for split in SPLITS:
        for pair, example in zip(world.questions(split).pairs, generate(Parameters(), split), strict=True):
            labels[pair % 12].add(example.label)
    assert all(len(values) == 5 for values in labels.values())
    assert len(labels) == 12


def test_values_depend_on_the_kind_alone_and_every_rationale_says_so(world):
    known = {}
    for split in SPLITS:
        questions = world.questions(split)
        for pair, example in zip(questions.pairs, questions, strict=True):
            creature, attribute = divmod(int(pair), 12)
            name, kind = world.creatures[creature], world.kinds[world.kind_of[creature]]
            assert name in example.input
            assert known.setdefault((kind, attribute), example.label) == example.label
            statement = ATTRIBUTES[attribute].statement.format(kinds=kind + "s", value=example.label)
            assert example.rationale == f"A {name} is a {kind}, and {statement}."
            assert example.target_label("teacher") == example.label
            assert example.choices == ()
    assert len(known) == 120


def test_guessing_is_at_chance(world):
    # Ten kinds share five values two by two, so the most frequent value of an attribute answers a fifth.
    for column in world.value_of.T:
        assert sorted(collections.Counter(column.tolist()).values()) == [2] * 5


@given(
    st.builds(
        Parameters,
        creatures=st.integers(8, 200),
        kinds=st.integers(2, 8),
        attributes=st.integers(3, 12),
        values=st.just(2),
        seed=st.integers(0, 2**40),
    )
)
@settings(max_examples=25, deadline=None)  # A world takes tens of milliseconds; a busy machine should not fail that.
def test_splits_cover_all_pairs_and_never_overlap(parameters):
    world = World(parameters)
    train, validation, test = (_pairs(world, split) for split in SPLITS)
    everything = set(itertools.product(range(parameters.creatures), range(parameters.attributes)))
    assert train | validation | test == everything
    assert len(train) + len(validation) + len(test) == len(everything)
    for pairs in (train, validation, test):
        assert {creature for creature, _ in pairs} == set(range(parameters.creatures))


def test_no_question_of_the_held_out_splits_is_in_train():
    train, validation, test = ({example.input for example in generate(Parameters(), split)} for split in SPLITS)
    assert not train & validation
    assert not train & test
    assert not validation & test


def test_training_shows_enough_to_tell_every_creatures_kind(world):
    shown = collections.defaultdict(list)
    for creature, attribute in _pairs(world, "train"):
        shown[creature].append(attribute)
    for creature, attributes in shown.items():
        own = world.kind_of[creature]
        fitting = [
            kind for kind in range(10) if (world.value_of[kind, attributes] == world.value_of[own, attributes]).all()
        ]
        assert fitting == [own]


def test_templates_are_all_used_and_fit_their_fields(world):
    wordings = collections.Counter()
    for split in SPLITS:
        questions = world.questions(split)
        for pair, example in zip(questions.pairs, questions, strict=True):
            creature, attribute = divmod(int(pair), 12)
            wordings[attribute, example.input.replace(world.creatures[creature], "{creature}")] += 1
    assert set(wordings) == {
        (i, question) for i, attribute in enumerate(ATTRIBUTES) for question in attribute.questions
    }
    # 120 questions in 3 wordings: 40 each but for chance (standard deviation 5.2).
    assert min(wordings.values()) > 20
    values = [value for attribute in ATTRIBUTES for value in attribute.values]
    assert len(set(values)) == len(values) == 96
    assert all(name[0] not in "aeiou" for name in (*world.creatures, *KINDS))


def test_the_same_parameters_make_the_same_world_in_another_process():
    code = (
        "from dsbs_jax.tasks.bestiary import *; import hashlib;"
        "print(hashlib.sha256(repr([list(generate(Parameters(), s)) for s in SPLITS]).encode()).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1


def test_the_default_world_stays_the_same_between_releases():
    # Published numbers are about this world: a change of these lines is a change of the dataset.
    first = next(generate(Parameters(), "train"))
    assert (first.id, first.input, first.label, first.rationale) == (
        "train/0",
        "What sound does a malbosh make?",
        "barking",
        "A malbosh is a troll, and trolls call by barking.",
    )


def test_another_seed_is_another_world(world):
    other = World(Parameters(seed=1))
    assert not set(other.creatures) & set(world.creatures)
    assert (other.value_of != world.value_of).any()


def test_rows_grow_the_world():
    world = World(Parameters(rows=100_000, kinds=40, values=8))
    assert sum(len(world.questions(split)) for split in SPLITS) == 100_008
    assert len(set(world.creatures)) == len(world.creatures) == 8334
    assert len(set(world.kinds)) == 40
    assert not set(world.kinds) & set(world.creatures)
    questions = world.questions("train")
    assert questions[-1] == questions[len(questions) - 1]
    assert [example.id for example in questions[2:4]] == ["train/2", "train/3"]
    with pytest.raises(IndexError):
        questions[len(questions)]


def test_names_get_longer_when_short_ones_run_out():
    world = World(Parameters(creatures=60_000))
    assert len(set(world.creatures)) == 60_000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"creatures": 5}, "kinds is 10; with 5 creatures"),
        ({"kinds": 1, "values": 1}, "kinds is 1"),
        ({"attributes": 13}, "attributes is 13; .* between 3 and 12"),
        ({"attributes": 2}, "attributes is 2"),
        ({"values": 9}, "values is 9; .* between 2 and 8"),
        ({"values": 11, "kinds": 10}, "values is 11"),
    ],
)
def test_impossible_sizes(change: dict[str, int], message: str):
    with pytest.raises(ValueError, match=message):
        Parameters(**change)


def test_unknown_split(world):
    with pytest.raises(ValueError, match="There is no split 'valid'; the splits are train, validation, test"):
        world.questions("valid")


def test_the_dataset_loads_every_row_and_takes_every_parameter():
    for split in SPLITS:
        loaded = DATASET.load(split)
        assert loaded.examples == list(generate(Parameters(), split))
        assert not loaded.counts.skipped
        assert loaded.counts.no_rationale == 0
    small = DATASET.with_arguments(creatures=20, kinds=4, values=3, attributes=6, seed=9)
    assert small.examples("test") == list(generate(Parameters(20, 4, 6, 3, 9), "test"))
    assert DATASET.argument_defaults() == dataclasses.asdict(Parameters()) | {"labelled": 1.0, "unlabelled": 0.0}


def test_teachers_that_err_err_as_often_as_they_say_and_the_worse_where_the_better_do():
    right = {}
    for teacher, expected in (
        ("llm", 1.0),
        ("errs_0", 0.98),
        ("errs_18", 0.80 + 0.18 / 9),
        ("errs_50", 0.48 + 0.5 / 9),
    ):
        counts = [DATASET.load(split, teacher=teacher).counts for split in ("train", "validation", "test")]
        assert [each.teacher_judged for each in counts] == [960, 240, 240]
        # A wrong kind has the right value now and then: 1 of the 9 others shares it. Three standard errors of 1,440.
        assert sum(each.teacher_right for each in counts) / 1440 == pytest.approx(expected, abs=0.04)
        examples = DATASET.examples("train", teacher=teacher)
        right[teacher] = {example.id for example in examples if example.teacher.label == example.label}
        assert all(example.rationale is None or example.rationale.startswith("A ") for example in examples)
    assert right["errs_50"] - right["errs_18"] < right["errs_18"]
    assert len(right["errs_50"] - right["errs_18"]) < 20  # a wrong kind with the right value, by luck
    with pytest.raises(ValueError, match="bestiary has no teacher 'palm': 'llm' is always right"):
        DATASET.load("train", teacher="palm")


def test_a_share_of_the_questions_can_be_without_gold_labels_and_the_teacher_answers_them(world):
    half = DATASET.with_arguments(labelled=0.5).load("train", teacher="errs_18")
    both = DATASET.with_arguments(labelled=0.5, unlabelled=0.25).load("train", teacher="errs_18")
    # Of the 240 without a gold label the teacher has not answered 11.
    assert (half.counts.kept, both.counts.kept, both.counts.unlabelled) == (480, 709, 229)
    assert both.counts.skipped == {NOTHING_TO_LEARN: 11}
    assert half.examples == both.examples[:480]
    everything = [example.input for example in world.questions("train")]
    extra = both.examples[480:]
    assert {example.input for example in extra} < set(everything[480:720])
    assert all(example.label is None and example.target_label("teacher") for example in extra)
    assert len(DATASET.with_arguments(labelled=0.5).examples("test")) == 240
    with pytest.raises(ValueError, match="both together at most 1"):
        DATASET.with_arguments(labelled=0.8, unlabelled=0.5).load("train")


def test_the_vocabulary_spells_the_world_with_few_pieces(world):
    vocabulary = Vocabulary(VOCABULARY_PATH)
    processor = sentencepiece.SentencePieceProcessor(VOCABULARY_PATH)
    assert (processor.pad_id(), processor.eos_id(), processor.unk_id(), processor.bos_id()) == (0, 1, 2, -1)
    assert vocabulary.num_pieces == 768
    for word in (*world.creatures, *world.kinds, *DATASET.label_set):
        assert len(vocabulary.encode(word)) == 1
    for split in SPLITS:
        for example in world.questions(split):
            for text, limit in ((f"predict: {example.input}", 12), (example.rationale, 14), (example.label, 1)):
                ids = vocabulary.encode(text)
                assert len(ids) <= limit
                assert vocabulary.decode(ids) == text
    for name in World(Parameters(seed=3, creatures=1000)).creatures:
        assert len(vocabulary.encode(name)) <= 5


@given(st.text(alphabet=st.characters(min_codepoint=33, max_codepoint=126)))
def test_the_vocabulary_spells_all_of_ascii(text):
    vocabulary = Vocabulary(VOCABULARY_PATH)
    # `</s>` is the end of a sequence, by contract of the vocabulary.
    assert "</s>" in text or 2 not in vocabulary.encode(text)


@pytest.mark.skipif(
    sentencepiece.__version__ != "0.2.3", reason="made with sentencepiece 0.2.3; others train slightly different pieces"
)
def test_the_script_makes_the_committed_vocabulary(tmp_path):
    made = tmp_path / "made.model"
    script = REPOSITORY / "scripts" / "make_bestiary_vocabulary.py"
    subprocess.run([sys.executable, str(script), "--output", str(made)], check=True, capture_output=True)
    pieces = [
        [(p.id_to_piece(i), round(p.get_score(i), 3)) for i in range(p.get_piece_size())]
        for p in (sentencepiece.SentencePieceProcessor(str(path)) for path in (made, VOCABULARY_PATH))
    ]
    assert pieces[0] == pieces[1]
