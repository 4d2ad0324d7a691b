"""Weights from Hugging Face folders, tensor by tensor and without torch."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from dsbs_jax.models.config import T5Config
from dsbs_jax.models.t5 import T5

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_HEAD = "lm_head.weight"
# One matrix under three names; writers that drop duplicates keep any one of them.
_EMBEDDINGS = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
# A bias that checkpoints of 2020 carry and no model ever used.
_UNUSED = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
_FLOATS = ("F64", "F32", "F16", "BF16")
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
        with _open(folder) as tensors:
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


def load_huggingface(folder: str | Path, config: T5Config, shardings: Any = None) -> dict[str, Any]:
    """The parameters of a Hugging Face folder.

    Every device gets its own part of a tensor straight from the file: no more than one parameter's local shards are
    held on the host at a time.

    Args:
      folder: with `model.safetensors`, or `model.safetensors.index.json` and the files that it names.
      config: of the model to fill; see `config_from_huggingface`.
      shardings: where to put the parameters, a tree like theirs of `jax.sharding.Sharding`; None: the default device.

    Returns:
      The parameters, without boxes, in the config's `param_dtype`.

    Raises:
      ValueError: where files are missing or broken; or once, for all tensors that are unknown, missing, of another
        shape or type than the config's model, or copies that differ from what they should copy.
    """
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    boxed = jax.eval_shape(T5(config).init, jax.random.key(0), tokens, tokens)["params"]
    targets = flax.traverse_util.flatten_dict(nn.meta.unbox(boxed), sep="/")
    placements = flax.traverse_util.flatten_dict(shardings, sep="/") if shardings is not None else {}
    with _open(folder) as tensors:
        sources = {path: _source(path, target.shape[0], tensors) for path, target in targets.items()}
        problems = _problems(tensors, targets, sources, config)
        if problems:
            raise ValueError(
                f"The weights in {folder} are not those of the model, {len(problems)} tensors differ: "
                + "; ".join(problems)
                + ". Check the model's config, e.g. with config_from_huggingface(folder)."
            )
        params = {
            path: _place(sources[path], tensors, target, placements.get(path)) for path, target in targets.items()
        }
    return flax.traverse_util.unflatten_dict(params, sep="/")


@contextlib.contextmanager
def _open(folder: str | Path) -> Iterator[dict[str, Any]]:
    """The folder's tensors as lazy slices by name, readable while the context lasts."""
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
            f"{folder} holds neither {_SINGLE} nor {_INDEX}: name a folder with safetensors weights (transformers "
            "writes them with save_pretrained)."
        )
    with contextlib.ExitStack() as stack:
        tensors: dict[str, Any] = {}
        for file in files:
            try:
                handle = stack.enter_context(safe_open(file, framework="numpy"))
            except FileNotFoundError:
                raise ValueError(f"{file} is missing; {index} names it: copy the whole folder.") from None
            except SafetensorError as error:
                raise ValueError(f"{file} is not a whole safetensors file ({error}): copy it again.") from None
            tensors |= {name: handle.get_slice(name) for name in handle.keys()}  # noqa: SIM118, not a dict
        yield tensors


def _embedding_name(tensors: dict[str, Any]) -> str:
    return next((name for name in _EMBEDDINGS if name in tensors), _EMBEDDINGS[0])


def _differ(one: Any, other: Any) -> bool:
    """Whether two slices hold different values."""
    shape = one.get_shape()
    if shape != other.get_shape():
        return True
    chunks = (slice(row, min(row + 4096, shape[0])) for row in range(0, shape[0], 4096))
    return any(not np.array_equal(one[rows], other[rows]) for rows in chunks)


