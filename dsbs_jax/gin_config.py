"""The gin edge: files found by name, bindings checked, one dataclass out. Nothing below this module knows gin.

Everything a run can be told is a field of a frozen dataclass (or an argument of `make_method`); this module lends those
to gin, reads the files, and turns gin's errors into one sentence each.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
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
from dsbs_jax.data.custom import CustomDataset
from dsbs_jax.data.labelling import LabelConfig
from dsbs_jax.data.locations import find_vocabulary_file
from dsbs_jax.data.prepare import StoreRequest
from dsbs_jax.data.vocabulary import Vocabulary
from dsbs_jax.experiments.bench import BenchConfig
from dsbs_jax.experiments.demo import DemoConfig
from dsbs_jax.models.config import T5Config
from dsbs_jax.sharding.mesh import MeshConfig
from dsbs_jax.teacher.desk import Limits
from dsbs_jax.teacher.filters import Filter
from dsbs_jax.teacher.openai_client import OpenAITeacher
from dsbs_jax.teacher.pacing import Concurrency, Patience
from dsbs_jax.teacher.parsers import MarkerParser, RegexParser
from dsbs_jax.teacher.prices import Prices
from dsbs_jax.teacher.requests import Sampling
from dsbs_jax.training.config import TrainConfig
from dsbs_jax.training.optimizers import OptimizerConfig

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


_CONFIGURABLES: tuple[Callable[..., Any], ...] = (
    BenchConfig,
    Concurrency,
    CustomDataset,
    DemoConfig,
    Filter,
    LabelConfig,
    Limits,
    MarkerParser,
    MeshConfig,
    OpenAITeacher,
    OptimizerConfig,
    Patience,
    PrepareConfig,
    Prices,
    RegexParser,
    Sampling,
    StoreRequest,
    T5Config,
    TrainConfig,
    Vocabulary,
    schema.Method,
    schema.TaskFormat,
    schema.make_method,
    dataset_arguments,
    feature_lengths,
    find_vocabulary,
)
_PARAMETERS = {c.__name__: list(inspect.signature(c).parameters) for c in _CONFIGURABLES}
_REGISTERED = {c.__name__: gin.external_configurable(c, name=c.__name__, module="dsbs") for c in _CONFIGURABLES}


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


def parse(files: Sequence[str], bindings: Sequence[str] = (), unneeded: Sequence[str] = ()) -> None:
    """Reads gin files in order, then bindings such as `TRAIN_STEPS=100`; later ones win.

    Args:
      files: paths or names, see `find`.
      bindings: as after `--gin.` on the command line.
      unneeded: REQUIRED macros that what is about to be built does not read.

    Raises:
      ConfigError: an absent file, a syntax error, a parameter, configurable or macro that does not exist, or a REQUIRED
        macro without a value.
    """
    gin.clear_config()
    paths = [find(name) for name in files]
    sources = [(str(path), _expand(path)) for path in paths] + [(f"--gin.{b}", b) for b in bindings]
    with _one_sentence():
        missing = _check_names(sources) - set(unneeded)
        gin.parse_config([text for _, text in sources])
    if missing:
        wanted = " and ".join(f"--gin.{name}=..." for name in sorted(missing))
        raise ConfigError(f"Values are missing: give {wanted}, or a --gin_file that sets them.")


def make(configurable: Callable[..., T]) -> T:
    """Builds one of the lent dataclasses from what was parsed.

    Raises:
      ConfigError: the dataclass refuses a value.
    """
    with _one_sentence():
        return _REGISTERED[configurable.__name__]()


def make_store_request() -> tuple[StoreRequest, str | None]:
    """The token store that a run of what was parsed would read, and the folder of the stores."""
    config = make(PrepareConfig)
    return config.data.for_method(config.method), config.store_root


def macro(name: str) -> Any:
    """The value of a macro of what was parsed."""
    return gin.query_parameter(f"{name}/macro.value")


def operative() -> str:
    """The parameters that had a say in what was built, as a gin file."""
    return gin.operative_config_str()


class _References(config_parser.ParserDelegate):
    """Notes the macros a gin file reads; stands in for the values themselves."""

    REQUIRED = object()

    def __init__(self) -> None:
        self.macros: set[str] = set()

    def configurable_reference(self, scoped_configurable_name: str, evaluate: bool) -> object:
        return scoped_configurable_name

    def macro(self, macro_name: str) -> object:
        self.macros.add(macro_name)
        return self.REQUIRED if macro_name == "gin.REQUIRED" else macro_name


def _expand(path: pathlib.Path) -> str:
    """A file's text with the texts of the files it includes, which gin would look for in the working folder alone."""
    include = re.compile(r"""^include\s+(['"])(.+?)\1\s*(#.*)?$""", flags=re.MULTILINE)
    return include.sub(lambda match: _expand(find(match[2], beside=path)), path.read_text())


def _check_names(sources: Sequence[tuple[str, str]]) -> set[str]:
    """Refuses macros that nothing reads (gin itself is silent about them) and parameters that do not exist.

    Returns:
      The macros whose last word is REQUIRED.
    """
    references = _References()
    bound: dict[str, tuple[str, Any]] = {}
    for source, text in sources:
        try:
            for statement in config_parser.ConfigParser(text, references):
                if not isinstance(statement, config_parser.BindingStatement):
                    continue
                if statement.arg_name:
                    _check_parameter(source, statement.selector, statement.arg_name)
                else:
                    bound[statement.selector] = (source, statement.value)
        except SyntaxError as error:
            raise ConfigError(f"{source}: line {error.lineno}: {error.msg}") from error
    for name, (source, _) in bound.items():
        if name not in references.macros | _READ_BY_VERBS:
            raise ConfigError(f"{source}: nothing reads the macro {name}.{_nearest(name, references.macros)}")
    return {name for name, (_, value) in bound.items() if value is _References.REQUIRED}


def _check_parameter(source: str, selector: str, parameter: str) -> None:
    name = selector.rsplit(".", 1)[-1]
    if name not in _REGISTERED:
        raise ConfigError(f"{source}: there is nothing called {selector} to configure.{_nearest(name, _REGISTERED)}")
    known = _PARAMETERS[name]
    if parameter not in known:
        raise ConfigError(f"{source}: {name} has no parameter {parameter!r}.{_nearest(parameter, known)}")


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
