"""Logical axis names to mesh axes: which dimension of which array is split over what.

Modules name the dimensions of their parameters and activations; these rules alone decide where those names lie.
The scheme is T5X's "2D parameters, 1D activations" (Xu et al., GSPMD, arXiv 2105.04663, section 5.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dsbs_jax.sharding.mesh import AXES

Rules = Sequence[tuple[str, str | tuple[str, ...] | None]]

DEFAULT_RULES: Rules = (
    # Parameters.
    ("vocab", "model"),
    ("embed", "fsdp"),
    ("heads", "model"),
    ("joined_kv", "model"),
    ("mlp", "model"),
    ("kv", None),
    ("layers", None),
    ("relpos_buckets", None),
    # Activations.
    ("batch", ("data", "fsdp")),
    ("lookup_batch", "data"),
    ("length", None),
    ("act_embed", None),
    ("act_heads", "model"),
    ("act_mlp", "model"),
    ("act_vocab", "model"),
)


def make_rules(overrides: Rules) -> Rules:
    """`DEFAULT_RULES` with some of them replaced.

    Args:
      overrides: (logical name, mesh axis, several, or None for an unsplit dimension), e.g. `(("embed", None),)`.

    Raises:
      ValueError: for a logical name or a mesh axis that does not exist, and for `batch`, which decides how rows are
        fed.
    """
    known = dict(DEFAULT_RULES)
    for name, axes in overrides:
        if name not in known or name == "batch":
            names = ", ".join(name for name in known if name != "batch")
            raise ValueError(f"There is no rule for {name!r} that can be changed; the rules are {names}.")
        if unknown := {axes} - {None, *AXES} if not isinstance(axes, tuple | list) else set(axes) - set(AXES):
            raise ValueError(
                f"The rule for {name!r} names the mesh axes {sorted(map(str, unknown))}; there are {', '.join(AXES)}."
            )
        known[name] = tuple(axes) if isinstance(axes, list) else axes
    return tuple(known.items())


def param_shardings(boxed: Any, mesh: Mesh, rules: Rules = DEFAULT_RULES) -> Any:
    """The sharding of every parameter.

    Args:
      boxed: parameters, or their shapes, in the boxes of `nn.with_logical_partitioning`.
      mesh: the device mesh.
      rules: logical axis names to mesh axes.

    Returns:
      The tree without boxes, of `NamedSharding`.

    Raises:
      ValueError: where the mesh cannot divide a dimension of a parameter.
    """
    logical = nn.get_partition_spec(boxed)
    shardings = nn.logical_to_mesh_sharding(logical, mesh, rules)

    def check(
        path: tuple[Any, ...], array: jax.ShapeDtypeStruct, names: PartitionSpec, sharding: NamedSharding
    ) -> None:
        for size, name, axes in zip(array.shape, names, sharding.spec, strict=False):
            shards = _num_shards(mesh, axes)
            if size % shards:
                raise ValueError(
                    f"The parameter {_name(path)} of shape {array.shape} has {size} along {name!r}, which the "
                    f"{shards} devices along mesh axis {axes!r} cannot divide: choose a size that divides {size}."
                )

    jax.tree_util.tree_map_with_path(check, nn.meta.unbox(boxed), logical, shardings)
    return shardings


def scanned_layers(boxed: Any) -> Any:
    """The number of layers stacked along the leading dimension of each parameter; 0 for a parameter of its own.

    Args:
      boxed: parameters, or their shapes, in the boxes of `nn.with_logical_partitioning`.

    Returns:
      The tree without boxes, of int.

    Raises:
      ValueError: where layers are stacked along another than the leading dimension.
    """

    def count(path: Any, array: jax.ShapeDtypeStruct, names: PartitionSpec) -> int:
        if "layers" in names[1:]:
            raise ValueError(
                f"The parameter {_name(path)} stacks its layers along dimension "
                f"{names.index('layers')} of {tuple(names)}: they must be stacked along the first."
            )
        return array.shape[0] if names[:1] == ("layers",) else 0

    return jax.tree_util.tree_map_with_path(count, nn.meta.unbox(boxed), nn.get_partition_spec(boxed))


def shardings_like_params(tree: Any, params: Any, shardings: Any, otherwise: NamedSharding) -> Any:
    """The sharding of everything an optimiser keeps.

    An array whose path ends in a parameter's path and that has its shape (a moment) is split as the parameter; all
    others (counters, factored moments, which are small) lie as `otherwise` says. So no optimiser needs rules of its
    own.

    Args:
      tree: the optimiser's state, or its shapes.
      params: the parameters, or their shapes, without boxes.
      shardings: from `param_shardings`.
      otherwise: for arrays that are no parameter's.
    """
    known = {
        path: (param.shape, sharding)
        for (path, param), sharding in zip(
            jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(shardings), strict=True
        )
    }

    def find(path: Any, array: jax.ShapeDtypeStruct) -> NamedSharding:
        for start in range(len(path)):
            shape, sharding = known.get(path[start:], (None, otherwise))
            if shape == array.shape:
                return sharding
        return otherwise

    return jax.tree_util.tree_map_with_path(find, tree)


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _num_shards(mesh: Mesh, axes: str | tuple[str, ...] | None) -> int:
    names = () if axes is None else (axes,) if isinstance(axes, str) else axes
    shards = 1
    for name in names:
        shards *= mesh.shape[name]
    return shards
