"""The whole method on the embedded dataset: a teacher labels it over HTTP, students learn from it, and are compared.

Both methods, gold and teacher's labels, fractions and seeds; the report is that of a sweep, see `report.py`.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import itertools
import json
import multiprocessing
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

import jax

from dsbs_jax.data.label_card import summary
from dsbs_jax.data.labelling import LabelConfig, Labelling
from dsbs_jax.data.prepare import default_store_root, ensure_store
from dsbs_jax.experiments.report import write_report
from dsbs_jax.files import write_whole
from dsbs_jax.schema import LabelSource, Method, make_method
from dsbs_jax.sharding.compilation import keep_compilations
from dsbs_jax.teacher.openai_client import OpenAITeacher
from dsbs_jax.training import loop
from dsbs_jax.training.config import TrainConfig

TEACHER = "dsbs_jax.experiments.demo_teacher"
TEACHER_MODEL = "bestiary-expert"


@dataclasses.dataclass(frozen=True)
class DemoConfig:
    """The grid of the demo. Everything but method, labels, fraction and seed is the same for all runs.

    Attributes:
      run: the common configuration; its `model_dir` becomes the folder of all runs.
      methods: the first is the baseline of the comparison. Each is trained on gold labels and on the teacher's.
      fractions: shares of the training examples, for gold labels.
      teacher_fractions: the same for the teacher's labels.
      seeds: of initial weights, dropout and order.
      workers: processes, each on a processor core of its own; None takes one per core, at most one per run.
      compilation_cache: folder of compiled programs, see `keep_compilations`.
    """

    run: TrainConfig
    methods: tuple[Method, ...] = (make_method("standard"), make_method("step_by_step"))
    fractions: tuple[float, ...] = (0.25, 0.5, 1.0)
    teacher_fractions: tuple[float, ...] = (1.0,)
    seeds: tuple[int, ...] = (0, 1, 2)
    workers: int | None = None
    compilation_cache: str | None = None

    def runs(self, teacher: str) -> list[TrainConfig]:
        """One configuration a cell, the cheapest to interrupt first: all methods of a fraction, then the next.

        Args:
          teacher: the folder with the teacher's labels and rationales.
        """
        folder = pathlib.Path(self.run.model_dir)
        cells: list[tuple[LabelSource, float, int, Method]] = [
            ("gold", *cell) for cell in itertools.product(self.fractions, self.seeds, self.methods)
        ]
        cells += [("teacher", *cell) for cell in itertools.product(self.teacher_fractions, self.seeds, self.methods)]
        return [
            dataclasses.replace(
                self.run,
                model_dir=str(folder / f"{method.name}-{source}-{fraction:g}-{seed}"),
                data=dataclasses.replace(self.run.data, teacher=teacher),
                method=dataclasses.replace(method, label_source=source),
                fraction=fraction,
                seed=seed,
                progress=False,
            )
            for source, fraction, seed, method in cells
        ]


def run(config: DemoConfig, operative_config: str = "") -> str:
    """Labels, trains the grid, writes the report on it beside `results.jsonl`, and returns its tables, in Markdown.

    Args:
      config: the grid.
      operative_config: the gin configuration it came from; each run's folder gets it with the run's own values, so that
        `dsbs eval` and `dsbs predict` read the students.
    """
    folder = pathlib.Path(config.run.model_dir)
    folder.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    labels, card = _label(config.run, folder / "labels")
    print(f"Labelled by {TEACHER_MODEL} ({time.perf_counter() - started:.0f} s): {card}", file=sys.stderr)
    runs = config.runs(str(labels))
    root = config.run.store_root or default_store_root()
    with concurrent.futures.ThreadPoolExecutor(len(_cores())) as pool:
        list(pool.map(lambda request: ensure_store(request, root), {cell.store_request() for cell in runs}))
    results = folder / "results.jsonl"
    lines: dict[str, str] = {}
    finished = _in_parallel(runs, operative_config, config.workers, config.compilation_cache)
    for done, (cell, result) in enumerate(finished, start=1):
        lines[cell.model_dir] = json.dumps(result)
        # Rewritten whole, so that the file never holds half a line.
        write_whole(results, "".join(lines[c.model_dir] + "\n" for c in runs if c.model_dir in lines))
        print(
            f"[{done}/{len(runs)}] {result['method']:>13}, {result['label_source']} labels, "
            f"fraction {result['fraction']:<5g} seed {result['seed']}: test accuracy {result['test_accuracy']:.3f} "
            f"({result['seconds']:.0f} s, {time.perf_counter() - started:.0f} s in all)",
            file=sys.stderr,
        )
    report = write_report(folder)
    return (
        f"{report.with_name('tables.md').read_text()}\nThe teacher, {TEACHER_MODEL}: {card}.\n\n"
        f"Report:  {report} shows all this, with figures and examples\nResults: {results}\n"
        f"Labels:  {labels / 'train.report.html'} judges the teacher's answers"
    )


def _label(run: TrainConfig, output: pathlib.Path) -> tuple[pathlib.Path, str]:
    """Asks a teacher in a process of its own, over HTTP; returns the labelled folder and what came back in a line."""
    with _teacher(dict(run.data.dataset_arguments)) as url:
        labelling = Labelling(
            LabelConfig(
                dataset=run.data.name,
                teacher=OpenAITeacher(TEACHER_MODEL, url),
                output=str(output),
                dataset_arguments=run.data.dataset_arguments,
            )
        )
        asked = labelling.ask()
    if not asked.complete:
        raise RuntimeError(f"The teacher did not answer every question: {asked.text()}.")
    card = labelling.write()
    labelling.report()
    return labelling.folder, summary(card)


@contextlib.contextmanager
def _teacher(world: dict[str, int | float | str]) -> Iterator[str]:
    """The base URL of a teacher's process, which ends with the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", TEACHER, "--world", json.dumps(world)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        if not url:
            raise RuntimeError(f"The teacher's process ({TEACHER}) ended with status {process.wait()}.")
        yield url
    finally:
        process.kill()
        process.wait()


def _cores() -> Sequence[int | None]:
    """The cores that this process may use; None for each where the system does not tell them apart."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return [None] * (os.cpu_count() or 1)


def _in_parallel(runs: list[TrainConfig], operative_config: str, workers: int | None, compilation_cache: str | None):
    """Yields (config, result) as runs finish, one process pinned to each core: tiny matrices do not fill two."""
    cores = _cores()[: min(workers or len(_cores()), len(runs))]
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
            # What failed once would fail again: nothing more is begun. What runs is waited for: a worker that is still
            # starting when this process ends would print a call stack of its own over the error.
            pool.shutdown(cancel_futures=True)
            raise


def _own_config(operative_config: str, cell: TrainConfig) -> str:
    """The grid's configuration with one run's values, which stand last and so win."""
    if not operative_config:
        return ""
    own = {
        "MODEL_DIR": cell.model_dir,
        "METHOD": cell.method.name,
        "LABEL_SOURCE": cell.method.label_source,
        "TEACHER": cell.data.teacher,
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
