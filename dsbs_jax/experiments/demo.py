"""The paper's claim on the embedded dataset: both methods, fractions and seeds; a table, a plot, a paired test."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import itertools
import json
import multiprocessing
import os
import pathlib
import sys
import time

import jax

from dsbs_jax.data.prepare import default_store_root, ensure_store
from dsbs_jax.experiments.compare import comparison_table, plot_fractions
from dsbs_jax.schema import Method, make_method
from dsbs_jax.sharding.compilation import keep_compilations
from dsbs_jax.training import loop
from dsbs_jax.training.config import TrainConfig


@dataclasses.dataclass(frozen=True)
class DemoConfig:
    """The grid of the demo. Everything but method, fraction and seed is the same for all runs.

    Attributes:
      run: the common configuration; its `model_dir` becomes the folder of all runs.
      methods: the first is the baseline of the comparison.
      fractions: shares of the training examples.
      seeds: of initial weights, dropout and order.
      workers: processes, each on a processor core of its own; None takes one per core, at most one per run.
      compilation_cache: folder of compiled programs, see `keep_compilations`.
    """

    run: TrainConfig
    methods: tuple[Method, ...] = (make_method("standard"), make_method("step_by_step"))
    fractions: tuple[float, ...] = (0.5, 0.75, 1.0)
    seeds: tuple[int, ...] = (0, 1, 2)
    workers: int | None = None
    compilation_cache: str | None = None

    def runs(self) -> list[TrainConfig]:
        """One configuration a cell, the cheapest to interrupt first: all methods of a fraction, then the next."""
        folder = pathlib.Path(self.run.model_dir)
        return [
            dataclasses.replace(
                self.run,
                model_dir=str(folder / f"{method.name}-{fraction:g}-{seed}"),
                method=method,
                fraction=fraction,
                seed=seed,
                progress=False,
            )
            for fraction, seed, method in itertools.product(self.fractions, self.seeds, self.methods)
        ]


def run(config: DemoConfig, operative_config: str = "") -> str:
    """Trains the grid and returns the report, a Markdown table; also written beside `results.jsonl` with a plot.

    Args:
      config: the grid.
      operative_config: the gin configuration it came from; each run's folder gets it with the run's own values, so that
        `dsbs eval` and `dsbs predict` read the students.
    """
    folder = pathlib.Path(config.run.model_dir)
    folder.mkdir(parents=True, exist_ok=True)
    runs = config.runs()
    root = config.run.store_root or default_store_root()
    for request in {cell.store_request() for cell in runs}:
        ensure_store(request, root)
    started = time.perf_counter()
    results = folder / "results.jsonl"
    lines: dict[str, str] = {}
    finished = _in_parallel(runs, operative_config, config.workers, config.compilation_cache)
    for done, (cell, result) in enumerate(finished, start=1):
        lines[cell.model_dir] = json.dumps(result)
        # Rewritten whole, so that the file never holds half a line.
        temporary = results.with_suffix(".tmp")
        temporary.write_text("".join(lines[c.model_dir] + "\n" for c in runs if c.model_dir in lines))
        temporary.replace(results)
        print(
            f"[{done}/{len(runs)}] {result['method']:>13} fraction {result['fraction']:<5g} seed {result['seed']}: "
            f"test accuracy {result['test_accuracy']:.3f} ({result['seconds']:.0f} s, "
            f"{time.perf_counter() - started:.0f} s in all)",
            file=sys.stderr,
        )
    table = comparison_table(
        [pathlib.Path(cell.model_dir) for cell in runs], [method.name for method in config.methods]
    )
    (folder / "report.md").write_text(table + "\n")
    plot_fractions(results, folder / "accuracy.png")
    return f"{table}\n\nResults: {results}\nPlot:    {folder / 'accuracy.png'}"


def _in_parallel(runs: list[TrainConfig], operative_config: str, workers: int | None, compilation_cache: str | None):
    """Yields (config, result) as runs finish, one process pinned to each core: tiny matrices do not fill two."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [None] * (os.cpu_count() or 1)
    cores = cores[: min(workers or len(cores), len(runs))]
    context = multiprocessing.get_context("spawn")
    free = context.Queue()
    for core in cores:
        free.put(core)
    with concurrent.futures.ProcessPoolExecutor(len(cores), context, _start_worker, (free, compilation_cache)) as pool:
        pending = {pool.submit(_train, cell, _own_config(operative_config, cell)): cell for cell in runs}
        try:
            for future in concurrent.futures.as_completed(pending):
                yield pending[future], future.result()
        except BaseException:
            # What failed once would fail again: the first error is told at once.
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _own_config(operative_config: str, cell: TrainConfig) -> str:
    """The grid's configuration with one run's values, which stand last and so win."""
    if not operative_config:
        return ""
    own = {
        "MODEL_DIR": cell.model_dir,
        "METHOD": cell.method.name,
        "LABEL_SOURCE": cell.method.label_source,
        "FRACTION": cell.fraction,
        "RANDOM_SEED": cell.seed,
    }
    return operative_config + "\n# This run's own values:\n" + "".join(f"{k} = {v!r}\n" for k, v in own.items())


def _start_worker(free, compilation_cache: str | None) -> None:
    core = free.get()
    if core is not None:
        os.sched_setaffinity(0, {core})
    # Several processes cannot share one accelerator, and this model would not keep one busy.
    jax.config.update("jax_platforms", "cpu")
    keep_compilations(compilation_cache)


def _train(config: TrainConfig, operative_config: str) -> dict:
    return dataclasses.asdict(loop.train(config, operative_config))
