"""One of the two processes of test_streaming.py: loads a folder and says how many bytes it read of the files.

Arguments: folder, this process's number, and the sizes of the axes fsdp and model. JAX_COORDINATOR_ADDRESS is set.
"""

import sys

import jax
import numpy as np

from dsbs_jax.models import hf
from dsbs_jax.models.parameters import abstract_params
from dsbs_jax.models.t5 import T5
from dsbs_jax.sharding.distributed import initialize, shutdown
from dsbs_jax.sharding.mesh import MeshConfig, make_mesh
from dsbs_jax.sharding.rules import param_shardings

folder, number, fsdp, model = sys.argv[1], *map(int, sys.argv[2:])
assert initialize(num_processes=2, process_id=number)
count = 0
opened = hf.safe_open


class Counted:
    """A safetensors file, or a tensor in it, that counts the bytes that leave it."""

    def __init__(self, inner):
        self.inner = inner

    def __enter__(self):
        return Counted(self.inner.__enter__())

    def __exit__(self, *error):
        return self.inner.__exit__(*error)

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def get_slice(self, name):
        return Counted(self.inner.get_slice(name))

    def __getitem__(self, index):
        global count
        values = self.inner[index]
        count += values.nbytes
        return values


hf.safe_open = lambda *words, **options: Counted(opened(*words, **options))
config = hf.config_from_huggingface(folder)
count = 0  # Reading the config looks whether the two embeddings are one.
shardings = param_shardings(abstract_params(T5(config)), make_mesh(MeshConfig(data=1, fsdp=fsdp, model=model)))
params = hf.load_huggingface(folder, config, shardings)
held = sum(
    sum({str(shard.index): shard.data.nbytes for shard in leaf.addressable_shards}.values())
    for leaf in jax.tree.leaves(params)
)
print(f"read {count} held {held} of {sum(leaf.nbytes for leaf in jax.tree.leaves(params))}")
for leaf, whole in zip(jax.tree.leaves(params), jax.tree.leaves(hf.load_huggingface(folder, config)), strict=True):
    for shard in leaf.addressable_shards:
        np.testing.assert_array_equal(shard.data, np.asarray(whole)[shard.index])
shutdown()
