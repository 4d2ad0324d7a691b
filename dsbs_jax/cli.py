"""`dsbs VERB`: parses the command line and gin, calls one function.

Heavy imports live inside the verbs, so that `dsbs --help` answers at once.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

from dsbs_jax import hosts, label_verb, sweep_verb
from dsbs_jax.hosts import SENTENCES

T = TypeVar("T")

EXAMPLES = {
    "demo": "dsbs demo",
    "data": "dsbs data show cqa -n 3 --data_dir DATA",
    "prepare": "dsbs prepare --gin_file datasets/cqa --gin_file methods/step_by_step --data_dir DATA",
    "label": "dsbs label --dataset cqa --teacher teachers/vllm --gin.TEACHER_MODEL=\"'NAME'\" --data_dir DATA",
    "parse": "dsbs parse --dataset cqa --answers 'DATA/cqa/llm/test_CoT_*.json' --data DATA/cqa/cqa_test.json",
    "import": "dsbs import google/flan-t5-base --output weights/flan-t5-base",
    "train": "dsbs train --gin_file datasets/svamp --gin_file models/mini --data_dir DATA --model_dir runs/svamp",
    "eval": "dsbs eval --model_dir runs/svamp --split test",
    "predict": "dsbs predict --model_dir runs/svamp --input questions.txt --output answers.jsonl",
    "aot": "dsbs aot --gin_file models/t5_1_1_xxl --topology v5p:2x2x4",
    "sweep": "dsbs sweep recipes/fig4_bestiary --run --workers 2",
    "report": "dsbs report sweeps/fig4_bestiary",
    "bench": "dsbs bench step --gin_file models/t5_1_1_large",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb; returns the exit code: 0 done, 1 refused in a sentence, 3 a labelling or a sweep that is not
    complete, 130 Ctrl-C, 143 SIGTERM after saving."""
    words = sys.argv[1:] if argv is None else argv
    # Before argparse, which takes a word with a space in it for a value.
    bindings = [word.removeprefix("--gin.") for word in words if word.startswith("--gin.")]
    arguments = _parser().parse_args([word for word in words if not word.startswith("--gin.")])
    _set_up_logging()
    from dsbs_jax.training.preemption import Preempted

    try:
        return arguments.run(arguments, bindings) or 0
    except KeyboardInterrupt:
        return 130
    except Preempted as stopped:
        print(f"dsbs: {stopped}", file=sys.stderr)
        return 143
    except SENTENCES as error:
        if os.environ.get("DSBS_TRACEBACK"):
            raise
        print(f"dsbs: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dsbs", description="Distilling step-by-step in JAX.")
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="VERB")

    def verb(name: str, run: Callable[..., int | None], help: str) -> argparse.ArgumentParser:
        sub = verbs.add_parser(
            name,
            help=help,
            description=help,
            epilog=f"--gin.NAME=VALUE binds a macro or parameter: --gin.BATCH_SIZE=32\n\nexample: {EXAMPLES[name]}",
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.add_argument("--gin_file", action="append", default=[], help="gin file, by path or name; repeatable")
        sub.add_argument("--data_dir", help="folder of datasets (default: the environment's DSBS_DATA_DIR)")
        sub.set_defaults(run=run)
        return sub

    sub = verb("demo", _demo, "distil on the embedded dataset: both methods, fractions, seeds; a report")
    sub.add_argument("--output", default="runs/demo", help="folder for results (default: %(default)s)")

    sub = verb("data", _data, "list, show or check datasets; their sizes as a table")
    sub.add_argument("action", choices=("list", "show", "check", "stats"))
    sub.add_argument("dataset", nargs="*", help="but for list: names such as cqa, or gin files of your own")
    sub.add_argument("--split", default="train", help="for show (default: %(default)s)")
    sub.add_argument("-n", type=int, default=3, help="for show: how many examples (default: %(default)s)")
    sub.add_argument("--json", action="store_true", help="for check: a JSON object a dataset instead of text")

    verb("prepare", _prepare, "tokenise a dataset into the token store (train does it when needed)")

    sub = verb("label", _label, "ask an LLM for rationales and labels; goes on where a stopped run ended")
    label_verb.add_flags(sub)

    sub = verb("parse", _parse, "read rationales and labels out of files of raw answers")
    sub.add_argument("--dataset", required=True, help="a name such as cqa, or a gin file of your own")
    sub.add_argument("--answers", required=True, nargs="+", help="JSON lists of strings: files, or patterns in quotes")
    sub.add_argument("--data", help="the file with the rows, in the order of the answers: judges the answers by them")
    sub.add_argument("--json", action="store_true", help="one JSON object instead of text")

    sub = verb("import", _import, "bring weights into a folder that every mesh reads in slices")
    sub.add_argument("source", help="a Hugging Face folder, a name on its hub, or a T5X checkpoint (with --gin_file)")
    sub.add_argument("--output", required=True, help="the folder to make; INITIAL_CHECKPOINT_PATH names it later")
    sub.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="default: %(default)s")
    hosts.add_flags(sub)

    sub = verb("train", _train, "train a student and evaluate it; goes on where a stopped run ended")
    sub.add_argument("--model_dir", help="the run's folder (the macro MODEL_DIR)")
    hosts.add_flags(sub)

    sub = verb("eval", _eval, "evaluate a trained student again; on another dataset with --gin_file datasets/OTHER")
    sub.add_argument("--model_dir", required=True, help="the run's folder")
    sub.add_argument("--split", default="test", help="default: %(default)s")
    sub.add_argument("--metric", help="exact or equation (default: the dataset's own)")
    sub.add_argument("--step", default="best", help="best, last, or a step that has a checkpoint (default: best)")
    sub.add_argument("--output", help="JSON lines of predictions")
    hosts.add_flags(sub)

    sub = verb("predict", _predict, "answer new inputs with a trained student")
    sub.add_argument("--model_dir", required=True, help="the run's folder")
    sub.add_argument("--step", default="best", help="best, last, or a step that has a checkpoint (default: best)")
    sub.add_argument("--input", default="-", help="text, one input a line, or JSON lines with `input` (default: stdin)")
    sub.add_argument("--output", default="-", help="JSON lines of `input` and `prediction` (default: stdout)")

    sub = verb("aot", _aot, "compile a run's programs for devices that need not be there: do they fit")
    sub.add_argument("--topology", help="a TPU slice such as v5p:2x2x4 or v5e:8x8 (needs the libtpu wheel)")
    sub.add_argument("--slices", type=int, default=1, help="how many such slices (default: %(default)s)")
    sub.add_argument("--devices", type=int, help="instead: this many simulated devices")
    sub.add_argument("--platform", choices=("cpu",), default="cpu", help="of the simulated devices")
    sub.add_argument("--only", choices=("train", "decode"), help="compile this program alone (default: both)")
    sub.add_argument("--json", action="store_true", help="one JSON object instead of text")

    sub = verb("sweep", _sweep, "run the cells of an experiment, on one machine or many; list them, ask for results")
    sweep_verb.add_flags(sub)

    sub = verb("report", _report, "figures, tables and examples of a sweep, as pages")
    sub.add_argument("root", help="the sweep's folder, or the demo's")
    sub.add_argument("--output", help="folder to write to (default: report in the runs' folder)")
    sub.add_argument("--watch", action="store_true", help="write it again whenever a run of the sweep is done")
    sub.add_argument("--every", type=float, metavar="SECONDS", help="for --watch: how often to look (default: 10)")

    sub = verb("bench", _bench, "measure training: against T5 in torch, or on the devices there are")
    sub.add_argument("what", choices=("train", "step"), help="train: against torch; step: seconds, tokens, MFU")
    hosts.add_flags(sub)
    return parser


