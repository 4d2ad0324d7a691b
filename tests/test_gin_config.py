"""The gin edge: found by name, refused in one sentence, and the printed configuration builds the same run again."""

import dataclasses
import pathlib
import re
import subprocess
import sys

import pytest

from dsbs_jax import gin_config
from dsbs_jax.data.labelling import LabelConfig
from dsbs_jax.models.config import SIZES, T5Config, t5_config
from dsbs_jax.training.config import MAY_CHANGE, TrainConfig, changed_fields

BASE = ("runs/train", "datasets/bestiary", "models/tiny")
MODEL_DIR = "MODEL_DIR='somewhere'"


def make(files=BASE, bindings=(MODEL_DIR,)) -> TrainConfig:
    return gin_config.parse(files, bindings, TrainConfig)()


def test_files_are_found_by_name_with_and_without_ending_and_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expected = gin_config.root() / "datasets" / "cqa.gin"
    for name in ("datasets/cqa", "datasets/cqa.gin", "gin/datasets/cqa.gin", str(expected)):
        assert gin_config.find(name).resolve() == expected.resolve()
    own = tmp_path / "mine.gin"
    own.write_text("TRAIN_STEPS = 7\n")
    assert make((*BASE, "mine")).steps == 7


def test_later_files_and_bindings_win(tmp_path):
    own = tmp_path / "own.gin"
    own.write_text("TRAIN_STEPS = 7\nBATCH_SIZE = 8\n")
    config = make((*BASE, str(own)), (MODEL_DIR, "BATCH_SIZE=16"))
    assert (config.steps, config.batch_size) == (7, 16)


def test_includes_are_followed(tmp_path):
    own = tmp_path / "own.gin"
    own.write_text("include 'datasets/bestiary.gin'\ninclude 'models/tiny.gin'\nTRAIN_STEPS = 3\n")
    assert make(("runs/train", str(own))).steps == 3


def test_a_dataset_that_comes_with_the_project_takes_the_place_of_ones_own(tmp_path):
    own = tmp_path / "own.gin"
    own.write_text("include 'datasets/custom.gin'\nCustomDataset.name = 'own'\nCustomDataset.train = 'x.jsonl'\n")
    assert make((*BASE, str(own))).data.name == "own"
    for name in gin_config.names():
        if name.startswith("datasets/") and name != "datasets/custom.gin":
            config = make((*BASE, str(own), name), (MODEL_DIR, "VOCABULARY='bestiary'"))
            assert (config.data.name, config.data.custom) == (pathlib.Path(name).stem, None)


@pytest.mark.parametrize(
    ("files", "bindings", "sentence"),
    [
        (("runs/train", "datasets/cqaa"), (), r"no gin file 'datasets/cqaa'.*Did you mean datasets/cqa\.gin\?"),
        (
            BASE,
            ("TRAIN_STPES=5",),
            r"--gin\.TRAIN_STPES=5: nothing reads the macro TRAIN_STPES\. Did you mean TRAIN_STEPS",
        ),
        (BASE, ("T5Config.d_modl=5",), r"T5Config has no parameter 'd_modl'\. Did you mean d_model\?"),
        (BASE, ("T5Confg.d_model=5",), r"nothing called T5Confg to configure\. Did you mean T5Config\?"),
        (BASE, ("TRAIN_STEPS==",), r"^--gin\.TRAIN_STEPS==: line 1: "),
        (BASE, ("TRAIN_STEPS=@nothing()",), r"nothing"),
        (BASE, (MODEL_DIR, "TRAIN_STEPS=0"), r"steps is 0; it must be a whole number of at least 1"),
        (BASE, (MODEL_DIR, "TRAIN_STEPS=1e4"), r"steps is 10000\.0; it must be a whole number"),
        (BASE, (MODEL_DIR, "METHOD='stepbystep'"), r"There is no method 'stepbystep'"),
        (BASE, (MODEL_DIR, "FRACTION=12.5"), r"fraction is 12\.5; it must lie in \(0, 1\]"),
        (BASE, (), r"Values are missing: give --gin\.MODEL_DIR=\.\.\., or"),
        (("runs/train", "models/tiny"), (MODEL_DIR,), r"give --gin\.MIXTURE_OR_TASK_NAME="),
        (("runs/train", "datasets/bestiary"), (MODEL_DIR,), r"give --gin\.MODEL=\.\.\., or"),
    ],
)
def test_what_does_not_exist_is_refused_in_one_sentence(files, bindings, sentence):
    with pytest.raises(gin_config.ConfigError, match=sentence) as refusal:
        make(files, bindings)
    assert "\n" not in str(refusal.value)


