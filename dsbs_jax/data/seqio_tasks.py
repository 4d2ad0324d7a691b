"""Datasets as SeqIO tasks: the same pairs for a token store and for anyone's own SeqIO or T5X pipeline.

This module loads TensorFlow; only the prepare worker and people who use SeqIO themselves import it.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Mapping, Sequence

import gin
import numpy as np
import seqio
import tensorflow as tf

from dsbs_jax.data import registration
from dsbs_jax.data.dataset import SPLITS, Dataset
from dsbs_jax.data.locations import find_data_dir, find_vocabulary_file
from dsbs_jax.data.vocabulary import EOS_ID, EOS_TEXT
from dsbs_jax.metrics.accuracy import score
from dsbs_jax.schema import Example, LabelSource, TaskFormat, make_method

PUBLIC_T5_VOCABULARY = "gs://t5-data/vocabs/cc_all.32000/sentencepiece.model"

Load = Callable[[str], Sequence[Example]]


@gin.configurable(module="dsbs")
def seqio_settings(data_dir: str | None = None, vocabulary: str | None = None) -> tuple[str | None, str]:
    """(data folder, vocabulary file) of the registered tasks; gin or the environment name them.

    Asked every time a task is used, so that nothing needs to be there when the tasks are registered.
    """
    data_dir = find_data_dir(data_dir)
    return data_dir, find_vocabulary_file(vocabulary, data_dir) or PUBLIC_T5_VOCABULARY


class T5Vocabulary(seqio.SentencePieceVocabulary):
    """T5's vocabulary with its 100 sentinels, from the file that `seqio_settings` names when it is first used."""

    def __init__(self) -> None:
        super().__init__(sentencepiece_model_file="", extra_ids=100)

    @property
    def _sentencepiece_model_file(self) -> str:
        return seqio_settings()[1]

    @_sentencepiece_model_file.setter
    def _sentencepiece_model_file(self, path: str) -> None:
        """The base class stores the path it was given, which here is none."""


def register(dataset: Dataset, vocabulary: seqio.Vocabulary | None = None) -> None:
    """Adds `dsbs_NAME_label`, `dsbs_NAME_rationale` and the mixture `dsbs_NAME` of both to SeqIO's registry.

    The pairs are those of distilling step by step with gold labels and the reference code's prefixes; examples without
    a rationale are absent from the train split of the rationale task.

    Args:
      dataset: read when a task is used, from the folder that `seqio_settings` names then.
      vocabulary: of inputs and targets; None takes the dataset's own, or T5's.
    """
    if vocabulary is None:
        own = dataset.vocabulary_file
        vocabulary = seqio.SentencePieceVocabulary(own, extra_ids=0) if own else T5Vocabulary()

    def load(split: str) -> Sequence[Example]:
        return dataset.load(split, seqio_settings()[0]).examples

    names = []
    for task_format in make_method("step_by_step").tasks:
        name = f"dsbs_{dataset.name}_{task_format.name}"
        seqio.TaskRegistry.add_provider(name, make_task(name, task_format, load, vocabulary, metric=dataset.metric))
        names.append(name)
    seqio.MixtureRegistry.add(f"dsbs_{dataset.name}", names, default_rate=1.0)


def make_task(
    name: str,
    task_format: TaskFormat,
    load: Load,
    vocabulary: seqio.Vocabulary,
    label_source: LabelSource = "gold",
    metric: str = "exact",
    rows_per_element: int = 0,
) -> seqio.Task:
    """One task of a method as a SeqIO task.

    Every row has, besides `inputs` and `targets`, `row`: the example's position in `load(split)`, and `has_target`:
    0 where an example of an evaluation split lacks what the target needs; its target is then empty. In `train` such
    examples are left out. Evaluation targets hold the gold label whatever `label_source` is.

    Args:
      name: the task's name.
      task_format: how an example becomes a pair.
      load: from a split to its examples; called when the task is used.
      vocabulary: of inputs and targets.
      label_source: whose labels are the targets in `train`.
      metric: compares labels, a key of `METRICS`; rationales are compared by their words.
      rows_per_element: 0 for elements of one row, as everyone expects them; else elements are batches of that many rows
        with ragged features, which tokenises many times faster.
    """
    feature = seqio.Feature(vocabulary, add_eos=True, rank=2 if rows_per_element else 1)
    needs_label = task_format.needs("label")
    rows = _dataset_fn(task_format, load, label_source, rows_per_element)
    return seqio.Task(
        name,
        source=seqio.FunctionDataSource(rows, splits=SPLITS),
        output_features={"inputs": feature, "targets": feature},
        preprocessors=[tokenize, seqio.CacheDatasetPlaceholder(), seqio.preprocessors.append_eos_after_trim],
        metric_fns=[_accuracy(metric) if needs_label else word_f1],
    )


