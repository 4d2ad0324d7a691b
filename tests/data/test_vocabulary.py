"""The vocabulary against known ids, a model trained here, and transformers' tokenizer."""

import io
import json
import shutil

import pytest
import sentencepiece

from dsbs_jax.data.vocabulary import Vocabulary

TEXTS = [
    "predict: A man sleeps.</s>Nobody is awake.",
    "explain: Sammy wanted to go.\nAnswer Choices:\n(a) race track\n(b) the midwest",
    "( 84.0 / 2.0 )",
    "naïve façade — “quoted”  twice   spaced",
    "</s>starts and ends</s>",
    "a</s></s>b",
    "",
]


def _train(path, **options):
    model = io.BytesIO()
    options = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, **options}
    sentences = [f"creature number {word} is a green bird" for word in "abcdefghijklmnopqrstuvwxyz"]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences), model_writer=model, vocab_size=60, hard_vocab_limit=False,
        minloglevel=2, **options,
    )  # fmt: skip
    path.write_bytes(model.getvalue())
    return str(path)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return Vocabulary(_train(tmp_path_factory.mktemp("vocabulary") / "spiece.model"), extra_ids=7)


@pytest.fixture
def real(shared_data):
    path = shared_data / "vocab" / "spiece.model"
    if not path.is_file():
        pytest.skip(f"needs the T5 vocabulary {path}")
    return Vocabulary(str(path))


def test_round_trip(small):
    ids = small.encode("a green bird")
    assert small.decode(ids) == "a green bird"
    assert small.size == small.num_pieces + 7


def test_eos_text_becomes_eos(small):
    left, right = small.encode("a bird"), small.encode("is green")
    assert small.encode("a bird</s>is green") == [*left, 1, *right]
    assert small.encode("</s>") == [1]
    assert small.encode("") == []


def test_decode_stops_at_eos_and_drops_padding_and_sentinels(small):
    ids = small.encode("a bird")
    assert small.decode([0, *ids, small.size - 1, 10**6, 0, 1, *ids]) == "a bird"
    assert small.decode([1, *ids]) == ""


def test_fingerprint_follows_content_not_path(small, tmp_path):
    copy = tmp_path / "other.model"
    shutil.copy(small.path, copy)
    assert Vocabulary(str(copy), 7).fingerprint == small.fingerprint
    assert Vocabulary(str(copy), 8).fingerprint != small.fingerprint
    copy.write_bytes(copy.read_bytes() + b"\0")
    assert Vocabulary(str(copy), 7).fingerprint != small.fingerprint


def test_bad_files_are_one_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match="Cannot read the vocabulary"):
        Vocabulary(str(tmp_path / "absent.model")).encode("a")
    broken = tmp_path / "broken.model"
    broken.write_bytes(b"no model at all")
    with pytest.raises(ValueError, match="is not a SentencePiece model"):
        _ = Vocabulary(str(broken)).size
    with pytest.raises(ValueError, match=r"\(pad, eos, unk\)"):
        Vocabulary(_train(tmp_path / "ids.model", pad_id=-1, eos_id=2, unk_id=0, bos_id=1)).encode("a")


def test_known_ids_of_t5(real):
    assert real.size == 32_100
    assert real.encode("predict: Studies have shown.") == [9689, 10, 6536, 43, 2008, 5]
    # A line break is a space to T5's normaliser.
    assert real.encode("a\nb") == real.encode("a b")


def test_agrees_with_transformers(real, tmp_path):
    transformers = pytest.importorskip("transformers")
    shutil.copy(real.path, tmp_path / "spiece.model")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5Tokenizer", "extra_ids": 100}))
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    for text in TEXTS:
        assert [*real.encode(text), 1] == tokenizer(text)["input_ids"], text
    # Not compared where a character is unknown: transformers drops it there, SentencePiece shows it.
    text = TEXTS[1]
    assert real.decode(real.encode(text)) == tokenizer.decode(real.encode(text), skip_special_tokens=True)
