"""The gin edge: files found by name, bindings checked, one dataclass out. Nothing below this module knows gin.

Everything a run can be told is a field of a frozen dataclass (or an argument of `make_method`); this module lends those
to gin, reads the files, and turns gin's errors into one sentence each.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import importlib
import importlib.util
import inspect
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import gin
from gin import config_parser

import dsbs_jax
from dsbs_jax import schema
from dsbs_jax.data.locations import find_vocabulary_file
from dsbs_jax.data.prepare import StoreRequest
from dsbs_jax.data.vocabulary import Vocabulary

T = TypeVar("T")


def find_vocabulary(path: str | None, extra_ids: int, data_dir: str | None) -> Vocabulary:
    """The vocabulary that a run names, else the one that lies with its data.

    Args:
      path: a SentencePiece model file; or the name of a dataset that comes with a vocabulary of its own.
      extra_ids: sentinels after the pieces.
      data_dir: where to look otherwise.

    Raises:
      FileNotFoundError: nothing is named, and none lies with the data.
    """
    tasks = importlib.util.find_spec("dsbs_jax.tasks")  # Where they lie; nothing is imported.
    packaged = pathlib.Path(((tasks and tasks.submodule_search_locations) or [""])[0]) / f"{path}_spiece.model"
    found = str(packaged) if packaged.is_file() else find_vocabulary_file(path, data_dir)
    if found is None:
        raise FileNotFoundError(
            "Which vocabulary? Set VOCABULARY (or the environment's DSBS_VOCABULARY) to T5's spiece.model, or put it "
            "as vocab/spiece.model into the data folder."
        )
    return Vocabulary(found, extra_ids)


def feature_lengths(lengths: Mapping[str, int]) -> tuple[int, int]:
    """T5X's TASK_FEATURE_LENGTHS, {'inputs': ..., 'targets': ...}, as (inputs, targets)."""
    if set(lengths) != {"inputs", "targets"}:
        raise ValueError(f"TASK_FEATURE_LENGTHS is {dict(lengths)}; it must give 'inputs' and 'targets'.")
    return lengths["inputs"], lengths["targets"]


def dataset_arguments(arguments: Mapping[str, int | float | str]) -> tuple[tuple[str, int | float | str], ...]:
    """Named arguments as sorted pairs."""
    return tuple(sorted(arguments.items()))


@dataclasses.dataclass(frozen=True)
class PrepareConfig:
    """What `TrainConfig` says of a run's data, for the verbs that train nothing."""

    data: StoreRequest
    method: schema.Method
    store_root: str | None = None

    def store_request(self) -> StoreRequest:
        """The token store that a run would read."""
        return self.data.for_method(self.method)


# What gin can configure, and where it lies. A module is imported where what is built needs it: `dsbs label` asks a
# teacher without loading JAX.
_MODULES = {
    "AotConfig": "dsbs_jax.training.aot",
    "BenchConfig": "dsbs_jax.experiments.bench",
    "Concurrency": "dsbs_jax.teacher.pacing",
    "CustomDataset": "dsbs_jax.data.custom",
    "Filter": "dsbs_jax.teacher.filters",
    "ImportConfig": "dsbs_jax.models.importing",
    "LabelConfig": "dsbs_jax.data.labelling",
    "Limits": "dsbs_jax.teacher.desk",
    "LocalTeacher": "dsbs_jax.teacher.local",
    "MarkerParser": "dsbs_jax.teacher.parsers",
    "MeshConfig": "dsbs_jax.sharding.mesh",
    "Method": "dsbs_jax.schema",
    "OpenAITeacher": "dsbs_jax.teacher.openai_client",
    "OptimizerConfig": "dsbs_jax.training.optimizers",
    "Patience": "dsbs_jax.teacher.pacing",
    "PrepareConfig": __name__,
    "Prices": "dsbs_jax.teacher.prices",
    "ProviderBatches": "dsbs_jax.teacher.provider_batches",
    "RationaleNoise": "dsbs_jax.teacher.noise",
    "RegexParser": "dsbs_jax.teacher.parsers",
    "Sampling": "dsbs_jax.teacher.requests",
    "StepBenchConfig": "dsbs_jax.experiments.bench_step",
    "StoreRequest": "dsbs_jax.data.prepare",
    "SubmitConfig": "dsbs_jax.experiments.submission",
    "SweepConfig": "dsbs_jax.experiments.sweep",
    "T5Config": "dsbs_jax.models.config",
    "TaskFormat": "dsbs_jax.schema",
    "TrainConfig": "dsbs_jax.training.config",
    "Vocabulary": "dsbs_jax.data.vocabulary",
    "dataset_arguments": __name__,
    "feature_lengths": __name__,
    "find_vocabulary": __name__,
    "make_method": "dsbs_jax.schema",
}