def _set_up_logging() -> None:
    import logging

    # Where a verb loads TensorFlow at all, its notices would drown what the verb says.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("dsbs_jax").setLevel(logging.INFO)


def _parse_gin(
    arguments: argparse.Namespace, bindings: Sequence[str], root: Callable[..., T], *files: str
) -> Callable[[], T]:
    """The base files, then the user's, then flags, then --gin.X: later ones win. Returns what builds the root."""
    from dsbs_jax import gin_config

    return gin_config.parse([*files, *arguments.gin_file], [*_folders(arguments), *bindings], root)


def _folders(arguments: argparse.Namespace) -> list[str]:
    """The bindings that `--data_dir` and `--model_dir` stand for."""
    from dsbs_jax.data.locations import find_data_dir

    folders = {"DATA_DIR": find_data_dir(arguments.data_dir), "MODEL_DIR": getattr(arguments, "model_dir", None)}
    return [f"{macro}={folder!r}" for macro, folder in folders.items() if folder]


def _demo(arguments: argparse.Namespace, bindings: Sequence[str]) -> int:
    import pathlib
    import shlex

    # Students so small keep no accelerator busy, and its processes could not share one.
    os.environ["JAX_PLATFORMS"] = "cpu"
    from dsbs_jax.experiments import demo, workers
    from dsbs_jax.gin_config import PrepareConfig

    recipe = "recipes/demo"
    output = pathlib.Path(arguments.output)
    files = ("runs/train", "datasets/bestiary", recipe)
    teacher, told = demo.label(_parse_gin(arguments, bindings, PrepareConfig, *files)().data, output / "labels")
    # However the folder is spelt: the cells are named by what they learn from.
    teacher = teacher.resolve()
    print(f"Labelled by {demo.TEACHER_MODEL}: {told}", file=sys.stderr)
    words = ["sweep", recipe, "--run", "--workers", str(len(workers.cores()) or 1), "--output", str(output)]
    words += [word for file in arguments.gin_file for word in ("--gin_file", file)]
    words += ["--data_dir", arguments.data_dir] if arguments.data_dir else []
    words += [f"--gin.SweepConfig.teachers={(str(teacher),)!r}", *(f"--gin.{word}" for word in bindings)]
    print(shlex.join(["dsbs", *words]), file=sys.stderr)
    if ended := main(words):
        return ended
    from dsbs_jax.experiments.report import write_report

    report = write_report(output)
    print(
        f"\n{report.with_name('tables.md').read_text()}\nThe teacher, {demo.TEACHER_MODEL}: {told}.\n\n"
        f"Report:  {report} shows all this, with figures and examples\n"
        f"Runs:    {output / 'runs'}, and {output / 'results.sqlite'} has a row for each\n"
        f"Labels:  {teacher / 'train.report.html'} judges the teacher's answers"
    )
    return 0


