"""The search for the smallest model and the least data that beat the teacher: its way, its end, and what stops it."""

import dataclasses
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsbs_jax import cli
from dsbs_jax.experiments import search
from dsbs_jax.experiments.results import Row, read_rows
from dsbs_jax.models.config import T5Config

FRACTIONS = (0.25, 0.5, 0.75, 1.0)
TEACHER = {"validation": {"rows": 20, "right": 14}, "test": {"rows": 10, "right": 1}}


def row(model: int, fraction: float, seed: int = 0, validation: float | None = None, **changes) -> Row:
    """A cell of the model of that size; finished if it has an accuracy."""
    config = T5Config(d_model=8 * (model + 1), d_kv=2, d_ff=8, num_layers=1, num_decoder_layers=1, num_heads=4)
    values = dict.fromkeys((field.name for field in dataclasses.fields(Row)), None) | {
        "cell": f"{changes.get('method', 'standard')}/{model}/{fraction}/{seed}",
        "status": "waiting" if validation is None else "finished",
        "dataset": "cqa",
        "method": "standard",
        "label_source": "gold",
        "fraction": fraction,
        "model": f"model{model}",
        "seed": seed,
        "validation_accuracy": validation,
        "test_accuracy": validation,
        "teacher_accuracy": {} if validation is None else TEACHER,
        "wrong_rationales": 0.0,
        "missing_rationales": 0.0,
        "variant": "",
        "config": {"model": dataclasses.asdict(config)},
    }
    return Row(**(values | changes))


def grid(table: dict[tuple[int, float], float], models: int = 2, **changes) -> list[Row]:
    """One seed a cell; those in the table are finished. The largest model comes first."""
    points = [(model, fraction) for model in reversed(range(models)) for fraction in FRACTIONS]
    return [row(*point, validation=table.get(point), **changes) for point in points]


def state(rows: list[Row]) -> search.Search:
    (found,) = search.searches(rows)
    return found


def found(state: search.Search) -> list[tuple[str, float]]:
    return [(group.model, group.fraction) for group in state.found]


@st.composite
def tables(draw) -> list[list[float]]:
    """Accuracies by model and fraction that more data never lowers; 0.7 is the teacher's."""
    fractions = draw(st.integers(1, 9))
    accuracies = st.lists(st.sampled_from((0.1, 0.7, 0.8, 0.9)), min_size=fractions, max_size=fractions)
    return [sorted(each) for each in draw(st.lists(accuracies, min_size=1, max_size=4))]


@given(tables())
def test_it_finds_what_running_everything_finds(table):
    rows = [
        row(model, (index + 1) / 16, seed)
        for model, each in enumerate(table)
        for index in range(len(each))
        for seed in (0, 1)
    ]
    cells = {each.cell: each for each in rows}
    ran = []
    while planned := search.planned(list(cells.values())):
        assert planned.isdisjoint(ran)
        ran += planned
        for cell in planned:
            _, model, fraction, seed = cell.split("/")
            # The mean over the seeds is the table's.
            accuracy = table[int(model)][int(float(fraction) * 16) - 1] + (0.05 if seed == "1" else -0.05)
            cells[cell] = row(int(model), float(fraction), int(seed), accuracy)
    least, frontier = math.inf, []
    for model, each in enumerate(table):
        wins = [index for index, accuracy in enumerate(each) if accuracy > 0.7]
        if wins and wins[0] < least:
            least = wins[0]
            frontier.append((f"model{model}", (least + 1) / 16))
    end = state(list(cells.values()))
    assert found(end) == frontier
    assert end.over
    # One group for the most data and a bisection of the rest, for each model; both seeds.
    assert len(ran) <= 2 * len(table) * (1 + math.ceil(math.log2(len(table[0]))))
    assert {each.cell for each in rows} == {*ran, *end.skipped}


def test_a_larger_model_is_tried_with_less_data_only_and_every_waiting_cell_says_what_becomes_of_it():
    rows = grid({(0, 1.0): 0.8, (0, 0.5): 0.6, (0, 0.75): 0.8}, models=3)
    now = state(rows)
    assert found(now) == [("model0", 0.75)]
    # 0.25 of model0 cannot win where 0.5 does not; model1 begins below what model0 needs.
    assert now.planned == ("standard/1/0.5/0",)
    notes = {each.cell: search.note([now], each) for each in rows}
    assert notes["standard/0/1.0/0"] == ""
    assert notes["standard/0/0.25/0"] == ", skipped: model0 does not beat the teacher with 0.5"
    assert notes["standard/2/1.0/0"] == notes["standard/1/0.75/0"] == ", skipped: model0 beats the teacher with 0.75"
    assert notes["standard/1/0.5/0"] == ", planned"
    assert notes["standard/1/0.25/0"] == notes["standard/2/0.5/0"] == ", not yet decided"
    told = search.report([now])
    assert "the teacher is right in 0.700 of 20 validation rows." in told
    assert "smallest model that beats it: model0 with 0.75: validation 0.800, test 0.800 (1 seed)" in told
    assert "least data that beats it so far: model0 with 0.75" in told
    assert told.endswith(search.RULE)

    end = state(grid({(0, 1.0): 0.8, (0, 0.5): 0.6, (0, 0.75): 0.8, (1, 0.5): 0.7, (2, 0.5): 0.9, (2, 0.25): 0.9}, 3))
    assert found(end) == [("model0", 0.75), ("model2", 0.25)]
    assert end.over
    assert "least data that beats it: model2 with 0.25" in search.report([end])


