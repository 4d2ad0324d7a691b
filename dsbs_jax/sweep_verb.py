"""The command line's side of a sweep: its flags, and gin files turned into cells."""

from __future__ import annotations

import argparse
import pathlib
import shlex
import sys
from collections.abc import Sequence

# Of the sweep's folder.
_DATABASE = "results.sqlite"


def add_flags(sub: argparse.ArgumentParser) -> None:
    """Adds the flags of `dsbs sweep`."""
    sub.add_argument("file", help="gin file of the sweep, by path or name (recipes/smoke)")
    sub.add_argument("--output", help="the sweep's folder (default: sweeps/NAME)")
    sub.add_argument("--workers", type=int, default=1, metavar="N", help="for --run: so many processes (default: 1)")
    sub.add_argument(
        "--submit", choices=("slurm", "local"), help="for --run: the workers become jobs of a cluster; see SubmitConfig"
    )
    action = sub.add_mutually_exclusive_group()
    action.add_argument("--list", action="store_true", help="print the cells and their states; run nothing")
    # `run` is what the verb calls.
    action.add_argument(
        "--run", dest="run_cells", action="store_true", help="run what is neither finished, failed nor running"
    )
    action.add_argument("--status", action="store_true", help="print counts, errors and the time left")
    action.add_argument("--retry-failed", action="store_true", help="the same as --run, and failed cells again")
    action.add_argument("--evaluate", metavar="SPLIT", help="evaluate the finished cells again, without training")
    sub.add_argument("--on", metavar="DATASET", help="for --evaluate: gin file of another dataset (datasets/OTHER)")
    sub.add_argument("--metric", help="for --evaluate: exact or equation (default: the dataset's own)")
    sub.add_argument("--step", help="for --evaluate: best, last, or a step with a checkpoint (default: best)")
    sub.add_argument("--csv", metavar="PATH", help="write a row a cell; - for standard output")
    sub.add_argument("--sql", metavar="QUERY", help='ask SQLite, e.g. "SELECT method, avg(test_accuracy) FROM runs"')


