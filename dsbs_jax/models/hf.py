"""Weights from Hugging Face folders, tensor by tensor and without torch."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from dsbs_jax.models.config import T5Config
from dsbs_jax.models.streaming import Index, Source, Tensor, Weights, load

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_HEAD = "lm_head.weight"
# One matrix under three names; writers that drop duplicates keep any one of them.
_EMBEDDINGS = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
# A bias that checkpoints of 2020 carry and no model ever used.
_UNUSED = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
_MODEL_TYPES = ("t5", "mt5")
_PROJECTIONS = {"query": "q", "key": "k", "value": "v", "out": "o"}


def config_from_huggingface(folder: str | Path) -> T5Config:
    """The `T5Config` of a Hugging Face folder, from its `config.json` and the names of its tensors.

    Computation (`dtype`, `scan_layers`, `remat_policy`) is left at the defaults. Whether the logits have a matrix of
    their own is read off the weights where they are there: transformers 5 writes `tie_word_embeddings: true` for every
    T5, v1.1 with its own matrix included, and keeps `scale_decoder_outputs` apart.

    Raises:
      ValueError: where the file is missing, is not JSON, lacks a field, or describes another architecture.
    """
    path = Path(folder) / "config.json"
    try:
        raw = dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ValueError(f"{path} is missing: a Hugging Face folder has a config.json beside its weights.") from None
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is not a JSON object ({error}).") from None
    if raw.get("model_type") not in _MODEL_TYPES:
        raise ValueError(
            f"{path}: model_type is {raw.get('model_type')!r}; it must be one of {', '.join(_MODEL_TYPES)}."
        )
    tied = raw.get("tie_word_embeddings") is not False
    scaled = raw.get("scale_decoder_outputs", tied)
    if any((Path(folder) / name).exists() for name in (_SINGLE, _INDEX)):
        tensors = _open(folder)
        tied = tied and not (_HEAD in tensors and _differ(tensors[_HEAD], tensors[_embedding_name(tensors)]))
    else:
        tied = scaled
    try:
        return T5Config(
            d_model=raw["d_model"],
            d_kv=raw["d_kv"],
            d_ff=raw["d_ff"],
            num_layers=raw["num_layers"],
            num_decoder_layers=raw.get("num_decoder_layers") or raw["num_layers"],
            num_heads=raw["num_heads"],
            # transformers computes `gated-gelu` with the tanh form, as we do.
            feed_forward=raw.get("feed_forward_proj", "relu"),
            tie_embeddings=tied,
            scale_logits=scaled,
            vocab_size=raw["vocab_size"],
            num_buckets=raw.get("relative_attention_num_buckets", 32),
            max_distance=raw.get("relative_attention_max_distance", 128),
            dropout_rate=raw.get("dropout_rate", 0.1),
            epsilon=raw.get("layer_norm_epsilon", 1e-6),
        )
    except KeyError as error:
        raise ValueError(f"{path} lacks the field {error.args[0]!r}.") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


@dataclasses.dataclass(frozen=True)
class _HuggingFace(Weights):
    def source(self, path: str, num_layers: int) -> Source:
        if path == "embedding":
            return Source((_embedding_name(self.tensors),))
        if path == "lm_head":
            return Source((_HEAD,))
        stack, group, *modules, leaf = path.split("/")
        if group == "final_norm":
            return Source((f"{stack}.final_layer_norm.weight",))
        if group == "relative_bias":
            return Source((f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight",))
        layers = range(num_layers) if group == "layers" else [int(group.removeprefix("layers_"))]
        name = _name_in_block(modules, ffn=1 if stack == "encoder" else 2)
        names = tuple(f"{stack}.block.{layer}.{name}.weight" for layer in layers)
        # Torch keeps matrices as [out, in], Flax as [in, out]; embeddings are [rows, width] in both.
        return Source(names, stacked=group == "layers", axes=(1, 0) if leaf == "kernel" else None)

    def surplus(self, config: T5Config) -> tuple[set[str], list[str]]:
        known = {*_EMBEDDINGS, _UNUSED} | ({_HEAD} if config.tie_embeddings else set())
        embedding = _embedding_name(self.tensors)
        return known, [
            f"{name} differs from {embedding}, of which it should be a copy"
            for name in sorted(self.tensors.keys() & known - {_UNUSED, embedding})
            if embedding in self.tensors and _differ(self.tensors[name], self.tensors[embedding])
        ]


def open_huggingface(folder: str | Path) -> Weights:
    """A Hugging Face folder's weights, none of them read.

    Args:
      folder: with `model.safetensors`, or `model.safetensors.index.json` and the files that it names.

    Raises:
      ValueError: where files are missing or broken.
    """
    return _HuggingFace("Hugging Face folder", Path(folder), dict(_open(folder)))


def load_huggingface(folder: str | Path, config: T5Config, shardings: Any = None) -> dict[str, Any]:
    """The parameters of a Hugging Face folder.

    Args:
      folder: see `open_huggingface`.
      config: of the model to fill; see `config_from_huggingface`.
      shardings: as in `streaming.load`, as are the result and its errors; copies of the embeddings that differ from
        them are among those.

    Raises:
      ValueError: see there and `open_huggingface`.
    """
    return load(open_huggingface(folder), config, shardings)


def is_huggingface(folder: str | Path) -> bool:
    """Whether a folder looks like one of Hugging Face's, whole or not."""
    return any((Path(folder) / name).exists() for name in (_SINGLE, _INDEX, "config.json"))


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """A tensor of a safetensors file."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str

    def read(self, index: Index) -> np.ndarray:
        # The file is mapped into memory while it is open: opened anew, its pages go back to the system after each read.
        with safe_open(self.file, framework="numpy") as tensors:
            return tensors.get_slice(self.name)[index]


def _open(folder: str | Path) -> dict[str, _Tensor]:
    """The folder's tensors by name."""
    folder = Path(folder)
    index = folder / _INDEX
    if (folder / _SINGLE).exists():
        files = [folder / _SINGLE]
    elif index.exists():
        try:
            files = [folder / name for name in sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))]
        except (ValueError, TypeError, KeyError, AttributeError):
            raise ValueError(f"{index} is not a safetensors index: it holds no JSON object `weight_map`.") from None
    else:
        raise ValueError(
            f"{folder} holds neither {_SINGLE} nor {_INDEX}: name a folder with safetensors weights. Where there is a "
            "pytorch_model.bin, transformers converts it: T5ForConditionalGeneration.from_pretrained(FOLDER)"
            ".save_pretrained(NEW_FOLDER)."
        )
    found: dict[str, _Tensor] = {}
    for file in files:
        try:
            with safe_open(file, framework="numpy") as tensors:
                for name in tensors.keys():  # noqa: SIM118, not a dict
                    lazy = tensors.get_slice(name)
                    found[name] = _Tensor(file, name, tuple(lazy.get_shape()), lazy.get_dtype())
        except FileNotFoundError:
            raise ValueError(f"{file} is missing; {index} names it: copy the whole folder.") from None
        except SafetensorError as error:
            raise ValueError(f"{file} is not a whole safetensors file ({error}): copy it again.") from None
    return found


