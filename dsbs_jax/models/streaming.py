"""Parameters filled from stored tensors, piece by piece: what all readers of weights share.

A reader names a folder's tensors, none of them read yet, and says which of them make up which parameter (`Weights`);
`load` checks all of that first and then fills the devices. Every process reads what its own devices hold and nothing
else, and no more than one piece of one parameter lies on the host at a time: layers are stacked on the device.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from dsbs_jax.models.config import T5Config
from dsbs_jax.models.parameters import abstract_params
from dsbs_jax.models.t5 import T5

# A piece, its copy in another type or order, and the one on its way to the device: well below 1 GB.
_PIECE_BYTES = 128 * 2**20
_PANEL = 256
_MOST_LISTED = 40
_FLOATS = frozenset({"F64", "F32", "F16", "BF16", "float64", "float32", "float16", "bfloat16"})

Index = tuple[slice, ...]


class Tensor(Protocol):
    """An array on disk, of which any part can be read."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""

    @property
    def dtype(self) -> str:
        """The name of its type, in the words of the file."""

    def read(self, index: Index) -> np.ndarray:
        """The part at `index`, of slices with start and stop."""


@dataclasses.dataclass(frozen=True)
class Layer:
    """One layer of a tensor that stacks `count` of them along `axis`."""

    axis: int
    number: int
    count: int


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a parameter's values come from.

    Attributes:
      names: of one tensor; or of one per layer, which the parameter stacks along a leading axis (`stacked`).
      stacked: see `names`.
      axes: which axis of the tensor each axis of the parameter is, the one that `stacked` adds or `layer` takes left
        out; None for the same order.
      layer: which layer of a stored stack the parameter is.
    """

    names: tuple[str, ...]
    stacked: bool = False
    axes: tuple[int, ...] | None = None
    layer: Layer | None = None

    def shape(self, parameter_shape: Sequence[int]) -> list[int]:
        """The shape that each tensor must have."""
        return self._in_tensor(
            parameter_shape[1:] if self.stacked else parameter_shape, self.layer and self.layer.count
        )

    def read(self, tensors: dict[str, Any], index: Index, dtype: Any) -> np.ndarray:
        """The part of the parameter at `index`, of slices with start and stop."""
        names, inner = (self.names[index[0]], index[1:]) if self.stacked else (self.names, index)
        result = np.empty([len(names), *(cut.stop - cut.start for cut in inner)], dtype)
        layer = self.layer
        within = tuple(self._in_tensor(inner, layer and slice(layer.number, layer.number + 1)))
        for number, name in enumerate(names):
            part = tensors[name].read(within)
            _copy(part if layer is None else part.squeeze(layer.axis), result[number], self.axes)
        return result if self.stacked else result[0]

    def _in_tensor(self, of_parameter: Sequence[Any], of_layer: Any) -> list[Any]:
        """What is given for each axis of the parameter, for each axis of the tensor."""
        axes = range(len(of_parameter)) if self.axes is None else self.axes
        ordered = [given for _, given in sorted(zip(axes, of_parameter, strict=True), key=lambda pair: pair[0])]
        if self.layer:
            ordered.insert(self.layer.axis, of_layer)
        return ordered


def _copy(values: np.ndarray, to: np.ndarray, axes: tuple[int, ...] | None) -> None:
    """Writes `values.transpose(axes)`; transposed in panels, which takes a third of the time that numpy takes."""
    if axes is None:
        to[...] = values
        return
    there = to.transpose(np.argsort(axes))
    for start in range(0, len(values), _PANEL):
        there[start : start + _PANEL] = values[start : start + _PANEL]


@dataclasses.dataclass(frozen=True)
class Weights(abc.ABC):
    """A folder of weights, of which only names, shapes and types were read.

    Attributes:
      kind: of folder, for people.
      folder: the folder.
      tensors: what lies in it, by name.
      broken: names of tensors that should be there, and what is wrong with each.
      architecture: what it says of its model, see `weights.architecture`; None where it says nothing.
      left_out: how many arrays of an optimiser's state lie beside the weights.
    """

    kind: str
    folder: Path
    tensors: dict[str, Tensor]
    broken: dict[str, str] = dataclasses.field(default_factory=dict)
    architecture: dict[str, Any] | None = None
    left_out: int = 0

    @abc.abstractmethod
    def source(self, path: str, num_layers: int) -> Source:
        """Where the parameter at `path` comes from; `num_layers` is the depth of its stack."""

    def surplus(self, config: T5Config) -> tuple[set[str], list[str]]:
        """Tensors that no parameter is read from and that yet belong to such a folder, and what is wrong with them."""
        del config
        return set(), []


def load(weights: Weights, config: T5Config, shardings: Any = None) -> dict[str, Any]:
    """The parameters of a model.

    Args:
      weights: a folder of weights.
      config: of the model to fill.
      shardings: where to put the parameters, a tree like theirs of `jax.sharding.Sharding`; None: the default device.

    Returns:
      The parameters, without boxes, in the config's `param_dtype`.

    Raises:
      ValueError: once, for all tensors that are unknown, missing, broken, or of another shape or type than the model's.
    """
    targets = flax.traverse_util.flatten_dict(nn.meta.unbox(abstract_params(T5(config))), sep="/")
    placements = flax.traverse_util.flatten_dict(shardings, sep="/") if shardings is not None else {}
    depths = {"encoder": config.num_layers, "decoder": config.num_decoder_layers}
    sources = {path: weights.source(path, depths.get(path.partition("/")[0], 0)) for path in targets}
    problems = _problems(weights, config, targets, sources)
    if problems:
        more = len(problems) - _MOST_LISTED
        raise ValueError(
            f"The weights in {weights.folder} are not those of the model, {len(problems)} tensors differ: "
            + "; ".join(problems[:_MOST_LISTED])
            + (f"; and {more} more" if more > 0 else "")
            + ". Name the model that they belong to (--gin_file models/..., or the fields of T5Config), or copy the "
            "whole folder again."
        )
    params = {}
    for path, target in targets.items():
        read = functools.partial(sources[path].read, weights.tensors, dtype=target.dtype)
        params[path] = _place(read, target, placements.get(path))
    return flax.traverse_util.unflatten_dict(params, sep="/")


def _problems(weights: Weights, config: T5Config, targets: dict[str, Any], sources: dict[str, Source]) -> list[str]:
    """Every way in which the tensors are not those of the model."""
    tensors, problems = weights.tensors, []
    for path, source in sources.items():
        expected = source.shape(targets[path].shape)
        for name in source.names:
            if name in weights.broken:
                problems.append(f"{name} {weights.broken[name]}")
            elif name not in tensors:
                problems.append(f"{name} is missing")
            elif list(tensors[name].shape) != expected:
                problems.append(f"{name} has shape {list(tensors[name].shape)}, the model's is {expected}")
            elif tensors[name].dtype not in _FLOATS:
                problems.append(f"{name} is of type {tensors[name].dtype}, not floating point")
    known, wrong = weights.surplus(config)
    read = {name for source in sources.values() for name in source.names}
    problems += [f"{name} is unknown" for name in sorted((tensors.keys() | weights.broken.keys()) - read - known)]
    return problems + wrong


def _place(read: Callable[[Index], np.ndarray], target: jax.ShapeDtypeStruct, sharding: Any) -> jax.Array:
    """One parameter, read onto its devices."""
    whole = tuple(slice(0, size) for size in target.shape)
    if sharding is None:
        return jnp.asarray(read(whole))
    # Devices that hold the same part are filled together, so that it is read once.
    holders: dict[tuple[tuple[int, int], ...], list[Any]] = {}
    for device, index in sharding.addressable_devices_indices_map(target.shape).items():
        bounds = tuple(cut.indices(size)[:2] for cut, size in zip(index, target.shape, strict=True))
        holders.setdefault(bounds, []).append(device)
    arrays = [
        array
        for bounds, devices in holders.items()
        for array in _fill(read, tuple(slice(*bound) for bound in bounds), target.dtype, devices)
    ]
    return jax.make_array_from_single_device_arrays(target.shape, sharding, arrays)


def _fill(read: Callable[[Index], np.ndarray], part: Index, dtype: Any, devices: Iterable[Any]) -> list[jax.Array]:
    """The part of a parameter on each of `devices`."""
    shape = tuple(cut.stop - cut.start for cut in part)
    pieces = math.ceil(math.prod(shape) * np.dtype(dtype).itemsize / _PIECE_BYTES)
    if pieces <= 1:
        values = read(part)
        return [jax.device_put(values, device) for device in devices]
    rows = math.ceil(shape[0] / pieces)
    arrays = [jnp.zeros(shape, dtype, device=device) for device in devices]
    for start in range(0, shape[0], rows):
        first = part[0].start + start
        values = read((slice(first, min(first + rows, part[0].stop)), *part[1:]))
        # The next piece is read when this one has left the host.
        arrays = jax.block_until_ready([_write(array, values, start) for array in arrays])
    return arrays


@functools.partial(jax.jit, donate_argnums=0)
def _write(array: jax.Array, values: jax.Array, start: int) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(array, values, start, axis=0)
