"""Rematerialisation's `offload`, compiled for real TPUs."""

import importlib.util
import json
import subprocess
import sys

import pytest

# A process of its own: the TPU compiler stays in the one that loads it.
COMPILE = """
import json
from dsbs_jax.models.config import T5Config
from dsbs_jax.sharding.mesh import MeshConfig, make_mesh
from dsbs_jax.training.aot import tpu_devices
from dsbs_jax.training.optimizers import OptimizerConfig
from dsbs_jax.training.program import abstract_batch, training_program
from dsbs_jax.training.step import abstract_state

model = T5Config(
    d_model=128, d_kv=64, d_ff=256, num_layers=4, num_decoder_layers=1, num_heads=4, vocab_size=512,
    dropout_rate=0.0, dtype="bfloat16", remat_policy="offload",
)
mesh = make_mesh(MeshConfig(fsdp=2, model=2), tpu_devices("v5e:2x2"))
made = training_program(model, OptimizerConfig(), 10, (1.0, 1.0), mesh)
state = abstract_state(made.model, made.optimizer, mesh)
memory = made.step.lower(state, abstract_batch(mesh, 16, 128, 32)).compile().memory_analysis()
print(json.dumps({"host": memory.host_temp_size_in_bytes}))
"""


@pytest.mark.slow
@pytest.mark.lengthy
def test_products_wait_in_the_memory_of_a_tpus_host(environment):
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("needs the TPU compiler: pip install 'dsbs_jax[tpu]'")
    # Processes of other tests load the compiler too.
    quiet = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    command = [sys.executable, "-c", COMPILE]
    process = subprocess.run(command, env=environment | quiet, capture_output=True, text=True, timeout=500)
    assert process.returncode == 0, process.stderr
    # Of each of a chip's 8 x 128 input tokens and of every layer, in bfloat16: queries, keys and values (half of 256
    # numbers each), what both halves of a gated feed-forward give (half of 256 each), and two outputs of 128.
    at_least = 8 * 128 * 4 * (5 * 128 + 2 * 128) * 2
    assert json.loads(process.stdout.splitlines()[-1])["host"] >= 0.9 * at_least