def _embedding_name(tensors: Mapping[str, Any]) -> str:
    return next((name for name in _EMBEDDINGS if name in tensors), _EMBEDDINGS[0])


def _differ(one: Tensor, other: Tensor) -> bool:
    """Whether two matrices hold different values."""
    if one.shape != other.shape:
        return True
    chunks = (
        (slice(row, min(row + 4096, one.shape[0])), *(slice(0, size) for size in one.shape[1:]))
        for row in range(0, one.shape[0], 4096)
    )
    return any(not np.array_equal(one.read(rows), other.read(rows)) for rows in chunks)


def _name_in_block(modules: list[str], ffn: int) -> str:
    match modules:
        case ["self_norm"]:
            return "layer.0.layer_norm"
        case ["cross_norm"]:
            return "layer.1.layer_norm"
        case ["ffn_norm"]:
            return f"layer.{ffn}.layer_norm"
        case ["self_attention", projection]:
            return f"layer.0.SelfAttention.{_PROJECTIONS[projection]}"
        case ["cross_attention", projection]:
            return f"layer.1.EncDecAttention.{_PROJECTIONS[projection]}"
        case ["ffn", projection]:
            return f"layer.{ffn}.DenseReluDense.{projection}"
    raise ValueError(f"No tensor of a Hugging Face T5 corresponds to {'/'.join(modules)!r}.")
