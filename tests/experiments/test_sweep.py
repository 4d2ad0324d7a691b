"""Sweeps: cells and their names; who runs what, whatever ends a worker."""

import contextlib
import csv
import dataclasses
import io
import json
import pathlib
import re
import signal
import subprocess
import sys
from collections.abc import Sequence

import pytest

from dsbs_jax import cli, gin_config, schema
from dsbs_jax.data.folders import held
from dsbs_jax.data.prepare import StoreRequest
from dsbs_jax.data.vocabulary import Vocabulary
from dsbs_jax.experiments import results, sweep
from dsbs_jax.models.config import T5Config
from dsbs_jax.sharding.mesh import MeshConfig
from dsbs_jax.teacher.filters import Filter
from dsbs_jax.teacher.noise import RationaleNoise
from dsbs_jax.training import loop
from dsbs_jax.training.config import TrainConfig
from dsbs_jax.training.preemption import Preempted

MODEL = T5Config(d_model=8, d_kv=2, d_ff=8, num_layers=1, num_decoder_layers=1, num_heads=4)
CONFIG = TrainConfig("", StoreRequest("bestiary", Vocabulary("v")), schema.make_method("standard"), MODEL)


def build(files, bindings) -> tuple[TrainConfig, str]:
    """As gin would, from the axes alone."""
    said = dict(binding.split("=", 1) for binding in bindings)
    method = schema.make_method(
        files[2],
        label_source=said["LABEL_SOURCE"].strip("'"),
        rationale_weight=float(said.get("RATIONALE_WEIGHT", 1)),
    )
    config = dataclasses.replace(
        CONFIG,
        model_dir=said["MODEL_DIR"].strip("'"),
        data=dataclasses.replace(
            CONFIG.data,
            name=files[0],
            teacher=said.get("TEACHER", "'llm'").strip("'"),
            teacher_filter=Filter(min_agreement=1) if "variants/sure.gin" in files else None,
            rationale_noise=RationaleNoise(float(said.get("WRONG_RATIONALES", 0))),
        ),
        method=method,
        fraction=float(said["FRACTION"]),
        seed=int(said["RANDOM_SEED"]),
    )
    return config, f"of {said['RANDOM_SEED']}"


def sweep_of(root: pathlib.Path, **axes) -> sweep.SweepConfig:
    given = {"methods": ("standard",), "seeds": (0, 1)} | axes
    return sweep.SweepConfig("s", ("bestiary",), ("models/tiny.gin",), root=str(root), **given)


def test_cells_are_the_product_and_those_that_coincide_are_one(tmp_path):
    config = sweep_of(
        tmp_path,
        methods=("standard", "step_by_step"),
        label_sources=("gold", "teacher"),
        teachers=("a", "b"),
        fractions=(0.5, 1),
        rationale_weights=(0.5, 2.0),
    )
    cells = sweep.expand(config, build)
    assert len(list(config.points())) == 64
    # Lambda means nothing to standard training, and the teacher nothing to it with gold labels.
    points = [
        (row.method, row.label_source, row.teacher, row.rationale_weight, row.fraction, row.seed)
        for row in (cell.row() for cell in cells)
    ]
    standard = {("standard", *axes, None) for axes in (("gold", None), ("teacher", "a"), ("teacher", "b"))}
    full = {("step_by_step", s, t, w) for s in ("gold", "teacher") for t in "ab" for w in (0.5, 2.0)}
    assert len(points) == len(set(points)) == 44
    assert set(points) == {(*axes, f, seed) for axes in standard | full for f in (0.5, 1.0) for seed in (0, 1)}
    assert {cell.model for cell in cells} == {"tiny"}
    assert {cell.folder.parent for cell in cells} == {tmp_path / "runs"}


