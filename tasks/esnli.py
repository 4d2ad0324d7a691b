"""e-SNLI (Camburu et al., 2018): does a premise entail a hypothesis, contradict it, or neither.

549,367 / 9,842 / 9,824 rows (Table 3 of the paper). `</s>` between premise and hypothesis becomes the end-of-sequence
id 1 in the student's input, as Hugging Face's T5 tokenizer makes it.
"""

from dsbs_jax.data.dataset import Dataset
from dsbs_jax.data.sources import FolderSource, Row
from dsbs_jax.schema import Example
from dsbs_jax.teacher.parsers import PARSERS

LABELS = ("entailment", "neutral", "contradiction")


def to_example(example_id: str, row: Row) -> Example:
    """A row with `premise`, `hypothesis` and `label`: an index of `LABELS` or one of them."""
    label = row["label"]
    if isinstance(label, int):
        if label not in range(len(LABELS)):
            raise ValueError(f"the label {label} is not one of 0 (entailment), 1 (neutral), 2 (contradiction).")
        label = LABELS[label]
    return Example(example_id, f"{row['premise']}</s>{row['hypothesis']}", label)


# The hub's own files are a loading script, which the library no longer runs; this revision holds them as Parquet.
_SOURCE = FolderSource("esnli", to_example, hub="hub:esnli/esnli@refs/convert/parquet")

DATASET = Dataset("esnli", _SOURCE, label_set=LABELS, parse=PARSERS["esnli"])
