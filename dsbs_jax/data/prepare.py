"""Asking for a token store: found by what its rows depend on, or made by a worker process.

TensorFlow and SeqIO live in that worker alone; the process that asks imports neither.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import importlib.machinery
import json
import logging
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from dsbs_jax.data.custom import CustomDataset
from dsbs_jax.data.dataset import SPLITS
from dsbs_jax.data.find import OWN_TASKS, own_name
from dsbs_jax.data.store import STORE_VERSION
from dsbs_jax.data.vocabulary import Vocabulary
from dsbs_jax.schema import LabelSource, Method, TaskFormat
from dsbs_jax.teacher.filters import Filter
from dsbs_jax.teacher.labelled import labelled_file
from dsbs_jax.teacher.noise import RationaleNoise

logger = logging.getLogger(__name__)

WORKER = "dsbs_jax.data.prepare_worker"
# Lines of the worker's standard error that begin so are for people; the rest is TensorFlow's chatter.
PROGRESS = "prepare: "
# The modules of this package that decide what stands in a row.
_SOURCES = (
    "schema.py",
    "data/accounts.py",
    "data/custom.py",
    "data/dataset.py",
    "data/find.py",
    "data/prepare_worker.py",
    "data/seqio_tasks.py",
    "data/sources.py",
    "data/store.py",
    "data/vocabulary.py",
    "metrics/accuracy.py",
    "metrics/equation.py",
    "teacher/agreement.py",
    "teacher/answers.py",
    "teacher/filters.py",
    "teacher/labelled.py",
    "teacher/noise.py",
    "teacher/parsers.py",
)


class PrepareError(ValueError):
    """A store that could not be made, in one sentence."""


@dataclasses.dataclass(frozen=True)
class StoreRequest:
    """Everything that decides what stands in a token store.

    Attributes:
      name: the dataset; or any SeqIO task or mixture that importing `module` registers. A custom dataset's own name.
      vocabulary: turns text into ids.
      tasks: the method's tasks, in the order of the per-token task ids. Their weights do not matter here. Not read for
        foreign SeqIO tasks.
      label_source: whose labels are targets.
      feature_lengths: longest (inputs, targets) in tokens, EOS included.
      data_dir: the folder that holds one folder per dataset; None for generated or downloaded ones.
      module: the Python module whose import registers `name`.
      custom: a dataset described by files and columns instead of a module.
      dataset_arguments: (name, value) pairs for the dataset's reader.
      teacher: the folder of the teacher's answers inside the dataset's, a folder of `dsbs label`, or a generated
        dataset's own name for one; None for none.
      teacher_filter: which rows of train are kept for what the teacher said of them; None for all.
      rationale_noise: which rationales of train are spoiled on purpose.
      holdout_seed: which rows of train become the validation split where there is none.
    """

    name: str
    vocabulary: Vocabulary
    tasks: tuple[TaskFormat, ...] = ()
    label_source: LabelSource = "gold"
    feature_lengths: tuple[int, int] = (1024, 256)
    data_dir: str | None = None
    module: str = OWN_TASKS
    custom: CustomDataset | None = None
    dataset_arguments: tuple[tuple[str, int | float | str], ...] = ()
    teacher: str | None = "llm"
    teacher_filter: Filter | None = None
    rationale_noise: RationaleNoise = RationaleNoise()
    holdout_seed: int = 0

    def __post_init__(self) -> None:
        if self.custom is not None:
            object.__setattr__(self, "name", self.custom.name)
        elif self.module == OWN_TASKS:
            object.__setattr__(self, "name", own_name(self.name))
        if len(self.feature_lengths) != 2 or min(self.feature_lengths) < 2:
            raise ValueError(
                f"feature_lengths is {self.feature_lengths}; it must be (inputs, targets), each at least 2 tokens."
            )

    def for_method(self, method: Method) -> StoreRequest:
        """The same data, read as the method's tasks."""
        return dataclasses.replace(self, tasks=method.tasks, label_source=method.label_source)

    def to_json(self) -> dict[str, Any]:
        """The request as JSON values; `from_json` reads it back."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> StoreRequest:
        """The inverse of `to_json`."""
        custom, teacher_filter = fields["custom"], fields["teacher_filter"]
        return cls(
            **fields
            | {
                "vocabulary": Vocabulary(**fields["vocabulary"]),
                "tasks": tuple(TaskFormat(**task) for task in fields["tasks"]),
                "feature_lengths": tuple(fields["feature_lengths"]),
                "dataset_arguments": tuple((name, value) for name, value in fields["dataset_arguments"]),
                "custom": None if custom is None else CustomDataset.from_json(custom),
                "teacher_filter": None if teacher_filter is None else Filter(**teacher_filter),
                "rationale_noise": RationaleNoise(**fields["rationale_noise"]),
            }
        )

    def key(self) -> str:
        """The content key: equal for requests whose rows are equal, wherever their files lie.

        Raises:
          FileNotFoundError, ValueError: no such vocabulary, or no such module.
        """
        content = self.to_json() | {
            "vocabulary": self.vocabulary.fingerprint,
            "tasks": [(task.name, task.prefix, task.input, task.target) for task in self.tasks],
            "data_dir": None,
            "files": sorted(_digest(name, path) for name, path in self._files()),
            "sources": sorted(_digest(name, path) for name, path in _sources(self.module)),
            "version": STORE_VERSION,
        }
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        return f"{re.sub(r'[^A-Za-z0-9_-]+', '_', self.name)}-{digest[:24]}"

    def _files(self) -> Iterator[tuple[str, pathlib.Path]]:
        """(name, path) of every data file: the custom dataset's, and what is named, as a path or below `data_dir`, by
        the dataset, by its arguments or by their values. Rather too many than too few: too many only make anew."""
        # A teacher may have a folder beside the datasets' (`teacher/answers.py`).
        words = [self.name, *(str(word) for argument in self.dataset_arguments for word in argument)]
        named = [*words, *(f"{self.teacher}/{word}" for word in words if word)]
        if self.custom is not None:
            for path in self.custom.input_files(self.data_dir, self.teacher):
                yield path.name, path
            named = [self.custom.train, self.custom.validation, self.custom.test]
        if self.teacher and (folder := pathlib.Path(self.teacher)).is_dir():
            labelled = (labelled_file(folder, split) for split in SPLITS)
            yield from ((path.name, path) for path in labelled if path is not None)
        for name in {name.removeprefix("disk:") for name in named if name}:
            if self.data_dir is not None or os.path.isabs(name):
                yield from _below(pathlib.Path(self.data_dir or "", name), name)


def ensure_store(request: StoreRequest, root: str | os.PathLike[str] | None = None) -> pathlib.Path:
    """The folder of the finished store for `request`, made now if it does not exist.

    Args:
      request: what should be in it.
      root: the folder of all stores; None takes `default_store_root()`.

    Raises:
      PrepareError: it could not be made; says why in one sentence.
      FileNotFoundError, ValueError: no such vocabulary, or no such module.
    """
    root = pathlib.Path(root) if root is not None else default_store_root()
    key = request.key()
    path = root / key
    if not (path / "meta.json").is_file():
        # A store appears whole, so this is not one in the making.
        if path.is_dir() and any(path.iterdir()):
            raise PrepareError(f"{path} is no token store: its meta.json is missing. Remove the folder.")
        logger.info("Preparing the token store of %s in %s.", request.name, path)
        _run_worker(json.dumps({"request": request.to_json(), "root": str(root), "key": key}))
        if not (path / "meta.json").is_file():
            raise PrepareError(f"{WORKER} ended without an error, but there is no token store in {path}.")
    return path


def read_job(text: str) -> tuple[StoreRequest, pathlib.Path, str]:
    """(request, root, key): what the worker finds on its standard input."""
    job = json.loads(text)
    return StoreRequest.from_json(job["request"]), pathlib.Path(job["root"]), job["key"]


def default_store_root() -> pathlib.Path:
    """The environment's DSBS_STORE_DIR, else `~/.cache/dsbs_jax/stores`."""
    return pathlib.Path(os.environ.get("DSBS_STORE_DIR") or "~/.cache/dsbs_jax/stores").expanduser()