def test_noise_and_variants_are_axes_where_they_mean_something(tmp_path):
    noisy = sweep_of(tmp_path, methods=("standard", "step_by_step"), wrong_rationales=(0, 0.5), seeds=(0,))
    rows = [cell.row() for cell in sweep.expand(noisy, build)]
    assert [(row.method, row.wrong_rationales) for row in rows] == [
        *(("standard", 0.0), ("step_by_step", 0.0), ("step_by_step", 0.5))
    ]
    assert "0.5 of rationales wrong" in sweep.describe(rows[-1])
    cells = sweep.expand(sweep_of(tmp_path, variants=("", "variants/sure.gin"), seeds=(0,)), build)
    assert [(cell.row().variant, cell.files[3:]) for cell in cells] == [("", ("",)), ("sure", ("variants/sure.gin",))]


def test_ids_are_of_the_content_alone(tmp_path):
    small = {cell.id for cell in sweep.expand(sweep_of(tmp_path), build)}
    grown = [cell.id for cell in sweep.expand(sweep_of(tmp_path / "b", seeds=(2, 0, 1), fractions=(0.5, 1)), build)]
    assert len(small) == 2
    assert len(set(grown)) == 6
    assert small < set(grown)
    elsewhere = {"model_dir": "x", "store_root": "y", "mesh": MeshConfig(preset="fsdp"), "eval_batch_size": 8}
    vocabulary = dataclasses.replace(CONFIG.data, vocabulary=Vocabulary("elsewhere"), data_dir="z")
    assert sweep.cell_id(dataclasses.replace(CONFIG, **elsewhere, data=vocabulary)) == sweep.cell_id(CONFIG)
    assert sweep.cell_id(dataclasses.replace(CONFIG, fraction=1)) == sweep.cell_id(CONFIG)
    for change in ({"steps": 9}, {"optimizer": dataclasses.replace(CONFIG.optimizer, learning_rate=1e-3)}):
        assert sweep.cell_id(dataclasses.replace(CONFIG, **change)) != sweep.cell_id(CONFIG)


@pytest.mark.parametrize("axes", [{"seeds": 4}, {"seeds": ()}, {"fractions": (1.0, 1.0)}, {"methods": "standard"}])
def test_axes_are_tuples_of_different_values(tmp_path, axes):
    with pytest.raises(ValueError, match=next(iter(axes))):
        sweep_of(tmp_path, **axes)


@pytest.fixture
def trained(monkeypatch) -> list[int]:
    """Seeds of the runs that were begun, in order. Training is a stand-in: seed 1 fails while `trained[0]` is -1."""
    begun: list[int] = [-1]

    def train(config: TrainConfig, operative_config: str) -> None:
        begun.append(config.seed)
        assert operative_config == f"of {config.seed}"
        assert results.is_held(pathlib.Path(config.model_dir))
        if config.seed == 1 and begun[0] == -1:
            raise ValueError("No\nmemory.")
        if config.seed == 3:
            raise Preempted(5, config.model_dir)
        result = {"test_accuracy": 0.5, "seconds": 60.0, "steps": 1, "selected_step": 1}
        pathlib.Path(config.model_dir, "summary.json").write_text(json.dumps({"result": result}))

    monkeypatch.setattr(loop, "train", train)
    return begun


def test_every_cell_runs_once_and_failed_ones_when_they_are_asked_to(tmp_path, trained):
    cells = sweep.expand(sweep_of(tmp_path, seeds=(0, 1, 2)), build)
    with held_cell(cells[2]):
        sweep.work(cells, build)
        assert [cell.row().status for cell in cells] == ["finished", "failed", "running"]
        text = sweep.status([cell.row() for cell in cells])
    assert trained == [-1, 0, 1]
    assert "3 cells: 1 finished, 1 failed, 1 running, 0 waiting." in text
    assert "seed 1: failed: No memory." in text
    assert "About 1.0 minutes left: 1 cells, 60 s each" in text
    # The worker of the third is gone: it is free again. What is finished or failed stays as it is.
    sweep.work(cells, build)
    assert trained == [-1, 0, 1, 2]
    assert "No\\nmemory" in (cells[1].folder / results.ERROR).read_text()
    trained[0] = 0
    assert sweep.forget_errors(cells) == 1
    sweep.work(cells, build)
    assert trained == [0, 0, 1, 2, 1]
    assert [row.status for row in results.read_rows(tmp_path)] == ["finished"] * 3