def render_rows(
    examples: Sequence[Example], task_format: TaskFormat, label_source: LabelSource, train: bool
) -> dict[str, list]:
    """Columns `inputs`, `targets`, `row`, `has_target` of one task over the examples of a split; see `make_task`."""
    columns: dict[str, list] = {"inputs": [], "targets": [], "row": [], "has_target": []}
    for row, example in enumerate(examples):
        pair = task_format.render(example, label_source if train else "gold")
        if train and pair is None:
            continue
        columns["inputs"].append(pair[0] if train and pair else task_format.render_input(example))
        columns["targets"].append(pair[1] if pair else "")
        columns["row"].append(row)
        columns["has_target"].append(pair is not None)
    return columns


def _dataset_fn(
    task_format: TaskFormat, load: Load, label_source: LabelSource, rows_per_element: int
) -> Callable[..., tf.data.Dataset]:
    def rows(split: str, shuffle_files: bool = False, seed: int | None = None) -> tf.data.Dataset:
        columns = render_rows(load(split), task_format, label_source, train=split == "train")
        order = np.arange(len(columns["row"]))
        if shuffle_files:
            # All rows are in memory: shuffle them all, not only within SeqIO's buffer.
            order = np.random.default_rng(seed).permutation(order)
        dtypes = {"inputs": object, "targets": object, "row": np.int32, "has_target": np.int32}
        dataset = tf.data.Dataset.from_tensor_slices(
            {key: tf.constant(np.array(columns[key], dtype)[order]) for key, dtype in dtypes.items()}
        )
        return dataset.batch(rows_per_element) if rows_per_element else dataset

    return rows


@seqio.map_over_dataset
def tokenize(row: Mapping[str, tf.Tensor], output_features: Mapping[str, seqio.Feature]) -> dict[str, tf.Tensor]:
    """Texts to ids, int32 [length], as `Vocabulary.encode` makes them; the texts stay as `{feature}_pretokenized`.

    Unlike `seqio.preprocessors.tokenize` it turns the literal `</s>` of NLI inputs into id 1.
    """
    tokens = {key: encode(row[key], feature.vocabulary) for key, feature in output_features.items()}
    return {**row, **{f"{key}_pretokenized": row[key] for key in tokens}, **tokens}


def encode(texts: tf.Tensor, vocabulary: seqio.Vocabulary) -> tf.Tensor | tf.RaggedTensor:
    """The ids of one text [] or of many [batch], without a closing EOS: the parts between `</s>`, joined by id 1."""
    parts = vocabulary.encode_tf(tf.strings.split(tf.reshape(texts, [-1]), EOS_TEXT))  # [batch, (parts), (length)]
    closed = tf.concat([parts.values, tf.fill([parts.values.nrows(), 1], EOS_ID)], axis=1)
    ids = parts.with_values(closed).merge_dims(1, 2)[:, :-1]
    return ids if texts.shape.rank else ids.values


def _accuracy(metric: str) -> Callable[[Sequence[str], Sequence[str]], dict[str, float]]:
    def accuracy(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
        return {"accuracy": float(np.mean(score(metric, predictions, targets)))}

    return accuracy


def word_f1(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """Mean F1 of the words that prediction and target share, each as often as it occurs."""
    return {"word_f1": float(np.mean([_f1(t.split(), p.split()) for t, p in zip(targets, predictions, strict=True)]))}


def _f1(target: list[str], prediction: list[str]) -> float:
    if not target and not prediction:
        return 1.0
    shared = (collections.Counter(target) & collections.Counter(prediction)).total()
    return 2 * shared / (len(target) + len(prediction))


registration.use(register)
