"""Makes the memory table of docs/sharding.md: the training step of every model size, compiled for a few TPU slices.

With 32 rows of 1024 + 256 tokens, AdamW, bfloat16 products, every layer recomputed, everything split over `fsdp`.

    python scripts/memory_table.py                       # minutes a cell
    python scripts/memory_table.py --sizes xxl --slices v5p:2x2x4 --gin.T5Config.remat_policy="'minimal'"

Further flags go to `dsbs aot`. A cell that was compiled before by the same package is not compiled again: the answers
lie in --cache.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import pathlib
import subprocess
import sys
from typing import Any

import jax

import dsbs_jax

SIZES = ("small", "base", "large", "xl", "xxl")
SLICES = ("v5e:2x2", "v5e:8x8", "v5p:2x2x4")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=SIZES, help="of T5 v1.1 (default: all)")
    parser.add_argument("--slices", nargs="+", default=SLICES, help="TPU topologies (default: %(default)s)")
    parser.add_argument("--cache", type=pathlib.Path, default=pathlib.Path(".cache/memory_table"))
    arguments, flags = parser.parse_known_args()
    flags = ["--gin.MESH='fsdp'", "--gin.T5Config.dtype='bfloat16'", "--gin.BATCH_SIZE=32", *flags]
    print("| T5 v1.1 | slice | rows | arguments | temporaries | peak | of | FLOPs ratio | roofline |")
    print("|---|---|---|---|---|---|---|---|---|")
    for size in arguments.sizes:
        for topology in arguments.slices:
            print(_row(size, topology, _estimate(size, topology, flags, arguments.cache)), flush=True)


def _estimate(size: str, topology: str, flags: list[str], cache: pathlib.Path) -> dict[str, Any]:
    # The files of the larger sizes say so themselves.
    flags = flags if size in ("xl", "xxl") else ["--gin.T5Config.remat_policy='full'", *flags]
    what = ["--gin_file", f"models/t5_1_1_{size}", "--topology", topology, "--only", "train"]
    command = ["aot", *what, "--json", *flags]
    package = pathlib.Path(dsbs_jax.__file__).parent
    sources = b"".join(path.read_bytes() for path in sorted(package.rglob("*.py")) if path.parent.name != "data")
    key = hashlib.sha256(sources + json.dumps([jax.__version__, command]).encode()).hexdigest()[:16]
    answer = cache / f"{size}-{topology.replace(':', '-')}-{key}.json"
    if not answer.is_file():
        done = subprocess.run([sys.executable, "-m", "dsbs_jax", *command], stdout=subprocess.PIPE, text=True)
        if not done.stdout:
            raise SystemExit(f"dsbs {' '.join(command)} ended with {done.returncode}.")
        cache.mkdir(parents=True, exist_ok=True)
        answer.write_text(done.stdout)
    return json.loads(answer.read_text())


def _row(size: str, topology: str, found: dict[str, Any]) -> str:
    def gigabytes(name: str) -> str:
        return "-" if found[name] is None else f"{found[name] / 1e9:.2f} GB"

    fits = gigabytes("peak_bytes_per_chip") if found["fits"] else f"**{gigabytes('peak_bytes_per_chip')}: too much**"
    ratio, roofline = found["flops_ratio"], found["roofline_step_seconds"]
    cells = [
        *(size, topology, found["rows"], gigabytes("argument_bytes_per_chip"), gigabytes("temp_bytes_per_chip")),
        *(fits, gigabytes("hbm_bytes_per_chip")),
        *("-" if ratio is None else f"{ratio:.2f}", "-" if roofline is None else f"{roofline:.3f} s"),
    ]
    return f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    main()
