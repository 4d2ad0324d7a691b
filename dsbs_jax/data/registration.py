"""Registering datasets with SeqIO as soon as SeqIO is loaded, and not before.

`import dsbs_jax.tasks` must fill SeqIO's registry for people who use SeqIO, and must not load SeqIO (and TensorFlow
with it: 15 seconds) for everyone else, a training process above all. So datasets wait here until SeqIO is imported,
whether that was before or will be after.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Iterable

from dsbs_jax.data.dataset import Dataset

_SEQIO_TASKS = "dsbs_jax.data.seqio_tasks"
_waiting: list[Dataset] = []
_register: Callable[[Dataset], None] | None = None


def add(datasets: Iterable[Dataset]) -> None:
    """Registers datasets with SeqIO, now or when SeqIO is imported."""
    _waiting.extend(datasets)
    if _register is not None:
        use(_register)
    elif "seqio" in sys.modules:
        importlib.import_module(_SEQIO_TASKS)
    elif not any(isinstance(finder, _AfterSeqio) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterSeqio())


def use(register: Callable[[Dataset], None]) -> None:
    """Registers the datasets that wait, and from now on every added one, with `register`; see `seqio_tasks`."""
    global _register
    _register = register
    while _waiting:
        register(_waiting.pop(0))


class _AfterSeqio(importlib.abc.MetaPathFinder):
    """Loads `seqio_tasks`, which calls `use`, right after somebody's `import seqio`."""

    def find_spec(self, fullname: str, path=None, target=None) -> importlib.machinery.ModuleSpec | None:
        if fullname != "seqio":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        load = spec.loader.exec_module

        def load_then_register(module) -> None:
            load(module)
            # Already being imported where seqio_tasks itself asked for SeqIO; it calls `use` at its end either way.
            importlib.import_module(_SEQIO_TASKS)

        spec.loader.exec_module = load_then_register  # type: ignore[method-assign]
        return spec
