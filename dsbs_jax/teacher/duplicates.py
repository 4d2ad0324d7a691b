"""Texts that say the same: equal but for case and punctuation, or nearly equal, among hundreds of thousands.

Nearly equal means that about 80 % of all three-word sequences (shingles) of two texts are in both (Jaccard similarity).
It is estimated by MinHash (Broder, 1997): of 64 random orders of all shingles, in how many do both texts have the same
first one? Texts with four such firsts in a row in common are compared (locality-sensitive hashing; two texts that share
80 % meet with probability 0.9998). So the time is n log n in the number of texts.

A distinct text takes about 600 bytes of memory (its signature, its hash, its first 200 characters), one that is seen
again none: 550,000 rationales of 14 words take 20 s and 350 MB.
"""

from __future__ import annotations

import array
import dataclasses
import hashlib
import re
import zlib
from collections.abc import Sequence

import numpy as np

SHINGLE_WORDS = 3
SIMILAR = 0.8
_ORDERS = 64
_BAND = 4
_CHUNK = 1024
_SHOWN_CHARACTERS = 200
_WORD = re.compile(r"\w+")


def words_of(text: str) -> list[str]:
    """The words of a text, letter case folded, punctuation left out."""
    return _WORD.findall(text.casefold())


def shingles(words: Sequence[str]) -> list[int]:
    """A 32-bit hash for each sequence of three words, repeated ones once; of a shorter text, one for all of it."""
    if len(words) <= SHINGLE_WORDS:
        return [zlib.crc32(" ".join(words).encode("utf-8", "replace"))]
    sequences = (" ".join(words[i : i + SHINGLE_WORDS]) for i in range(len(words) - SHINGLE_WORDS + 1))
    return list({zlib.crc32(sequence.encode("utf-8", "replace")) for sequence in sequences})


@dataclasses.dataclass(frozen=True)
class Group:
    """Texts that say the same.

    Attributes:
      rows: how many rows there are.
      wordings: how many different texts they have.
      text: the beginning of the first one.
    """

    rows: int
    wordings: int
    text: str


@dataclasses.dataclass(frozen=True)
class Duplicates:
    """How many texts repeat others.

    Attributes:
      texts: all of them.
      exact: texts that were seen before, letter case, white space and punctuation apart.
      near: other texts that resemble one seen before.
      groups: the largest groups of two or more rows.
    """

    texts: int
    exact: int
    near: int
    groups: tuple[Group, ...]


class DuplicateFinder:
    """Takes texts one at a time, and tells at the end which say the same."""

    def __init__(self) -> None:
        self._index: dict[int, int] = {}
        self._rows = array.array("q")
        self._texts = bytearray()
        self._ends = array.array("q")
        self._waiting: list[list[int]] = []
        self._signatures: list[np.ndarray] = []
        # Odd multipliers of 64 bits: multiply-shift hashing of 32-bit shingles, high bits kept (Dietzfelbinger, 1997).
        words = np.random.Philox(key=0).random_raw(2 * _ORDERS).astype(np.uint64)
        self._multipliers, self._offsets = words[:_ORDERS] | np.uint64(1), words[_ORDERS:]

    def add(self, text: str, words: Sequence[str], hashes: list[int]) -> None:
        """Takes one text, its `words_of` and their `shingles`."""
        joined = " ".join(words).encode("utf-8", "replace")
        key = int.from_bytes(hashlib.blake2b(joined, digest_size=8).digest(), "little")
        known = self._index.setdefault(key, len(self._rows))
        if known < len(self._rows):
            self._rows[known] += 1
            return
        self._rows.append(1)
        self._texts += text[:_SHOWN_CHARACTERS].encode("utf-8", "replace")
        self._ends.append(len(self._texts))
        self._waiting.append(hashes)
        if len(self._waiting) == _CHUNK:
            self._sign()

    def result(self, most: int = 10) -> Duplicates:
        """What was found in all texts so far, with the `most` largest groups."""
        if self._waiting:
            self._sign()
        rows = np.array(self._rows, dtype=np.int64)
        groups = self._components(len(rows))
        sizes = np.bincount(groups, weights=rows).astype(np.int64) if len(rows) else np.zeros(0, np.int64)
        wordings = np.bincount(groups) if len(rows) else sizes
        firsts = np.unique(groups, return_index=True)[1]
        largest = [int(group) for group in np.argsort(-sizes, kind="stable")[:most] if sizes[group] > 1]
        return Duplicates(
            texts=int(rows.sum()),
            exact=int(rows.sum()) - len(rows),
            near=len(rows) - len(sizes),
            groups=tuple(Group(int(sizes[g]), int(wordings[g]), self._text(int(firsts[g]))) for g in largest),
        )

    def _text(self, index: int) -> str:
        start = self._ends[index - 1] if index else 0
        return self._texts[start : self._ends[index]].decode("utf-8")

    def _sign(self) -> None:
        """Signatures uint16 [texts, 64] of the waiting texts: the smallest hash of their shingles in each order."""
        starts = np.cumsum([0, *(len(hashes) for hashes in self._waiting[:-1])])
        hashes = np.concatenate([np.array(hashes, dtype=np.uint64) for hashes in self._waiting])
        signature = np.empty((len(self._waiting), _ORDERS), dtype=np.uint16)
        for order in range(_ORDERS):
            ranks = (hashes * self._multipliers[order] + self._offsets[order]) >> np.uint64(48)
            signature[:, order] = np.minimum.reduceat(ranks, starts)
        self._signatures.append(signature)
        self._waiting = []

    def _components(self, count: int) -> np.ndarray:
        """int [texts]: the number of each text's group."""
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        if not count:
            return np.zeros(0, dtype=np.int64)
        signatures = np.concatenate(self._signatures)
        self._signatures = [signatures]
        # Each pair as one number, a * count + b.
        pairs = np.zeros(0, dtype=np.int64)
        # Four values of 16 bits make one of 64.
        for band in np.ascontiguousarray(signatures).view(np.uint64).T:
            order = np.argsort(band, kind="stable")
            begins = np.flatnonzero(np.r_[True, band[order][1:] != band[order][:-1]])
            first = order[np.repeat(begins, np.diff(np.r_[begins, count]))]
            # Each with the first and with the last before it that share the band: linear, also where all are alike.
            met = np.concatenate([np.stack([first, order], axis=1), np.stack([order[:-1], order[1:]], axis=1)])
            met = met[(band[met[:, 0]] == band[met[:, 1]]) & (met[:, 0] != met[:, 1])]
            chunks = np.array_split(met, 1 + len(met) // 100_000)
            alike = np.concatenate([chunk[self._alike(signatures, chunk)] for chunk in chunks])
            pairs = np.union1d(pairs, alike[:, 0] * count + alike[:, 1])
        a, b = np.divmod(pairs, count)
        return connected_components(coo_array((np.ones(len(a), bool), (a, b)), shape=(count, count)), directed=False)[1]

    @staticmethod
    def _alike(signatures: np.ndarray, pairs: np.ndarray) -> np.ndarray:
        return (signatures[pairs[:, 0]] == signatures[pairs[:, 1]]).mean(axis=1) >= SIMILAR