def _run_worker(job: str) -> None:
    environment = os.environ | {
        # The accelerators belong to the process that asks.
        "CUDA_VISIBLE_DEVICES": "-1",
        "JAX_PLATFORMS": "cpu",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        # What this process can import, the worker can.
        "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
    }
    last_lines: collections.deque[str] = collections.deque(maxlen=50)
    with subprocess.Popen(
        [sys.executable, "-m", WORKER],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=environment,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        try:
            try:
                process.stdin.write(job)
                process.stdin.close()
            except BrokenPipeError:
                pass  # it died early; its last words follow
            for line in process.stderr:
                if line.strip():
                    last_lines.append(line.strip())
                    is_progress = line.startswith(PROGRESS)
                    logger.log(
                        logging.INFO if is_progress else logging.DEBUG, "%s", line.removeprefix(PROGRESS).strip()
                    )
        except BaseException:
            process.kill()
            raise
    if process.returncode < 0:
        raise PrepareError(
            f"{WORKER} was ended by signal {-process.returncode} (out of memory?): nothing was written, try again."
        )
    if process.returncode:
        last = last_lines[-1] if last_lines else f"{WORKER} ended with status {process.returncode}"
        raise PrepareError(re.sub(r"^[\w.]*(Error|Exception): ", "", last))


def _digest(name: str, path: pathlib.Path) -> tuple[str, str]:
    with path.open("rb") as file:
        return name, hashlib.file_digest(file, "sha256").hexdigest()


def _below(path: pathlib.Path, name: str) -> Iterator[tuple[str, pathlib.Path]]:
    """`path` itself, or every file below it that is not hidden, with names that do not depend on where `path` lies."""
    if path.is_file():
        yield name, path
    for file in path.rglob("*"):
        relative = file.relative_to(path)
        if file.is_file() and not any(part.startswith(".") for part in relative.parts):
            yield f"{name}/{relative.as_posix()}", file


def _sources(module: str) -> Iterator[tuple[str, pathlib.Path]]:
    """(name, path) of the code that shapes rows: this package's, and all of `module`."""
    package = pathlib.Path(__file__).parent.parent
    for name in _SOURCES:
        if (package / name).is_file():
            yield name, package / name
    spec = _find_module(module)
    if spec.submodule_search_locations:
        for location in spec.submodule_search_locations:
            for name, path in _below(pathlib.Path(location), module):
                if path.suffix == ".py":
                    yield name, path
    elif spec.origin and os.path.isfile(spec.origin):
        yield module, pathlib.Path(spec.origin)


def _find_module(module: str) -> importlib.machinery.ModuleSpec:
    """Where `module` would be imported from, found without importing it or its parents: they may import TensorFlow."""
    path: list[str] | None = None
    spec: importlib.machinery.ModuleSpec | None = None
    parts = module.split(".")
    for end in range(1, len(parts) + 1):
        name = ".".join(parts[:end])
        finders = (finder.find_spec(name, path) for finder in sys.meta_path)
        spec = next((found for found in finders if found is not None), None)
        if spec is None and end == 1:
            # As `python -m` does for the worker.
            spec = importlib.machinery.PathFinder.find_spec(name, [os.getcwd()])
        if spec is None:
            raise ValueError(f"There is no Python module {name!r} (in {module!r}); sys.path is {':'.join(sys.path)}.")
        path = list(spec.submodule_search_locations or ())
    assert spec is not None
    return spec
