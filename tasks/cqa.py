"""CommonsenseQA 1.11 (Talmor et al., 2019), as CoS-E releases it: a question with five answers to choose from.

The label is the answer's text. Labels are closed per row: one of its own choices. Without a validation split, 10 % of
the 9,741 train rows is held out (Table 3 of the paper: 8,766 / 975 / 1,221).
"""

import string

from dsbs_jax.data.dataset import Dataset
from dsbs_jax.data.sources import FolderSource, Row
from dsbs_jax.schema import Example
from dsbs_jax.teacher.parsers import PARSERS


def to_example(example_id: str, row: Row) -> Example:
    """A row of CoS-E (`choices` a list, `answer`) or of `commonsense_qa` (`choices.text`, `answerKey`)."""
    if isinstance(row["choices"], dict):
        choices = tuple(row["choices"]["text"])
        letters = list(row["choices"]["label"])
        label = choices[letters.index(row["answerKey"])] if row["answerKey"] else None
    else:
        choices, label = tuple(row["choices"]), row["answer"]
    lines = [f"({letter}) {choice}" for letter, choice in zip(string.ascii_lowercase, choices, strict=False)]
    text = "\n".join([str(row["question"]), "Answer Choices:", *lines])
    return Example(example_id, text, label, choices=choices)


_SOURCE = FolderSource(
    "cqa",
    to_example,
    # The hub's test split has no answers: the validation split is the one that the paper tests on.
    hub="hub:Salesforce/cos_e:v1.11",
    hub_splits=(("test", "validation"),),
)

DATASET = Dataset("cqa", _SOURCE, source_splits=("train", "test"), metric="exact", parse=PARSERS["cqa"])
