"""Checkpoints of T5X, in its own layout and in Orbax's, their layers scanned or not.

T5X's own: a msgpack file `checkpoint` with {version, optimizer: {target, state}}, whose leaves are arrays, or specs of
arrays in folders beside it (`target.encoder.encoder_norm.scale`) for TensorStore. Orbax's: the same tree, as its item
`state`.
The names within `target` are those of T5X's examples `t5` (a module per layer) and `scalable_t5` (layers stacked along
axis 1, each with a relative bias of its own; this model has one per stack).
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import flax.serialization
import flax.traverse_util
import numpy as np

from dsbs_jax.models.config import T5Config
from dsbs_jax.models.streaming import Layer, Source, Tensor, Weights, load
from dsbs_jax.models.zarr import Inline, is_orbax, open_arrays, orbax_specs, zarr_folder

_FILE, _ITEM = "checkpoint", "state"
_PLACEHOLDER = "PLACEHOLDER://"
_STEP = re.compile(r"checkpoint_\d+")
_RELATIVE_BIAS = "relpos_bias|relative_posemb"
_NORMS = {
    "encoder": {"self_norm": "pre_attention_layer_norm", "ffn_norm": "pre_mlp_layer_norm"},
    "decoder": {
        "self_norm": "pre_self_attention_layer_norm",
        "cross_norm": "pre_cross_attention_layer_norm",
        "ffn_norm": "pre_mlp_layer_norm",
    },
}
_SUBLAYERS = {
    "encoder": {"self_attention": "attention", "ffn": "mlp"},
    "decoder": {"self_attention": "self_attention", "cross_attention": "encoder_decoder_attention", "ffn": "mlp"},
}


@dataclasses.dataclass(frozen=True)
class _T5X(Weights):
    def source(self, path: str, num_layers: int) -> Source:
        if path == "embedding":
            return Source(("token_embedder/embedding",))
        if path == "lm_head":
            return Source(("decoder/logits_dense/kernel",), axes=(1, 0))
        stack, group, *modules, leaf = path.split("/")
        if group == "final_norm":
            return Source((f"{stack}/{stack}_norm/scale",))
        if group == "relative_bias":
            return self._relative_bias(stack, num_layers)
        match modules:
            case [norm]:
                name = f"{_NORMS[stack][norm]}/scale"
            case [sublayer, projection]:
                name = f"{_SUBLAYERS[stack][sublayer]}/{projection}/{leaf}"
        scanned = self._scanned(stack)
        if group == "layers":
            if scanned:
                # A kernel is [in, layers, out] there and a norm's scale [width, layers].
                return Source((f"{scanned}/{name}",), axes=(1, 0, 2) if leaf == "kernel" else (1, 0))
            return Source(tuple(f"{stack}/layers_{layer}/{name}" for layer in range(num_layers)), stacked=True)
        if scanned:
            layer = int(group.removeprefix("layers_"))
            return Source((f"{scanned}/{name}",), layer=Layer(1, layer, num_layers))
        return Source((f"{stack}/{group}/{name}",))

    def surplus(self, config: T5Config) -> tuple[set[str], list[str]]:
        known, problems = set(), []
        for stack, depth in (("encoder", config.num_layers), ("decoder", config.num_decoder_layers)):
            names = self._biases(stack)
            tables = [self.tensors[name] for name in names if name in self.tensors]
            known |= set(names)
            values = [table.read(tuple(slice(0, size) for size in table.shape)) for table in tables]
            if self._scanned(stack) and values and values[0].ndim == 3:
                values = list(values[0].swapaxes(0, 1))
            if len(values) not in (1, depth) and values:
                problems.append(f"{names[0]} and its like are {len(values)}, the model's {stack} has {depth} layers")
            others = [str(layer) for layer, table in enumerate(values) if not np.array_equal(table, values[0])]
            if others:
                problems.append(
                    f"{names[0]}: layers {', '.join(others)} have another relative bias than layer 0, but all layers "
                    "of this model share one"
                )
        return known, problems

    def _relative_bias(self, stack: str, num_layers: int) -> Source:
        # [heads, buckets] there, [buckets, heads] here.
        name = next(iter(self._biases(stack)), f"{stack}/relpos_bias/rel_embedding")
        own = self._scanned(stack) and name.startswith(f"{self._scanned(stack)}/")
        return Source((name,), axes=(1, 0), layer=Layer(1, 0, num_layers) if own else None)

    def _biases(self, stack: str) -> list[str]:
        """The relative biases of a stack: one, or one that stacks all layers', or one per layer, in their order."""
        pattern = re.compile(rf"{stack}/(?:{stack}/|layers/|layers_(\d+)/)?(?:{_RELATIVE_BIAS})/rel_embedding")
        found = {name: match for name in (*self.tensors, *self.broken) if (match := pattern.fullmatch(name))}
        return sorted(found, key=lambda name: int(found[name][1] or 0))

    def _scanned(self, stack: str) -> str:
        """The module that holds the stacked layers, or nothing: it was called `layers`, then like its stack."""
        names = (*self.tensors, *self.broken)
        prefixes = (f"{stack}/{stack}", f"{stack}/layers")
        return next((prefix for prefix in prefixes if any(name.startswith(f"{prefix}/") for name in names)), "")


