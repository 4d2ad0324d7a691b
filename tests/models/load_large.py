"""What test_streaming.py measures, in a process of its own: `load FOLDER` or `import FOLDER OUTPUT`, in bfloat16.

Prints the number of bytes that the parameters take on all devices, and the most that the process held beyond those of
the parameters placed so far. The devices of a simulated mesh keep their arrays in the host's memory, so they are taken
off. Counted is VmHWM, the peak of all resident memory: Python, JAX, pages of mapped files, everything. It is set back
before each parameter, for what is needed on top early on would hide behind the parameters that come later.
"""

import pathlib
import sys

import jax

from dsbs_jax.models import importing, streaming, weights
from dsbs_jax.models.config import T5Config
from dsbs_jax.models.parameters import abstract_params
from dsbs_jax.models.t5 import T5
from dsbs_jax.sharding.mesh import MeshConfig, make_mesh
from dsbs_jax.sharding.rules import param_shardings


def peak() -> int:
    status = pathlib.Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def on_devices(*arrays) -> int:
    return sum(shard.data.nbytes for array in arrays for shard in array.addressable_shards)


placed, beyond = 0, 0
place, write = streaming._place, importing.write


def measured(read, target, sharding):
    global placed, beyond
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    array = jax.block_until_ready(place(read, target, sharding))
    placed += on_devices(array)
    beyond = max(beyond, peak() - placed)
    return array


def measured_write(folder, params, record):
    global beyond
    write(folder, params, record)
    beyond = max(beyond, peak() - placed)


streaming._place, importing.write = measured, measured_write
what, folder = sys.argv[1:3]
if what == "import":
    importing.import_weights(folder, sys.argv[3], importing.ImportConfig(), "bfloat16")
else:
    config = T5Config(**weights.open_weights(folder).architecture, param_dtype="bfloat16")
    mesh = make_mesh(MeshConfig(preset="fsdp+tp") if jax.device_count() > 1 else MeshConfig())
    shardings = param_shardings(abstract_params(T5(config)), mesh)
    params = weights.load_weights(folder, config, shardings)
print(placed, beyond)