def test_the_operative_config_makes_the_same_run_again(tmp_path):
    config = make((*BASE, "methods/single_task"), (MODEL_DIR, "LEARNING_RATE=0.5", "OptimizerConfig.clip_norm=None"))
    saved = tmp_path / "config.gin"
    saved.write_text(gin_config.operative())
    assert make((str(saved),), ()) == config


def test_every_gin_file_parses():
    needed = {"MIXTURE_OR_TASK_NAME": "'dsbs_bestiary'", "MODEL": "@T5Config()"}
    asked = {"LABELS_DIR": "'labels'", "TEACHER_CLIENT": "@OpenAITeacher()"}
    for name in gin_config.names():
        # A teacher's file is read after the verb's own.
        labels = name.startswith("teachers/") or name == "runs/label.gin"
        before = ["runs/train", "runs/label"] if labels else ["runs/train"]
        given = [f"{macro}={value}" for macro, value in (needed | (asked if labels else {})).items()]
        if name.startswith("teachers/"):
            given = [word for word in given if not word.startswith("TEACHER_CLIENT")]
            given += [f"{macro}='a name'" for macro in _required(gin_config.root() / name)]
        gin_config.parse([*before, name], [MODEL_DIR, *given], LabelConfig if labels else TrainConfig)


def _required(path: pathlib.Path) -> list[str]:
    return re.findall(r"^(\w+) = %gin\.REQUIRED", path.read_text(), flags=re.MULTILINE)


def test_what_a_verb_does_not_build_is_neither_imported_nor_missed(tmp_path):
    own = tmp_path / "own.gin"
    own.write_text("include 'datasets/bestiary.gin'\nTRAIN_STEPS = 3\nTrainConfig.seed = 1\nSweepConfig.seeds = (1,)\n")
    code = f"""
import sys
from dsbs_jax import gin_config
from dsbs_jax.data.labelling import LabelConfig
files = ["runs/train", "runs/label", {str(own)!r}, "teachers/vllm"]
config = gin_config.parse(files, ["LABELS_DIR='x'", "TEACHER_MODEL='a'"], LabelConfig)()
assert config.teacher.model == "a"
assert not {{"jax", "optax", "scipy", "tensorflow"}} & sys.modules.keys(), sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize(("version", "size"), [(version, size) for version in SIZES for size in SIZES[version]])
def test_model_files_hold_the_published_sizes(version, size):
    name = {"v1_0": "t5", "v1_1": "t5_1_1"}[version] + f"_{size}"
    found = gin_config.parse(("runs/train", f"models/{name}"), (), T5Config)()
    # From 3 billion parameters on, the files also say what makes the model fit.
    options = {"dtype": found.dtype, "remat_policy": found.remat_policy}
    assert options == (
        {"dtype": "bfloat16", "remat_policy": "full"}
        if size in ("3b", "11b", "xl", "xxl")
        else {"dtype": "float32", "remat_policy": "none"}
    )
    assert found == t5_config(version, size, **options)


def test_changed_fields_are_named_and_places_may_change():
    config = make()
    before = config.to_json()
    moved = dataclasses.replace(config, model_dir="elsewhere", log_period=1)
    assert changed_fields(before, moved.to_json()) == []
    changed = dataclasses.replace(config, seed=5, optimizer=dataclasses.replace(config.optimizer, learning_rate=1.0))
    assert [field.split()[0] for field in changed_fields(before, changed.to_json())] == [
        "optimizer.learning_rate",
        "seed",
    ]


def test_every_field_that_may_change_exists():
    def names(fields, path=""):
        for name, value in fields.items():
            yield path + name
            if isinstance(value, dict):
                yield from names(value, f"{path}{name}.")

    assert set(names(make().to_json())) >= MAY_CHANGE


def test_verbs_that_train_nothing_read_the_same_method(tmp_path):
    own = tmp_path / "own.gin"
    own.write_text(
        "METHOD_TASKS = @Method()\nMethod.name = 'own'\nMethod.tasks = (@a/TaskFormat(),)\n"
        "a/TaskFormat.name = 'label'\na/TaskFormat.prefix = 'say: '\n"
    )
    config = make((*BASE, str(own)))
    assert [task.prefix for task in config.method.tasks] == ["say: "]
    prepared = gin_config.parse((*BASE, str(own)), (), gin_config.PrepareConfig)()
    assert prepared.store_request() == config.store_request()


def test_root_is_where_the_package_is():
    assert (gin_config.root() / "runs" / "train.gin").is_file()
    assert pathlib.Path(gin_config.root()).name == "gin"
