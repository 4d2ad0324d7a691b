import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from dsbs_jax.sharding.mesh import MeshConfig, make_mesh
from dsbs_jax.sharding.rules import (
    DEFAULT_RULES,
    make_rules,
    param_shardings,
    scanned_layers,
    shardings_like_params,
)


def box(shape, *names):
    return nn.LogicallyPartitioned(jax.ShapeDtypeStruct(shape, jnp.float32), names)


@pytest.fixture
def boxed():
    return {
        "embedding": box((32, 8), "vocab", "embed"),
        "layers": {"wi": box((3, 8, 16), "layers", "embed", "mlp"), "scale": box((3, 8), "layers", "embed")},
    }


@pytest.fixture
def mesh():
    return make_mesh(MeshConfig(2, 2, 2))


def test_parameters_are_split_by_the_rules(boxed, mesh):
    assert jax.tree.map(lambda sharding: sharding.spec, param_shardings(boxed, mesh)) == {
        "embedding": PartitionSpec("model", "fsdp"),
        "layers": {"wi": PartitionSpec(None, "fsdp", "model"), "scale": PartitionSpec(None, "fsdp")},
    }


def test_other_rules_can_be_given(boxed, mesh):
    rules = make_rules([["embed", None]])
    assert make_rules(()) == DEFAULT_RULES
    assert param_shardings(boxed, mesh, rules)["embedding"].spec == PartitionSpec("model", None)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([("width", None)], "no rule for 'width' that can be changed; the rules are vocab, embed"),
        ([("batch", "data")], "no rule for 'batch' that can be changed"),
        ([("mlp", "tensor")], r"names the mesh axes \['tensor'\]; there are data, fsdp, model"),
        ([("mlp", ("fsdp", "tensor"))], r"names the mesh axes \['tensor'\]"),
    ],
)
def test_rules_that_make_no_sense(overrides, message):
    with pytest.raises(ValueError, match=message):
        make_rules(overrides)


def test_dimension_the_mesh_cannot_divide_is_named(mesh):
    with pytest.raises(ValueError, match=r"relative_bias/embedding of shape \(32, 3\) has 3 along 'heads'.*'model'"):
        param_shardings({"relative_bias": {"embedding": box((32, 3), "relpos_buckets", "heads")}}, mesh)


def test_scanned_layers_are_counted(boxed):
    assert scanned_layers(boxed) == {"embedding": 0, "layers": {"wi": 3, "scale": 3}}


def test_layers_stacked_elsewhere_are_refused():
    with pytest.raises(ValueError, match="wi stacks its layers along dimension 1"):
        scanned_layers({"wi": box((8, 3, 16), "embed", "layers", "mlp")})


@pytest.mark.parametrize("optimizer", [optax.adamw(1e-3), optax.chain(optax.clip(1.0), optax.sgd(0.1, momentum=0.9))])
def test_moments_are_split_as_their_parameters(boxed, mesh, optimizer):
    shapes, shardings = nn.meta.unbox(boxed), param_shardings(boxed, mesh)
    whole = NamedSharding(mesh, PartitionSpec())
    state = jax.eval_shape(optimizer.init, shapes)
    found = shardings_like_params(state, shapes, shardings, whole)
    wi = [
        (array.shape, sharding.spec)
        for (path, array), sharding in zip(
            jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(found), strict=True
        )
        if "wi" in jax.tree_util.keystr(path)
    ]
    assert wi
    assert set(wi) == {((3, 8, 16), PartitionSpec(None, "fsdp", "model"))}


def test_factored_moments_and_counters_lie_whole(boxed, mesh):
    shapes, shardings = nn.meta.unbox(boxed), param_shardings(boxed, mesh)
    state = jax.eval_shape(optax.scale_by_factored_rms(min_dim_size_to_factor=2).init, shapes)
    found = shardings_like_params(state, shapes, shardings, NamedSharding(mesh, PartitionSpec()))
    assert found.count.spec == found.v_row["embedding"].spec == found.v_col["layers"]["wi"].spec == PartitionSpec()
