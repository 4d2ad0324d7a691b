"""The SentencePiece vocabulary of T5, without TensorFlow.

Ids: 0 is padding, 1 end of sequence (EOS), 2 unknown; `extra_ids` sentinels follow the pieces.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import pathlib
from collections.abc import Iterable

import sentencepiece

PAD_ID = 0
EOS_ID = 1
UNK_ID = 2
# NLI inputs join premise and hypothesis with this text. Hugging Face's tokenizer reads it as EOS; plain SentencePiece
# knows it only as a control symbol and would spell it `<unk>` and `/s>`.
EOS_TEXT = "</s>"


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """A SentencePiece model file and the number of sentinels after its pieces.

    The file is read on first use.

    Attributes:
      path: the `spiece.model` file.
      extra_ids: sentinels after the pieces: part of `size`, never produced by `encode`.
    """

    path: str
    extra_ids: int = 100

    @property
    def size(self) -> int:
        """Pieces plus sentinels; the embedding may be padded beyond this."""
        return self.num_pieces + self.extra_ids

    @property
    def num_pieces(self) -> int:
        """Ids that text can become and that can become text."""
        return _load(self.path).get_piece_size()

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hex digest of the file's bytes and of `extra_ids`: equal exactly where every id means the same."""
        return hashlib.sha256(_read(self.path) + f"\nextra_ids={self.extra_ids}".encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, without a closing EOS. The literal text `</s>` becomes id 1."""
        first, *others = _load(self.path).encode(text.split(EOS_TEXT))
        return first + list(itertools.chain.from_iterable([EOS_ID, *part] for part in others))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids` up to the first EOS; padding and ids beyond the pieces are left out."""
        pieces = _load(self.path).get_piece_size()
        until_eos = itertools.takewhile(lambda token: token != EOS_ID, map(int, ids))
        return _load(self.path).decode([token for token in until_eos if PAD_ID < token < pieces])


def _read(path: str) -> bytes:
    try:
        return pathlib.Path(path).read_bytes()
    except OSError as error:
        raise FileNotFoundError(
            f"Cannot read the vocabulary {path!r} ({error.strerror}): name a SentencePiece model file, "
            "T5's is called spiece.model."
        ) from None


@functools.lru_cache(maxsize=8)
def _load(path: str) -> sentencepiece.SentencePieceProcessor:
    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.load_from_serialized_proto(_read(path))
    except RuntimeError:
        raise ValueError(f"The vocabulary {path!r} is not a SentencePiece model.") from None
    special = (processor.pad_id(), processor.eos_id(), processor.unk_id())
    if special != (PAD_ID, EOS_ID, UNK_ID):
        raise ValueError(
            f"The vocabulary {path!r} has (pad, eos, unk) = {special}; T5 needs (0, 1, 2): train it with "
            "--pad_id=0 --eos_id=1 --unk_id=2 --bos_id=-1."
        )
    return processor
