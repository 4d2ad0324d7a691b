"""One of the two processes of test_distributed.py: builds its own rows, and sums those of both."""

import jax
import numpy as np

from dsbs_jax.sharding.arrays import local_rows, put_batch
from dsbs_jax.sharding.distributed import initialize
from dsbs_jax.sharding.mesh import MeshConfig, make_mesh

assert initialize()
mesh = make_mesh(MeshConfig(data=2, fsdp=2))
rows = local_rows(mesh, 8)
everything = np.arange(24, dtype=np.int32).reshape(8, 3)
tokens = put_batch({"tokens": everything[rows]}, mesh)["tokens"]
assert tokens.shape == (8, 3)
for shard in tokens.addressable_shards:
    np.testing.assert_array_equal(shard.data, everything[shard.index])
print(f"rows {rows.start} to {rows.stop}, sum {jax.jit(lambda x: x.sum())(tokens)}")