def test_validation_decides_and_test_only_where_the_teacher_answered_no_validation_row():
    lucky = row(0, 1.0, validation=0.1, test_accuracy=0.9)
    assert not state([lucky]).found
    only_test = {
        "train": {"rows": 9, "right": 0},
        "test": {"rows": 5, "right": 4},
    }
    fallen_back = state([dataclasses.replace(lucky, teacher_accuracy=only_test)])
    assert found(fallen_back) == [("model0", 1.0)]
    assert "students are chosen on test" in search.report([fallen_back])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"teacher_accuracy": {}}, "no run tells how often the teacher is right"),
        ({"validation_accuracy": None}, "model0 with 1 has no validation accuracy"),
        (
            {"status": "failed", "validation_accuracy": None},
            "standard/0/1.0/0 failed; mend what its error says and give --retry-failed",
        ),
    ],
)
def test_what_cannot_be_decided_stops_its_search_and_no_other(changes, sentence):
    other = row(0, 1.0, method="step_by_step", validation=0.6, dataset="svamp")
    rows = [row(0, 1.0, 0, 0.8, **changes), row(0, 1.0, 1, 0.8, teacher_accuracy={}), row(1, 1.0), other]
    stopped, others = search.searches([*rows, row(1, 1.0, method="step_by_step", dataset="svamp")])
    assert stopped.planned == ()
    assert not stopped.over
    assert not stopped.found
    assert sentence in search.report([stopped, others])
    assert others.planned == ("step_by_step/1/1.0/0",)


def test_any_run_on_the_dataset_tells_the_teachers_accuracy():
    untold = row(0, 1.0, validation=0.8, teacher_accuracy={})
    told = row(0, 1.0, validation=0.8, method="step_by_step", teacher="llm")
    assert [each.over for each in search.searches([untold, told])] == [True, True]


def test_finished_cells_that_speak_against_the_assumption_are_named():
    # All of them had run before somebody asked for a search.
    rows = grid(
        {(0, 1.0): 0.6, (0, 0.75): 0.8, (0, 0.5): 0.6, (0, 0.25): 0.5, (1, 1.0): 0.9, (1, 0.5): 0.6, (1, 0.75): 0.8}
    )
    now = state(rows)
    assert found(now) == [("model1", 0.75)]
    assert "more data did hurt: model0 beats the teacher with 0.75 and not with 1" in search.report([now])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--gin.SweepConfig.search='best'",), "SweepConfig.search is 'best'; it must be None or 'beat_teacher'."),
        (("--gin.SweepConfig.teachers=('errs_18', 'errs_50')",), "a search has one teacher to beat"),
        (("--gin.SweepConfig.teachers=(None,)",), "datasets/bestiary has no teacher: set TEACHER"),
    ],
)
def test_mistakes_end_in_one_sentence(words, sentence, refused):
    refused("recipes/fig8_bestiary", "--run", *words, sentence=sentence)


@pytest.mark.slow
def test_two_workers_run_what_the_search_wants_and_nothing_else(dsbs, tmp_path):
    root = tmp_path / "sweep"
    words = ["recipes/fig8_bestiary", "--output", root, "--gin.TRAIN_STEPS=6", "--gin.EVAL_PERIOD=3"]
    axes = {"methods": ("methods/standard",), "models": ("models/tiny", "models/micro"), "seeds": (0, 1)}
    words += [f"--gin.SweepConfig.{axis}={values!r}" for axis, values in axes.items()]
    ended = dsbs("sweep", *words, "--run", "--workers", "2", timeout=500)
    assert ended.returncode == 0, ended.stderr
    # Six steps do not beat anybody: each model is tried with all data, and less is not.
    assert "16 cells: 4 finished, 0 failed, 0 running, 0 waiting, 12 skipped." in ended.stdout
    assert "bestiary, standard finetuning: the teacher is right in 0.823 of 288 validation rows." in ended.stdout
    assert "  no model beats it\n  over\n" in ended.stdout
    rows = [each for each in read_rows(root) if each.status == "finished"]
    assert [(each.model, each.fraction, each.seed) for each in rows] == [
        (model, 1.0, seed) for model in ("micro", "tiny") for seed in (0, 1)
    ]
    logs = "".join(log.read_text() for log in (root / "logs").iterdir())
    ran = re.findall(r"^\[\d+/16\] (\w+), .* finished", logs, flags=re.MULTILINE)
    assert sorted(ran) == sorted(each.cell for each in rows)


@pytest.mark.slow
def test_nothing_begins_where_there_is_no_accuracy_to_beat(tmp_path, store_root, monkeypatch, capsys):
    monkeypatch.setenv("DSBS_STORE_DIR", str(store_root))
    (tmp_path / "rows.jsonl").write_text('{"question": "What does a grolbek eat?", "answer": "moss"}\n' * 20)
    own = tmp_path / "own.gin"
    own.write_text(
        "include 'datasets/bestiary.gin'\ninclude 'datasets/custom.gin'\nCustomDataset.name = 'own'\n"
        "CustomDataset.input = '{question}'\nCustomDataset.label = '{answer}'\nCustomDataset.train = 'rows.jsonl'\n"
    )
    words = ["recipes/fig8_bestiary", "--run", "--output", tmp_path / "sweep", "--data_dir", tmp_path]
    axes = {"datasets": (str(own),), "methods": ("methods/standard",)}
    words += [f"--gin.SweepConfig.{axis}={values!r}" for axis, values in axes.items()]
    # Nor does a job wait in a queue to find that out.
    for where in ([], ["--submit", "local"]):
        assert cli.main(["sweep", *map(str, words), *where]) == 1
        assert "of own, the teacher 'errs_18' answered no validation or test row" in capsys.readouterr().err
        assert not (tmp_path / "sweep").exists()