def test_a_plan_is_asked_again_after_each_cell_and_what_others_run_is_waited_for(tmp_path, trained):
    cells = sweep.expand(sweep_of(tmp_path, seeds=(0, 2, 4)), build)
    asked = []
    with contextlib.ExitStack() as other:
        other.enter_context(held_cell(cells[0]))

        def plan(rows: Sequence[results.Row]) -> set[str]:
            asked.append([row.status for row in rows])
            if len(asked) == 4:
                # The other worker is killed: its cell is free.
                other.close()
            return {row.cell for row in rows[:2] if row.status != "finished"}

        sweep.work_by_plan(cells, build, plan, pause=0.01)
    first, then, end = ["running", "waiting", "waiting"], ["running", "finished", "waiting"], ["finished", "finished"]
    assert asked == [first, then, then, then, [*end, "waiting"]]
    assert trained == [-1, 2, 0]


def test_a_preempted_cell_is_free_again(tmp_path, trained):
    cells = sweep.expand(sweep_of(tmp_path, seeds=(0, 3)), build)
    with pytest.raises(Preempted):
        sweep.work(cells, build)
    assert [cell.row().status for cell in cells] == ["finished", "waiting"]


def held_cell(cell: sweep.Cell):
    cell.folder.mkdir(parents=True)
    return held(cell.folder / results.CLAIM)


@pytest.mark.parametrize("recipe", [name for name in gin_config.names() if name.startswith("recipes/")])
def test_every_recipe_expands(recipe, tmp_path, capsys):
    # Four seeds differ in nothing but the seed: one of them is enough here.
    words = ["--gin.SweepConfig.seeds=(0,)", "--gin.VOCABULARY='bestiary'", "--output", str(tmp_path)]
    assert cli.main(["sweep", recipe, "--list", *words]) == 0
    *cells, count = capsys.readouterr().out.splitlines()
    # Points that coincide are named.
    assert count.startswith(f"{len(cells)} cells")
    assert len(cells) >= 2
    # A search adds what is to become of them.
    assert all("seed 0: waiting" in cell for cell in cells)
    assert not any(tmp_path.iterdir())


def test_results_come_as_csv_and_as_answers_of_sqlite(tmp_path, capsys):
    words = ["sweep", "recipes/smoke", "--output", str(tmp_path)]
    assert cli.main([*words, "--csv", "-"]) == 0
    cells = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [cell["status"] for cell in cells] == ["waiting"] * 8
    assert cli.main([*words, "--sql", "SELECT method, count(*) AS cells FROM runs GROUP BY 1"]) == 0
    assert capsys.readouterr().out.splitlines() == ["method\tcells", "standard\t4", "step_by_step\t4"]
    assert cli.main([*words, "--csv", str(tmp_path / "cells.csv"), "--status"]) == 0
    assert capsys.readouterr().out == "8 cells: 0 finished, 0 failed, 0 running, 8 waiting.\n"
    assert len((tmp_path / "cells.csv").read_text().splitlines()) == 9


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((), "What about the sweep?"),
        (("--list", "--gin.RANDOM_SEED=3"), "give --gin.SweepConfig.seeds="),
        (("--run", "--workers", "0"), "--workers is 0"),
        (("--list", "--gin.FRACTON=1"), "Did you mean FRACTION?"),
        (("--list", "--gin.SweepConfig.methods=('methods/standart',)"), "Did you mean methods/standard.gin?"),
    ],
)
def test_mistakes_end_in_one_sentence(words, sentence, refused):
    refused("recipes/smoke", *words, sentence=sentence)