def _found(name: str) -> Callable[..., Any]:
    """What goes by that name."""
    return getattr(importlib.import_module(_MODULES[name]), name)


@functools.cache
def _lent(name: str) -> Callable[..., Any]:
    """The same, with arguments that gin fills."""
    return gin.external_configurable(_found(name), name=name, module="dsbs")


# Macros that no parameter reads but a verb of the command line.
_READ_BY_VERBS = frozenset({"COMPILATION_CACHE_DIR"})


class ConfigError(ValueError):
    """A gin file or binding that cannot be used, in one sentence."""


def root() -> pathlib.Path:
    """The folder with the project's gin files: inside the installed package, or beside it in a checkout."""
    package = pathlib.Path(dsbs_jax.__file__).resolve().parent
    installed = package / "gin"
    return installed if installed.is_dir() else package.parent / "gin"


def names() -> list[str]:
    """Names of the gin files that come with the project, e.g. `datasets/cqa.gin`."""
    return sorted(path.relative_to(root()).as_posix() for path in root().rglob("*.gin"))


def dataset_file(name: str) -> str:
    """The gin file of a dataset, by its name (`cqa`) or as it is given."""
    shipped = f"datasets/{name}"
    return shipped if f"{shipped}.gin" in names() else name


def find(name: str, beside: pathlib.Path | None = None) -> pathlib.Path:
    """The gin file of that name: a path as it stands, or a name below the project's `gin/`; `.gin` may be left out.

    Args:
      name: what was asked for.
      beside: the file that includes it, in whose folder it is looked for first.

    Raises:
      ConfigError: where there is none, with the nearest name.
    """
    for folder in (*([beside.parent] if beside else []), pathlib.Path(), root()):
        for candidate in (folder / name, folder / f"{name}.gin", folder / name.removeprefix("gin/")):
            if candidate.is_file():
                return candidate
    raise ConfigError(f"There is no gin file {name!r}, neither here nor below {root()}.{_nearest(name, names())}")


def parse(files: Sequence[str], bindings: Sequence[str], root: Callable[..., T]) -> Callable[[], T]:
    """Reads gin files in order, then bindings such as `TRAIN_STEPS=100`; later ones win.

    Args:
      files: paths or names, see `find`.
      bindings: as after `--gin.` on the command line.
      root: what is about to be built. Values that it does not lead to may stay REQUIRED; of what it does not lead to
        parameters are not checked.

    Returns:
      Builds the root; raises ConfigError where it, or what it is built from, refuses a value.

    Raises:
      ConfigError: an absent file, a syntax error, a parameter, configurable or macro that does not exist, or a REQUIRED
        macro without a value.
    """
    gin.clear_config()
    paths = [find(name) for name in files]
    sources = [(str(path), _expand(path)) for path in paths] + [(f"--gin.{b}", b) for b in bindings]
    with _one_sentence():
        statements = _statements(sources)
        _check_macros(statements)
        needed = _reachable(statements, root.__name__)
        _check_parameters(statements, needed)
        unneeded = {name for s in statements for name in s.configurables if _last(name) not in needed}
        gin.parse_config([text for _, text in sources], skip_unknown=sorted(unneeded))
    last_words = {s.selector: s.required for s in statements if not s.parameter}
    missing = sorted(name for name, required in last_words.items() if required and f"%{name}" in needed)
    if missing:
        wanted = " and ".join(f"--gin.{name}=..." for name in missing)
        raise ConfigError(f"Values are missing: give {wanted}, or a --gin_file that sets them.")

    def make() -> T:
        with _one_sentence():
            return _lent(root.__name__)()

    return make


def macro(name: str) -> Any:
    """The value of a macro of what was parsed."""
    return gin.query_parameter(f"{name}/macro.value")


def operative() -> str:
    """The parameters that had a say in what was built, as a gin file."""
    return gin.operative_config_str()


