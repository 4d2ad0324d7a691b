"""Adversarial NLI, round 1 (Nie et al., 2020): e-SNLI's question, written to fool a model.

16,946 / 1,000 / 1,000 rows (Table 3 of the paper).
"""

from dsbs_jax.data.dataset import Dataset
from dsbs_jax.data.sources import FolderSource
from dsbs_jax.tasks.esnli import LABELS, to_example
from dsbs_jax.teacher.parsers import PARSERS

_SOURCE = FolderSource(
    "anli1",
    to_example,
    hub="hub:facebook/anli",
    hub_splits=(("train", "train_r1"), ("validation", "dev_r1"), ("test", "test_r1")),
)

DATASET = Dataset("anli1", _SOURCE, label_set=LABELS, parse=PARSERS["anli1"])
