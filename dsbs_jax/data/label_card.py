"""The card of a labelled dataset: what was asked, what came back, what it cost, how often it is right."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from dsbs_jax.teacher.agreement import SameLabel
from dsbs_jax.teacher.labelled import LabelledRow
from dsbs_jax.teacher.prices import Prices
from dsbs_jax.teacher.requests import Answer

UNANSWERED = "unanswered"
# Ids of unanswered rows that a card names.
_GAPS_NAMED = 10
_COLUMNS = (
    *("split", "rows", "with a label", "with a rationale", "unanswered", "accuracy"),
    *("samples a row", "answers", "tokens in", "tokens out", "cost"),
)


class Account:
    """What became of a split's rows, counted while they are written.

    Args:
      samples: how many answers each row was to have.
      same: whether two labels are one.
    """

    def __init__(self, samples: int, same: SameLabel):
        self._samples = samples
        self._same = same
        self._counts: collections.Counter[str] = collections.Counter()
        self._failures: collections.Counter[str] = collections.Counter()
        self._seen: set[bytes] = set()
        self._gaps: list[str] = []

    def paid(self, key: str, answer: Answer) -> None:
        """Notes an answer; one that several rows share counts once."""
        digest = bytes.fromhex(key)
        if digest not in self._seen:
            self._seen.add(digest)
            self._counts["prompt_tokens"] += answer.prompt_tokens or 0
            self._counts["completion_tokens"] += answer.completion_tokens or 0

    def watched(self, rows: Iterable[LabelledRow]) -> Iterator[LabelledRow]:
        """The rows, counted as they pass."""
        counts = self._counts
        for row in rows:
            counts["rows"] += 1
            counts["labelled"] += row["teacher_label"] is not None
            counts["rationales"] += row["rationale"] is not None
            counts["rows_with_fewer_samples"] += 0 < row["samples"] < self._samples
            if row["failure"]:
                self._failures[row["failure"]] += 1
                if row["failure"] == UNANSWERED and len(self._gaps) < _GAPS_NAMED:
                    self._gaps.append(row["id"])
            if row["label"] is not None and row["samples"]:
                counts["judged"] += 1
                counts["correct"] += row["teacher_label"] is not None and self._same(row["teacher_label"], row["label"])
            yield row

    def card(self, prices: Prices | None) -> dict[str, Any]:
        """JSON values. A row without a usable label counts as wrong; a row without an answer is not judged."""
        counts = self._counts
        tokens = counts["prompt_tokens"], counts["completion_tokens"]
        return {
            "rows": counts["rows"],
            "labelled": counts["labelled"],
            "rationales": counts["rationales"],
            "samples": self._samples,
            "gaps": self._failures[UNANSWERED],
            "first_gaps": self._gaps,
            "rows_with_fewer_samples": counts["rows_with_fewer_samples"],
            "failures": dict(self._failures.most_common()),
            "judged": counts["judged"],
            "accuracy": counts["correct"] / counts["judged"] if counts["judged"] else None,
            "answers": len(self._seen),
            "prompt_tokens": tokens[0],
            "completion_tokens": tokens[1],
            "cost": prices.cost(*tokens) if prices else None,
        }


def summary(card: Mapping[str, Any]) -> str:
    """One split's card in a line or two."""
    parts = [f"{card['rows']} rows: {card['labelled']} with a label, {card['rationales']} with a rationale"]
    parts += [f"{count} {reason}" for reason, count in card["failures"].items()]
    if card["gaps"]:
        parts[-1 - list(card["failures"])[::-1].index(UNANSWERED)] += f" ({_listed(card['first_gaps'], card['gaps'])})"
    if card["rows_with_fewer_samples"]:
        parts.append(f"{card['rows_with_fewer_samples']} with fewer than {card['samples']} samples")
    if card["duplicates"]:
        parts.append(f"{card['duplicates']} answers came twice, the first counts")
    if card["accuracy"] is not None:
        parts.append(f"accuracy {card['accuracy']:.4f} on {card['judged']} rows with a gold label")
    return "; ".join(parts)


def card_text(identity: Mapping[str, Any], cards: Mapping[str, Mapping[str, Any]]) -> str:
    """The card as Markdown.

    Args:
      identity: what decides the answers: dataset, model, api, prompt, sampling.
      cards: `Account.card` by split.
    """
    prompt = identity["prompt"]
    lines = [
        f"# {identity['dataset']}, labelled by {identity['model']}",
        "",
        f"- model: `{identity['model']}`, asked by `{identity['api']}`",
        f"- parameters: `{identity['sampling']}`",
        f"- demonstrations: {len(prompt['demonstrations'])}",
        f"- instruction: {prompt['instruction']}",
        "",
        f"| {' | '.join(_COLUMNS)} |",
        f"|{'---|' * len(_COLUMNS)}",
    ]
    for split, card in cards.items():
        accuracy = "" if card["accuracy"] is None else f"{card['accuracy']:.4f} of {card['judged']}"
        cost = "" if card["cost"] is None else f"{card['cost']:.2f}"
        counts = [card[name] for name in ("rows", "labelled", "rationales", "gaps")]
        asked = [card[name] for name in ("samples", "answers", "prompt_tokens", "completion_tokens")]
        lines.append(f"| {' | '.join(map(str, [split, *counts, accuracy, *asked, cost]))} |")
    for split, card in cards.items():
        if card["failures"]:
            lines += ["", f"Rows of {split} that were not read in full:", ""]
            lines += [f"- {reason}: {count}" for reason, count in card["failures"].items()]
    return "\n".join(lines) + "\n"


def _listed(ids: list[str], count: int) -> str:
    return ", ".join(ids) + (f" and {count - len(ids)} more" if count > len(ids) else "")
