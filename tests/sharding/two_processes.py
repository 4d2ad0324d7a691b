"""One of the two processes of test_distributed.py: builds its own rows, sums those of both, and talks to the other."""

import jax
import numpy as np
from jax.sharding import Mesh

from dsbs_jax.sharding.agreement import from_first, gathered, together
from dsbs_jax.sharding.arrays import local_rows, put_batch
from dsbs_jax.sharding.distributed import initialize, shutdown
from dsbs_jax.sharding.mesh import MeshConfig, make_mesh

assert initialize()
everything = np.arange(24, dtype=np.int32).reshape(8, 3)
neighbours = make_mesh(MeshConfig(data=2, fsdp=2))
# As on a TPU torus, where the devices of a process do not hold neighbouring rows.
torus = Mesh(neighbours.devices.swapaxes(0, 1), neighbours.axis_names)
for mesh in (neighbours, torus):
    rows = local_rows(mesh, 8)
    tokens = put_batch({"tokens": everything[rows]}, mesh)["tokens"]
    assert tokens.shape == (8, 3)
    for shard in tokens.addressable_shards:
        np.testing.assert_array_equal(shard.data, everything[shard.index])
    print(f"rows {rows.tolist()}, sum {jax.jit(lambda x: x.sum())(tokens)}")

index = jax.process_index()
assert gathered("number", lambda: index * 10) == [0, 10]
assert from_first("name", lambda: {"process": index}) == {"process": 0}
assert together("own", lambda: {index}) == {index}


def fail(where: int) -> None:
    if index == where:
        raise OSError(f"no such file on {where}")


for where in (0, 1):
    try:
        gathered("failing", lambda where=where: fail(where))
    except OSError as error:
        print(f"error: {error}")
# A failure has not put the two out of step.
assert gathered("after", lambda: index) == [0, 1]
shutdown()
print("done")