@dataclasses.dataclass(frozen=True)
class _Statement:
    """One binding: where it stands, what it binds, and what its value refers to."""

    source: str
    scope: str
    selector: str
    parameter: str  # Empty for a macro.
    macros: frozenset[str]
    configurables: frozenset[str]  # As they are written; also what is bound.
    required: bool


class _References(config_parser.ParserDelegate):
    """Notes what a value refers to; stands in for the values themselves."""

    REQUIRED = object()

    def __init__(self) -> None:
        self.macros: set[str] = set()
        self.configurables: set[str] = set()

    def configurable_reference(self, scoped_configurable_name: str, evaluate: bool) -> object:
        self.configurables.add(scoped_configurable_name.rpartition("/")[2])
        return scoped_configurable_name

    def macro(self, macro_name: str) -> object:
        self.macros.add(macro_name)
        return self.REQUIRED if macro_name == "gin.REQUIRED" else macro_name


def _expand(path: pathlib.Path) -> str:
    """A file's text with the texts of the files it includes, which gin would look for in the working folder alone."""
    include = re.compile(r"""^include\s+(['"])(.+?)\1\s*(#.*)?$""", flags=re.MULTILINE)
    return include.sub(lambda match: _expand(find(match[2], beside=path)), path.read_text())


def _statements(sources: Sequence[tuple[str, str]]) -> list[_Statement]:
    """The bindings of all sources, in order.

    Raises:
      ConfigError: a syntax error.
    """
    found = []
    for source, text in sources:
        references = _References()
        try:
            for statement in config_parser.ConfigParser(text, references):
                if isinstance(statement, config_parser.BindingStatement):
                    bound = {statement.selector} if statement.arg_name else set()
                    found.append(
                        _Statement(
                            source,
                            statement.scope,
                            statement.selector,
                            statement.arg_name or "",
                            frozenset(references.macros),
                            frozenset(references.configurables | bound),
                            statement.value is _References.REQUIRED,
                        )
                    )
                references.macros.clear()
                references.configurables.clear()
        except SyntaxError as error:
            raise ConfigError(f"{source}: line {error.lineno}: {error.msg}") from error
    return found


def _reachable(statements: Sequence[_Statement], root: str) -> set[str]:
    """The configurables, and the macros as `%NAME`, that building `root` reads."""
    # Of two bindings of one parameter the later one counts.
    last = {(s.scope, s.selector, s.parameter): s for s in statements}
    leads_to: dict[str, set[str]] = {}
    for s in last.values():
        names = leads_to.setdefault(_last(s.selector) if s.parameter else f"%{s.selector}", set())
        names |= {f"%{name}" for name in s.macros} | {_last(name) for name in s.configurables}
    found, open_names = set(), [root]
    while open_names:
        name = open_names.pop()
        if name not in found:
            found.add(name)
            open_names += leads_to.get(name, ())
    return found


def _check_macros(statements: Sequence[_Statement]) -> None:
    """Refuses macros that nothing reads: gin itself is silent about them."""
    read = _READ_BY_VERBS.union(*(s.macros for s in statements))
    for s in statements:
        if not s.parameter and s.selector not in read:
            raise ConfigError(f"{s.source}: nothing reads the macro {s.selector}.{_nearest(s.selector, read)}")


def _check_parameters(statements: Sequence[_Statement], needed: set[str]) -> None:
    """Refuses parameters that do not exist, and lends what is needed to gin."""
    for name in needed & _MODULES.keys():
        _lent(name)
    for s in statements:
        name = _last(s.selector)
        if not s.parameter:
            continue
        if name not in _MODULES:
            raise ConfigError(
                f"{s.source}: there is nothing called {s.selector} to configure.{_nearest(name, _MODULES)}"
            )
        if name in needed:
            known = list(inspect.signature(_found(name)).parameters)
            if s.parameter not in known:
                raise ConfigError(f"{s.source}: {name} has no parameter {s.parameter!r}.{_nearest(s.parameter, known)}")


def _last(selector: str) -> str:
    return selector.rpartition(".")[2]


def _nearest(name: str, known: Any) -> str:
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean {matches[0]}?" if matches else ""


@contextlib.contextmanager
def _one_sentence() -> Iterator[None]:
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(_explain(str(error))) from error


def _explain(message: str) -> str:
    """Gin's message without its call stack."""
    message = re.sub(r"\s*In call to configurable .*", "", message, flags=re.DOTALL)
    return " ".join(message.split())
