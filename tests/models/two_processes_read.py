"""One of the two processes of test_streaming.py: loads a folder and says how many bytes it read of the files.

Arguments: folder, this process's number, and the sizes of the axes fsdp and model. JAX_COORDINATOR_ADDRESS is set.
"""

import sys

import jax

from dsbs_jax.models import hf, streaming
from dsbs_jax.sharding.distributed import initialize, shutdown
from dsbs_jax.sharding.mesh import MeshConfig, make_mesh
from dsbs_jax.sharding.rules import param_shardings

folder, number, fsdp, model = sys.argv[1], *map(int, sys.argv[2:])
assert initialize(num_processes=2, process_id=number)
count = 0
read = hf._Tensor.read


def counted(tensor, index):
    global count
    values = read(tensor, index)
    count += values.nbytes
    return values


hf._Tensor.read = counted
config = hf.config_from_huggingface(folder)
count = 0  # Reading the config looks whether the two embeddings are one.
shardings = param_shardings(
    streaming.abstract_parameters(config), make_mesh(MeshConfig(data=1, fsdp=fsdp, model=model))
)
params = hf.load_huggingface(folder, config, shardings)
held = sum(
    sum({str(shard.index): shard.data.nbytes for shard in leaf.addressable_shards}.values())
    for leaf in jax.tree.leaves(params)
)
total = float(sum(jax.jit(lambda leaf: abs(leaf).sum())(leaf) for leaf in jax.tree.leaves(params)))
print(f"read {count} held {held} whole {sum(leaf.nbytes for leaf in jax.tree.leaves(params))} sum {total!r}")
shutdown()