def is_t5x(folder: str | Path) -> bool:
    """Whether a folder looks like a checkpoint of T5X, whole or not."""
    folder = Path(folder)
    return any((place / _FILE).is_file() or is_orbax(place) for place in (folder, folder / _ITEM))


def steps_of_t5x(folder: str | Path) -> list[str]:
    """The names of the checkpoints in a run's folder of T5X."""
    names = [path.name for path in Path(folder).glob("checkpoint_*") if _STEP.fullmatch(path.name)]
    return sorted(names, key=lambda name: int(name.rpartition("_")[2]))


def open_t5x(folder: str | Path) -> Weights:
    """A checkpoint of T5X, one `checkpoint_STEP`: every tensor opened, none read.

    Raises:
      ValueError: where the folder is no checkpoint of T5X, or its own file is broken.
    """
    folder = Path(folder)
    place = next((place for place in (folder / _ITEM, folder) if (place / _FILE).is_file() or is_orbax(place)), folder)
    if is_orbax(place):
        leaves: dict[tuple[str, ...], Any] = dict(orbax_specs(place))
        if (place / _FILE).is_file():
            leaves |= _flat(_unpack(place / _FILE), place)
    else:
        leaves = _flat(_unpack(place / _FILE), place)
    targets = {"/".join(key[1:]): leaf for key, leaf in leaves.items() if key[0] == "target"}
    if not targets:
        raise ValueError(f"{place} holds no `target`, under which T5X keeps a model's parameters: is it T5X's?")
    stored, broken = open_arrays({name: leaf for name, leaf in targets.items() if isinstance(leaf, dict)})
    tensors: dict[str, Tensor] = {**stored}
    for name, leaf in targets.items():
        if not isinstance(leaf, dict):
            tensors[name] = Inline(np.asarray(leaf))
    return _T5X("T5X checkpoint", folder, tensors, broken, left_out=len(leaves) - len(targets))


def load_t5x(folder: str | Path, config: T5Config, shardings: Any = None) -> dict[str, Any]:
    """The parameters of a T5X checkpoint; arguments, result and errors as in `streaming.load`."""
    return load(open_t5x(folder), config, shardings)


def _unpack(path: Path) -> dict[str, Any]:
    """The tree of a file `checkpoint`."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}): name one `checkpoint_STEP` of T5X.") from None
    if raw.startswith(b"model_checkpoint_path"):
        raise ValueError(
            f"{path} belongs to a TensorFlow checkpoint: convert it with T5X first, or take the Hugging Face weights."
        )
    try:
        tree = flax.serialization.msgpack_restore(raw)
        version = tree.get("version", 0)
    # msgpack has a class for each way in which bytes can be wrong.
    except Exception as error:
        raise ValueError(f"{path} is not a whole msgpack file of T5X ({error}): copy it again.") from None
    if "optimizer" in tree and version < 2:
        raise ValueError(f"{path} is of version {version}, T5X reads 2 and later: save it again with a newer T5X.")
    return tree.get("optimizer", tree)


def _flat(tree: dict[str, Any], folder: Path) -> dict[tuple[str, ...], Any]:
    """The leaves by path: arrays as they are, all others as specs of arrays in `folder`."""

    def is_leaf(_: tuple[str, ...], node: Any) -> bool:
        return isinstance(node, dict) and "driver" in node and "kvstore" in node

    leaves: dict[tuple[str, ...], Any] = {}
    for key, leaf in flax.traverse_util.flatten_dict(tree, is_leaf=is_leaf).items():
        if isinstance(leaf, dict):
            store = leaf["kvstore"]
            # Before TensorStore 0.1.14 the path stood outside. It names a folder beside the file, wherever that was.
            stored_at = store if isinstance(store, str) else store.get("path", leaf.get("path", ""))
            name = stored_at.rstrip("/").rpartition("/")[2]
            leaves[key] = zarr_folder(folder, name, leaf.get("metadata", {}).get("shape"))
        elif isinstance(leaf, str) and leaf.startswith(_PLACEHOLDER):
            leaves[key] = zarr_folder(folder, leaf.removeprefix(_PLACEHOLDER))
        elif leaf is not None:
            leaves[key] = leaf
    return leaves