def _data(arguments: argparse.Namespace, bindings: Sequence[str]) -> None:
    from dsbs_jax.data import inspect

    if arguments.action == "list":
        print(inspect.list_datasets())
        return
    from dsbs_jax import gin_config

    if not arguments.dataset:
        raise ValueError(f"Name a dataset: dsbs data {arguments.action} NAME; `dsbs data list` shows them.")
    files = [("runs/train", gin_config.dataset_file(name)) for name in arguments.dataset]
    requests = [_parse_gin(arguments, bindings, gin_config.PrepareConfig, *both)().store_request() for both in files]
    if arguments.action == "stats":
        print(inspect.statistics(requests))
        return
    for request in requests:
        if arguments.action == "show":
            print(inspect.show(request, arguments.split, arguments.n))
        else:
            print(inspect.check(request, as_json=arguments.json))


def _label(arguments: argparse.Namespace, bindings: Sequence[str]) -> int:
    return label_verb.run(arguments, _folders(arguments), bindings)


def _parse(arguments: argparse.Namespace, bindings: Sequence[str]) -> None:
    from dsbs_jax.data.custom import CustomDataset
    from dsbs_jax.data.parse_answers import parse_answers, render

    dataset: str | CustomDataset = arguments.dataset
    # What a gin file, or anything else of gin, describes is a dataset of one's own.
    if bindings or arguments.gin_file or arguments.dataset.endswith(".gin"):
        dataset = _parse_gin(arguments, bindings, CustomDataset, "runs/train", arguments.dataset)()
    print(render(parse_answers(dataset, arguments.answers, arguments.data), arguments.json))


def _prepare(arguments: argparse.Namespace, bindings: Sequence[str]) -> None:
    from dsbs_jax.data.prepare import ensure_store
    from dsbs_jax.gin_config import PrepareConfig

    config = _parse_gin(arguments, bindings, PrepareConfig, "runs/train")()
    print(ensure_store(config.store_request(), config.store_root))


def _import(arguments: argparse.Namespace, bindings: Sequence[str]) -> None:
    from dsbs_jax.models.importing import ImportConfig, import_weights

    with hosts.joined(arguments) as prints:
        config = _parse_gin(arguments, bindings, ImportConfig, "runs/train", "runs/import")()
        told = import_weights(arguments.source, arguments.output, config, arguments.dtype)
        if prints:
            print(told)


def _train(arguments: argparse.Namespace, bindings: Sequence[str]) -> None:
    import dataclasses
    import json

    from dsbs_jax import gin_config
    from dsbs_jax.sharding.compilation import keep_compilations
    from dsbs_jax.training import loop
    from dsbs_jax.training.config import TrainConfig

    with hosts.joined(arguments) as prints:
        make = _parse_gin(arguments, bindings, TrainConfig, "runs/train")
        keep_compilations(gin_config.macro("COMPILATION_CACHE_DIR"))
        config = make()
        operative = gin_config.operative()
        if prints:
            print(operative, file=sys.stderr)
        result = loop.train(config, operative)
        if prints:
            print(json.dumps(dataclasses.asdict(result)))


def _student(arguments: argparse.Namespace, bindings: Sequence[str]):
    import os.path

    from dsbs_jax import gin_config
    from dsbs_jax.sharding.compilation import keep_compilations
    from dsbs_jax.training.config import TrainConfig
    from dsbs_jax.training.student import load_student

    saved = os.path.join(arguments.model_dir, "config.gin")
    if not os.path.isfile(saved):
        raise FileNotFoundError(f"There is no {saved}: --model_dir must be the folder of a run of `dsbs train`.")
    make = _parse_gin(arguments, bindings, TrainConfig, "runs/train", saved)
    keep_compilations(gin_config.macro("COMPILATION_CACHE_DIR"))
    return load_student(make(), arguments.step)