def test_cells_that_would_be_taken_for_one_another_are_refused(refused, tmp_path):
    sizes = "the same students: what the sweep's file or a flag sets of the model"
    refused("recipes/fig6_bestiary", "--list", "--gin_file", "runs/from_scratch", sentence=sizes)
    own = tmp_path / "tiny.gin"
    own.write_text("include 'models/tiny.gin'\nT5Config.num_layers = 3\n")
    stems = f"--gin.SweepConfig.models=('models/tiny', '{own}')"
    refused("recipes/smoke", "--list", stems, sentence="no report tells apart (model.num_layers (2 there, 3 here))")


@pytest.mark.slow
def test_workers_share_a_folder_and_a_killed_ones_cell_is_taken_over(dsbs, environment, tmp_path):
    """Real processes: what a live worker has is left to it, what a killed one had goes on where it stopped."""
    root, compiled = tmp_path / "sweep", tmp_path / "compiled"
    words = ["recipes/smoke", "--output", str(root), "--gin.SweepConfig.methods=('methods/step_by_step',)"]
    words += ["--gin.SweepConfig.fractions=(1.0,)", "--gin.TRAIN_STEPS=15", "--run"]
    kept = {"JAX_COMPILATION_CACHE_DIR": str(compiled), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    first = dsbs("sweep", *words, "--gin.SweepConfig.seeds=(0,)", env=kept)
    assert first.returncode == 0, first.stderr
    steps = set(compiled.rglob("jit_step-*-cache"))
    assert len(steps) == 1

    words.append("--gin.SweepConfig.seeds=(0, 1, 2)")
    command = [sys.executable, "-m", "dsbs_jax", "sweep", *words]
    worker = subprocess.Popen(command, env=environment | kept, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    try:
        assert worker.stderr is not None
        # Saving after step 6 waited until what was saved after step 3 was on disk.
        assert any(line.startswith("step 9/15") for line in worker.stderr)
        # Stopped, it is alive and holds its lock.
        worker.send_signal(signal.SIGSTOP)
        other = dsbs("sweep", *words, env=kept)
        assert other.returncode == 0, other.stderr
        assert _finished(other.stderr) == [("2", "2")]
        assert "3 cells: 2 finished, 0 failed, 1 running, 0 waiting." in other.stdout
    finally:
        worker.kill()
        worker.communicate()
    # A cell of another seed, of the same packed shape, finds its step compiled.
    assert set(compiled.rglob("jit_step-*-cache")) == steps

    # Of two more workers one takes over, and the other finds nothing.
    last = dsbs("sweep", *words, "--workers", "2", "--sql", "SELECT count(*) FROM runs", env=kept)
    assert last.returncode == 0, last.stderr
    assert "3 cells: 3 finished, 0 failed, 0 running, 0 waiting." in last.stdout
    assert last.stdout.splitlines()[-2:] == ["count(*)", "3"]
    logs = "".join(log.read_text() for log in (root / "logs").iterdir())
    assert _finished(logs) == [("3", "1")]
    # Who started them hears of it.
    assert _finished(last.stderr) == [("3", "1")]
    assert len(re.findall(r"^Going on after step [369]\.$", logs, flags=re.MULTILINE)) == 1
    rows = results.read_rows(root)
    assert [(row.seed, row.status, row.steps) for row in rows] == [(seed, "finished", 15) for seed in (0, 1, 2)]
    assert all(row.tokens and row.device == "cpu" and row.num_train_examples == 1152 for row in rows)
    # The same examples in the same order for every seed: they can be paired.
    predictions = [pathlib.Path(row.folder, "predictions_test.jsonl").read_text().splitlines() for row in rows]
    ids = [[json.loads(line)["id"] for line in lines] for lines in predictions]
    assert len(ids[0]) == 288
    assert all(other == ids[0] for other in ids)


def _finished(told: str) -> list[tuple[str, str]]:
    """How many of the cells were then done, and the seed, of those that a worker said it finished."""
    return sorted(re.findall(r"^\[(\d)/3\] .* seed (\d): finished, test accuracy", told, flags=re.MULTILINE))
