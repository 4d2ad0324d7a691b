"""Makes the cost table of docs/sweeps.md: what each recipe of the paper's own setups asks of an accelerator.

    python scripts/recipe_cost.py --data_dir DATA --mfu 0.4 --chip 'NVIDIA H100 80GB HBM3'

Counts the model FLOPs of every cell's training steps, at the packed shape that the recipe's data has. Hours follow from
the model FLOPs utilisation: measure it with `dsbs bench step` on the device and give it. Evaluations and compilation
come on top. A dataset that is not in DATA is counted with the shape of `--instead`.
"""

from __future__ import annotations

import argparse
import csv
import functools
import io
import json
import pathlib
import subprocess
import sys
from typing import Any

from dsbs_jax import gin_config, schema
from dsbs_jax.data.batches import BatchPlan
from dsbs_jax.data.prepare import PrepareError, StoreRequest, default_store_root, ensure_store
from dsbs_jax.data.store import TokenStore
from dsbs_jax.models.config import T5Config
from dsbs_jax.models.flops import train_step_flops
from dsbs_jax.sharding.chips import find_chip

# The packed shape settles early; no need to plan every step of a run.
_STEPS = 300


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", help="default: all that start from published weights")
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--mfu", type=float, required=True, help="model FLOPs utilisation, of `dsbs bench step`")
    parser.add_argument("--chip", default="NVIDIA H100 80GB HBM3", help="as JAX names it (default: %(default)s)")
    parser.add_argument("--instead", default="esnli", help="dataset for those that are absent (default: %(default)s)")
    arguments = parser.parse_args()
    chip = find_chip(arguments.chip)
    if chip is None:
        raise SystemExit(f"There is no data sheet of {arguments.chip!r} in dsbs_jax/sharding/chips.py.")
    print(f"| recipe | cells | training steps | model FLOPs | {chip.name} hours at {100 * arguments.mfu:g} % MFU |")
    print("|---|---:|---:|---:|---:|")
    for recipe in arguments.recipes or _of_the_paper():
        configs = _configs(recipe, arguments.data_dir)
        flops = sum(config["steps"] * _step_flops(config, arguments.instead) for config in configs)
        steps = sum(config["steps"] for config in configs)
        hours = flops / (arguments.mfu * chip.peak_flops) / 3600
        print(f"| `{recipe}` | {len(configs)} | {steps:,} | {flops:.2g} | {hours:,.1f} |", flush=True)


def _of_the_paper() -> list[str]:
    names = [name.removesuffix(".gin") for name in gin_config.names() if name.startswith("recipes/")]
    return [name.removeprefix("recipes/") for name in names if "pretrained/" in gin_config.find(name).read_text()]


def _configs(recipe: str, data_dir: str) -> list[dict[str, Any]]:
    """The configuration of every cell."""
    command = [sys.executable, "-m", "dsbs_jax", "sweep", f"recipes/{recipe}", "--csv", "-", "--data_dir", data_dir]
    # Nothing is read from the folder, so that cells which already ran count, too.
    command += ["--output", "/nonexistent"]
    listed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    csv.field_size_limit(sys.maxsize)
    return [json.loads(row["config"]) for row in csv.DictReader(io.StringIO(listed))]


def _step_flops(config: dict[str, Any], instead: str) -> float:
    folder = pathlib.Path(config["data"]["data_dir"]) / config["data"]["name"]
    name = config["data"]["name"] if folder.is_dir() else instead
    # Neither whose labels nor which rationales are read changes a shape by much.
    data = config["data"] | {"name": name, "teacher": "llm", "dataset_arguments": [], "teacher_filter": None}
    method = config["method"] | {"label_source": "gold"}
    key = (json.dumps(data, sort_keys=True), json.dumps(method, sort_keys=True), config["batch_size"])
    rows, encoder, decoder = _shape(*key)
    return train_step_flops(T5Config(**config["model"]), rows, encoder, decoder)


@functools.cache
def _shape(data: str, method: str, batch_size: int) -> tuple[int, int, int]:
    """Packed rows, and tokens of each in encoder and decoder."""
    fields = json.loads(method)
    tasks = tuple(schema.TaskFormat(**task) for task in fields.pop("tasks"))
    request = StoreRequest.from_json(json.loads(data)).for_method(schema.Method(tasks=tasks, **fields))
    try:
        store = TokenStore.open(ensure_store(request, default_store_root()))
    except PrepareError as error:
        raise SystemExit(str(error)) from None
    return BatchPlan(store.split("train"), batch_size=batch_size, steps=_STEPS, seed=0).shape


if __name__ == "__main__":
    main()
