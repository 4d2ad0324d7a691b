"""The gin edge: files found by name, bindings checked, one dataclass out. Nothing below this module knows gin.

Everything a run can be told is a field of a frozen dataclass (or an argument of `make_method`); this module lends those
to gin, reads the files, and turns gin's errors into one sentence each.
"""

from __future__ import annotations

import contextlib
import difflib
import inspect
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import gin
from gin import config_parser

import dsbs_jax
from dsbs_jax import schema
from dsbs_jax.data.dataset import CustomDataset
from dsbs_jax.data.prepare import StoreRequest
from dsbs_jax.data.vocabulary import Vocabulary
from dsbs_jax.models.config import T5Config
from dsbs_jax.sharding.mesh import MeshConfig
from dsbs_jax.teacher.parsers import MarkerParser
from dsbs_jax.training.config import TrainConfig
from dsbs_jax.training.optimizers import OptimizerConfig

T = TypeVar("T")

_CONFIGURABLES: tuple[Callable[..., Any], ...] = (
    CustomDataset,
    MarkerParser,
    MeshConfig,
    OptimizerConfig,
    StoreRequest,
    T5Config,
    TrainConfig,
    Vocabulary,
    schema.Method,
    schema.TaskFormat,
    schema.make_method,
)
_REGISTERED = {c.__name__: gin.external_configurable(c, name=c.__name__, module="dsbs") for c in _CONFIGURABLES}


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


def find(name: str) -> pathlib.Path:
    """The gin file of that name: a path as it stands, or a name below the project's `gin/`; `.gin` may be left out.

    Raises:
      ConfigError: where there is none, with the nearest name.
    """
    for folder in (pathlib.Path(), root()):
        for candidate in (folder / name, folder / f"{name}.gin", folder / name.removeprefix("gin/")):
            if candidate.is_file():
                return candidate
    raise ConfigError(f"There is no gin file {name!r}, neither here nor below {root()}.{_nearest(name, names())}")


def parse(files: Sequence[str], bindings: Sequence[str] = ()) -> None:
    """Reads gin files in order, then bindings such as `TRAIN_STEPS=100`; later ones win.

    Raises:
      ConfigError: an absent file, a syntax error, a parameter, configurable or macro that does not exist.
    """
    gin.clear_config()
    paths = [find(name) for name in files]
    gin.add_config_file_search_path(str(root()))
    with _one_sentence():
        _check_names(paths, bindings)
        gin.parse_config_files_and_bindings([str(path) for path in paths], list(bindings), finalize_config=False)


def make(configurable: type[T], **arguments: Any) -> T:
    """Builds one of the lent dataclasses from what was parsed.

    Raises:
      ConfigError: a REQUIRED value is missing, or the dataclass refuses a value.
    """
    with _one_sentence():
        return _REGISTERED[configurable.__name__](**arguments)


def operative() -> str:
    """The parameters that had a say in what was built, as a gin file."""
    return gin.operative_config_str()


class _References(config_parser.ParserDelegate):
    """Notes the macros a gin file reads."""

    def __init__(self) -> None:
        self.macros: set[str] = set()

    def configurable_reference(self, scoped_configurable_name: str, evaluate: bool) -> str:
        return scoped_configurable_name

    def macro(self, macro_name: str) -> str:
        self.macros.add(macro_name)
        return macro_name


def _statements(text: str, references: _References) -> Iterator[Any]:
    for statement in config_parser.ConfigParser(text, references):
        if isinstance(statement, config_parser.IncludeStatement):
            yield from _statements(find(statement.filename).read_text(), references)
        else:
            yield statement


def _check_names(paths: Sequence[pathlib.Path], bindings: Sequence[str]) -> None:
    """Refuses macros that nothing reads, and parameters that do not exist: gin itself is silent about the former."""
    references = _References()
    bound: list[tuple[str, str]] = []
    for source, text in [(str(p), p.read_text()) for p in paths] + [(f"--gin.{b}", b) for b in bindings]:
        for statement in _statements(text, references):
            if not isinstance(statement, config_parser.BindingStatement):
                continue
            if statement.arg_name:
                _check_parameter(source, statement.selector, statement.arg_name)
            else:
                bound.append((source, statement.selector))
    for source, name in bound:
        if name not in references.macros and name != "gin.REQUIRED":
            raise ConfigError(f"{source}: nothing reads the macro {name}.{_nearest(name, references.macros)}")


def _check_parameter(source: str, selector: str, parameter: str) -> None:
    name = selector.rsplit(".", 1)[-1]
    if name not in _REGISTERED:
        raise ConfigError(f"{source}: there is nothing called {selector} to configure.{_nearest(name, _REGISTERED)}")
    known = list(inspect.signature(_REGISTERED[name]).parameters)
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
    """Gin's message without its call stack; a missing REQUIRED value by the name the user sets."""
    missing = re.search(r"Required bindings for `(\w+)` not provided in config: \[(.*?)\]", message)
    if missing:
        wanted = [f"{missing[1]}.{parameter}" for parameter in re.findall(r"'(\w+)'", missing[2])]
        macros = _macros_behind(wanted)
        return "Missing required value: " + ", ".join(f"give --gin.{name}=..." for name in macros) + "."
    message = re.sub(r"\s*In call to configurable .*", "", message, flags=re.DOTALL)
    return " ".join(message.split())


def _macros_behind(parameters: Sequence[str]) -> list[str]:
    """The macro that a parameter is bound to, where it is: people set `MODEL_DIR`, not `TrainConfig.model_dir`."""
    found = []
    for parameter in parameters:
        binding = re.search(rf"^{re.escape(parameter)} = %(\w+)$", gin.config_str(), flags=re.MULTILINE)
        found.append(binding[1] if binding else parameter)
    return found