def _eval(arguments: argparse.Namespace, bindings: Sequence[str]) -> None:
    import json
    import pathlib

    from dsbs_jax.metrics.accuracy import check_metric

    if arguments.metric:
        check_metric(arguments.metric)
    with hosts.joined(arguments) as prints:
        student = _student(arguments, bindings)
        evaluation = student.evaluate(arguments.split, arguments.metric)
        told = {"dataset": student.config.data.name, "split": arguments.split, "metric": evaluation.metric}
        told |= {"step": student.step, "rows": len(evaluation.rows)}
        if prints and arguments.output:
            evaluation.write(pathlib.Path(arguments.output))
        if prints:
            print(json.dumps(told | {"accuracy": evaluation.accuracy}))


def _predict(arguments: argparse.Namespace, bindings: Sequence[str]) -> None:
    import json
    import pathlib

    from dsbs_jax.sharding.cluster import refuse_several
    from dsbs_jax.training.student import read_inputs

    refuse_several("dsbs predict")
    text = sys.stdin.read() if arguments.input == "-" else pathlib.Path(arguments.input).read_text()
    inputs = read_inputs(text, arguments.input)
    predictions = _student(arguments, bindings).predict(inputs)
    lines = "".join(
        json.dumps({"input": question, "prediction": answer}, ensure_ascii=False) + "\n"
        for question, answer in zip(inputs, predictions, strict=True)
    )
    if arguments.output == "-":
        sys.stdout.write(lines)
    else:
        pathlib.Path(arguments.output).write_text(lines)


def _aot(arguments: argparse.Namespace, bindings: Sequence[str]) -> int:
    import json

    if (arguments.topology is None) == (arguments.devices is None):
        raise ValueError("Name what to compile for: --topology v5p:2x2x4, or --devices 16.")
    # Compiles for devices that are not there: neither an accelerator nor the TPU's metadata server is asked. The type
    # keeps libtpu from asking which TPU it is on; what is compiled for is the topology.
    os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    os.environ |= {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5litepod-4"}
    if arguments.devices:
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={arguments.devices}"
    import jax

    from dsbs_jax.training import aot

    config = _parse_gin(arguments, bindings, aot.AotConfig, "runs/train", "runs/aot")()
    if arguments.topology:
        where, devices = arguments.topology, aot.tpu_devices(arguments.topology, arguments.slices)
        where = f"{arguments.slices} x {where}" if arguments.slices > 1 else where
    else:
        where, devices = f"{arguments.devices} simulated devices ({arguments.platform})", jax.devices()
    programs = (arguments.only,) if arguments.only else aot.PROGRAMS
    estimates = [aot.estimate(config, devices, program) for program in programs]
    print(json.dumps(aot.to_json(estimates, where)) if arguments.json else aot.report(estimates, where))
    return 1 if any(one.fits is False for one in estimates) else 0


def _sweep(arguments: argparse.Namespace, bindings: Sequence[str]) -> int:
    return sweep_verb.run(arguments, _folders(arguments), bindings)


def _report(arguments: argparse.Namespace, bindings: Sequence[str]) -> None:
    if arguments.every is not None and not arguments.watch:
        raise ValueError("--every says how often --watch looks: give --watch with it.")
    every = 10.0 if arguments.every is None else arguments.every
    if not 0 < every < float("inf"):
        raise ValueError(f"--every is {every:g}; it must be a number of seconds above 0.")
    if arguments.watch:
        from dsbs_jax.experiments.report_watch import watch

        print(watch(arguments.root, arguments.output, every))
    else:
        from dsbs_jax.experiments.report import write_report

        print(write_report(arguments.root, arguments.output))


def _bench(arguments: argparse.Namespace, bindings: Sequence[str]) -> None:
    import json

    if arguments.what == "step":
        from dsbs_jax.experiments import bench_step

        files = ("runs/train", "models/t5_1_1_base", "runs/aot", "runs/bench_step")
        with hosts.joined(arguments) as prints:
            measured = bench_step.run(_parse_gin(arguments, bindings, bench_step.StepBenchConfig, *files)())
            if prints:
                print(json.dumps(measured))
        return
    from dsbs_jax.data.locations import find_data_dir
    from dsbs_jax.experiments import bench

    data = "datasets/cqa" if find_data_dir(arguments.data_dir) else "datasets/bestiary"
    files = ("runs/train", data, "models/t5_1_1_small", "runs/bench")
    print(json.dumps(bench.train(_parse_gin(arguments, bindings, bench.BenchConfig, *files)())))