def run(arguments: argparse.Namespace, flags: Sequence[str], bindings: Sequence[str]) -> int:
    """Does what the flags say; returns 3 where cells failed or a search cannot go on, 130 or 143 where a signal stopped
    the workers, else 0.

    Args:
      arguments: of `add_flags`, with `gin_file` and `data_dir`.
      flags: bindings of the other flags.
      bindings: as after `--gin.`.

    Raises:
      ValueError, OSError: nothing is asked for, or something that cannot be built, in a sentence.
    """
    runs = arguments.run_cells or arguments.retry_failed
    if not (runs or arguments.list or arguments.status or arguments.evaluate or arguments.csv or arguments.sql):
        raise ValueError(
            "What about the sweep? Give --list, --run, --status, --retry-failed, --evaluate SPLIT, --csv PATH or --sql."
        )
    asked = {name: value for name in ("on", "metric", "step") if (value := getattr(arguments, name)) is not None}
    if asked and not arguments.evaluate:
        raise ValueError(f"--{next(iter(asked))} says how finished cells are evaluated: give --evaluate SPLIT with it.")
    if arguments.workers < 1:
        raise ValueError(f"--workers is {arguments.workers}; it must be at least 1.")
    if arguments.submit and not runs:
        raise ValueError(f"--submit {arguments.submit} says how cells are run: give --run or --retry-failed with it.")
    from dsbs_jax import gin_config
    from dsbs_jax.experiments import evaluations, results, search, submission, sweep, workers
    from dsbs_jax.sharding.cluster import refuse_several
    from dsbs_jax.sharding.compilation import keep_compilations
    from dsbs_jax.training.config import TrainConfig

    refuse_several("dsbs sweep")
    for axis, macro in sweep.AXIS_MACROS.items():
        if any(word.partition("=")[0].strip() == macro for word in bindings):
            raise ValueError(f"{macro} is an axis of the sweep: give --gin.SweepConfig.{axis}='(..., ...)' instead.")
    if arguments.on:
        gin_config.find(arguments.on)
    question = evaluations.Question(arguments.evaluate, **asked) if arguments.evaluate else None
    given = [*flags, *bindings]
    own = [arguments.file, *arguments.gin_file]
    root = [f"SweepConfig.root={arguments.output!r}"] if arguments.output else []
    config = gin_config.parse(["runs/train", *own], [*root, *given], sweep.SweepConfig)()
    if runs or question:
        keep_compilations(gin_config.macro("COMPILATION_CACHE_DIR"))

    def build(files: Sequence[str], words: Sequence[str]) -> tuple[TrainConfig, str]:
        # Dataset, model and method are told first; a variant last, which may change what the sweep's own file says, and
        # with it another dataset to evaluate on.
        last = filter(None, files[3:])
        made = gin_config.parse(["runs/train", *files[:3], *own, *last], [*given, *words], TrainConfig)()
        return made, gin_config.operative()

    cells = sweep.expand(config, build)
    if arguments.retry_failed:
        print(f"{sweep.forget_errors(cells)} failed cells are free again.", file=sys.stderr)
    if runs and config.search:
        sweep.check_teachers(cells)
    words = _same_sweep(arguments, bindings, config.folder)
    command = workers.worker_command([*words, "--run"])
    if arguments.submit:
        job = gin_config.parse(["runs/train", *own], given, submission.SubmitConfig)()
        print(submission.submit(command, arguments.workers, config.folder, arguments.submit, job))
        sweep.announce(cells, config.folder, config.search)
        print(f"How far they are: {shlex.join(['dsbs', 'sweep', *words, '--status'])}")
        return 0
    if runs:
        sweep.announce(cells, config.folder, config.search)
    stopped = 0
    if runs and arguments.workers > 1:
        count = min(arguments.workers, len(cells))
        stopped = workers.work_in_processes(command, count, config.folder, sweep.teller(cells))
    elif runs and config.search:
        sweep.work_by_plan(cells, build, search.planned)
    elif runs:
        sweep.work(cells, build)
    answers = evaluations.evaluate(cells, build, question) if question else None
    rows = [cell.row() for cell in cells]
    states = search.searches(rows) if config.search else []
    if answers:
        print(answers.text())
    if arguments.list:
        points = sum(1 for _ in config.points())
        print("\n".join(sweep.describe(row) + search.note(states, row) for row in rows))
        print(f"{len(rows)} cells" + (f" ({points} points, of which some coincide)" if points > len(rows) else ""))
    if runs or arguments.status:
        print(sweep.status(rows, search.skipped(states)))
        if states:
            print(search.report(states))
    if arguments.csv == "-":
        sys.stdout.write(results.to_csv(rows))
    elif arguments.csv:
        pathlib.Path(arguments.csv).write_text(results.to_csv(rows))
    if arguments.sql or runs or answers:
        results.write_database(results.and_others(rows, config.folder), config.folder / _DATABASE)
    if arguments.sql:
        names, found = results.query(config.folder / _DATABASE, arguments.sql)
        print("\n".join("\t".join(map(str, line)) for line in [names, *found]))
    bad = any(row.status == "failed" for row in rows) or any(state.stopped for state in states)
    return stopped or (workers.FAILED_CELLS if (answers.failed if answers else runs and bad) else 0)


def _same_sweep(arguments: argparse.Namespace, bindings: Sequence[str], folder: pathlib.Path) -> list[str]:
    """What stands after `dsbs sweep` for the same cells in the same folder, wherever it is started."""
    from dsbs_jax import gin_config
    from dsbs_jax.data.locations import find_data_dir

    words = [str(gin_config.find(arguments.file).absolute()), "--output", str(folder.absolute())]
    if data_dir := find_data_dir(arguments.data_dir):
        words += ["--data_dir", str(pathlib.Path(data_dir).absolute())]
    for file in arguments.gin_file:
        words += ["--gin_file", str(gin_config.find(file).absolute())]
    return [*words, *(f"--gin.{word}" for word in bindings)]