@dataclasses.dataclass(frozen=True)
class _Source:
    """Where a parameter's values come from: one tensor, or one per layer.

    Attributes:
      names: of the tensors.
      stacked: whether the parameter stacks them along a leading axis.
      transposed: torch keeps matrices as [out, in], Flax as [in, out]; embeddings are [rows, width] in both.
    """

    names: tuple[str, ...]
    stacked: bool = False
    transposed: bool = False

    def shape(self, parameter_shape: tuple[int, ...]) -> list[int]:
        """The shape that each tensor must have."""
        shape = list(parameter_shape[1:] if self.stacked else parameter_shape)
        return shape[::-1] if self.transposed else shape

    def read(self, tensors: dict[str, Any], index: tuple[slice, ...], dtype: Any) -> np.ndarray:
        """The part of the parameter at `index`, of slices with start and stop."""
        names = self.names[index[0]] if self.stacked else self.names
        inner = index[1:] if self.stacked else index
        parts = (tensors[name][inner[::-1] if self.transposed else inner] for name in names)
        parts = (part.T if self.transposed else part for part in parts)
        if not self.stacked:
            return next(parts).astype(dtype)
        result = np.empty([len(names), *(cut.stop - cut.start for cut in inner)], dtype)
        for layer, part in enumerate(parts):
            result[layer] = part
        return result


def _source(path: str, num_layers: int, tensors: dict[str, Any]) -> _Source:
    """The source of the parameter at `path`; `num_layers` is how many layers it stacks if it stacks any."""
    if path == "embedding":
        return _Source((_embedding_name(tensors),))
    if path == "lm_head":
        return _Source((_HEAD,))
    stack, group, *modules, leaf = path.split("/")
    if group == "final_norm":
        return _Source((f"{stack}.final_layer_norm.weight",))
    if group == "relative_bias":
        return _Source((f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight",))
    stacked = group == "layers"
    layers = range(num_layers) if stacked else [int(group.removeprefix("layers_"))]
    name = _name_in_block(modules, ffn=1 if stack == "encoder" else 2)
    return _Source(tuple(f"{stack}.block.{layer}.{name}.weight" for layer in layers), stacked, leaf == "kernel")


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


def _problems(
    tensors: dict[str, Any], targets: dict[str, Any], sources: dict[str, _Source], config: T5Config
) -> list[str]:
    """Every way in which the tensors are not those of the model."""
    problems = []
    for path, source in sources.items():
        expected = source.shape(targets[path].shape)
        for name in source.names:
            if name not in tensors:
                problems.append(f"{name} is missing")
            elif tensors[name].get_shape() != expected:
                problems.append(f"{name} has shape {tensors[name].get_shape()}, the model's is {expected}")
            elif tensors[name].get_dtype() not in _FLOATS:
                problems.append(f"{name} is of type {tensors[name].get_dtype()}, not floating point")
    copies = set(_EMBEDDINGS) | ({_HEAD} if config.tie_embeddings else set())
    embedding = _embedding_name(tensors)
    for name in sorted(tensors.keys() - {_UNUSED} - {name for source in sources.values() for name in source.names}):
        if name not in copies:
            problems.append(f"{name} is unknown")
        elif embedding in tensors and _differ(tensors[name], tensors[embedding]):
            problems.append(f"{name} differs from {embedding}, of which it should be a copy")
    return problems


def _place(source: _Source, tensors: dict[str, Any], target: jax.ShapeDtypeStruct, sharding: Any) -> jax.Array:
    """One parameter, read onto its devices."""
    read: dict[tuple[tuple[int, int], ...], np.ndarray] = {}

    def part(index: Any) -> np.ndarray:
        # Devices that hold the same part ask for it one after the other.
        bounds = tuple(cut.indices(size)[:2] for cut, size in zip(index, target.shape, strict=True))
        if bounds not in read:
            read[bounds] = source.read(tensors, tuple(slice(*bound) for bound in bounds), target.dtype)
        return read[bounds]

    if sharding is None:
        return jnp.asarray(part((slice(None),) * len(target.shape)))
    return jax.make_array_from_callback(target.shape, sharding, part)
