"""Makes tasks/bestiary_spiece.model, the SentencePiece vocabulary of the generated dataset `bestiary`.

    python scripts/make_bestiary_vocabulary.py [--output tasks/bestiary_spiece.model]

The default world's words become single pieces; names of other worlds teach it the syllables that names are made of, and
all of printable ASCII is covered, so that every world and any typed text can be spelt. The ids are laid out as T5's:
pad 0, eos 1, unk 2, no bos. One thread: with more, the order in which counts are summed would change the pieces.
"""

from __future__ import annotations

import argparse
import io
import itertools
import pathlib
import string
from collections.abc import Iterator

import sentencepiece

from dsbs_jax.schema import ANSWER_MARKER, PREFIXES
from dsbs_jax.tasks.bestiary import ATTRIBUTES, VOCABULARY_PATH, Parameters, World

PIECES = 768


def corpus() -> Iterator[str]:
    """The default world in every wording, with each prefix and rationale; then the words and names of other worlds."""
    sentences = list(_default_world())
    yield from sentences
    words = {word.strip(string.punctuation) for sentence in sentences for word in sentence.split()}
    words.update(itertools.chain.from_iterable(attribute.values for attribute in ATTRIBUTES))
    for word in sorted(words):
        # SentencePiece only considers strings that it finds in two different "words": these are `word?` and `word.`
        yield from [f"{word}? {word}."] * 20
    yield from World(Parameters(seed=1, creatures=3000)).creatures


def _default_world() -> Iterator[str]:
    prefixes = [*itertools.chain.from_iterable(style.values() for style in PREFIXES.values()), ""]
    world = World(Parameters())
    for creature, name in enumerate(world.creatures):
        kind = world.kinds[world.kind_of[creature]]
        for index, attribute in enumerate(ATTRIBUTES):
            value = attribute.values[world.value_of[world.kind_of[creature], index]]
            statement = attribute.statement.format(kinds=kind + "s", value=value)
            for number, question in enumerate(attribute.questions):
                yield prefixes[(creature + index + number) % len(prefixes)] + question.format(creature=name)
            yield f"A {name} is a {kind}, and {statement}. {ANSWER_MARKER} {value}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path(VOCABULARY_PATH))
    output = parser.parse_args().output
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=corpus(),
        model_writer=model,
        model_type="unigram",
        vocab_size=PIECES,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        character_coverage=1.0,
        required_chars=string.ascii_letters + string.digits + string.punctuation,
        split_by_whitespace=True,
        num_threads=1,
        minloglevel=2,
    )
    output.write_bytes(model.getvalue())
    print(f"{output}: {PIECES} pieces")


if __name__ == "__main__":
    main()
