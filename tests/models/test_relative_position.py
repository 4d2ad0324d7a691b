"""Buckets against transformers', and the bias against a lookup per pair."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsbs_jax.models.config import t5_config
from dsbs_jax.models.relative_position import RelativeBias, relative_position_buckets


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("num_buckets", "max_distance"), [(32, 128), (8, 20), (6, 9), (64, 1000), (32, 256)])
def test_buckets_equal_transformers(bidirectional, num_buckets, max_distance):
    torch = pytest.importorskip("torch", reason="needs the extra `parity`")
    t5 = pytest.importorskip("transformers.models.t5.modeling_t5")
    distances = np.arange(-5000, 5001)
    expected = t5.T5Attention._relative_position_bucket(
        torch.tensor(distances), bidirectional=bidirectional, num_buckets=num_buckets, max_distance=max_distance
    )
    buckets = relative_position_buckets(distances, bidirectional, num_buckets, max_distance)
    np.testing.assert_array_equal(buckets, expected.numpy())
    assert buckets.dtype == np.int32


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("length", [1, 2, 37])
def test_bias_and_its_gradient_equal_a_lookup_per_pair(bidirectional, length):
    config = t5_config("v1_1", "small", num_heads=3, num_buckets=8, max_distance=20)
    module = RelativeBias(config, bidirectional)
    table = nn.unbox(module.init(jax.random.key(0), length))["params"]["embedding"]
    distances = np.arange(length)[None, :] - np.arange(length)[:, None]
    buckets = relative_position_buckets(distances, bidirectional, 8, 20)
    weights = jax.random.normal(jax.random.key(1), (1, 3, length, length))

    def ours(table):
        return module.apply({"params": {"embedding": table}}, length)

    def naive(table):
        return jnp.transpose(table[buckets], (2, 0, 1))[None]

    np.testing.assert_array_equal(ours(table), naive(table))
    gradients = [jax.grad(lambda table, bias=bias: jnp.sum(bias(table) * weights))(table) for bias in (ours, naive)]
    # Sums of up to 37^2 float32 in another order.
    np.testing.assert_allclose(*gradients, atol=1e-4)
