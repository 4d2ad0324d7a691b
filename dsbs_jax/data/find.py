"""Finding a dataset by name: in a module with `DATASETS`, as the package's tasks have it, or described by values."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence

from dsbs_jax.data.custom import CustomDataset
from dsbs_jax.data.dataset import Dataset, Value

OWN_TASKS = "dsbs_jax.tasks"


def own_name(name: str) -> str:
    """The dataset that a name of the package's tasks means, the mixture's name in SeqIO's registry among them."""
    return name.removeprefix("dsbs_")


def find_dataset(
    name: str,
    module: str = OWN_TASKS,
    custom: CustomDataset | None = None,
    arguments: Sequence[tuple[str, Value]] = (),
) -> Dataset | None:
    """A dataset with its arguments; None where the name is that of some SeqIO task or mixture.

    Args:
      name: in the module's `DATASETS`.
      module: a Python module.
      custom: a dataset described by values; wins.
      arguments: (name, value) pairs for the dataset's reader.

    Raises:
      ValueError: for a module that cannot be imported, or arguments that the dataset does not have.
    """
    if custom is not None:
        return custom.to_dataset()
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"The module {module!r} of {name!r} cannot be imported: {error}.") from None
    datasets: Mapping[str, Dataset] = getattr(found, "DATASETS", {})
    dataset = datasets.get(own_name(name) if module == OWN_TASKS else name)
    return dataset and dataset.with_arguments(arguments)


def require_dataset(
    name: str,
    module: str = OWN_TASKS,
    custom: CustomDataset | None = None,
    arguments: Sequence[tuple[str, Value]] = (),
) -> Dataset:
    """`find_dataset`, for what needs a dataset of ours.

    Raises:
      ValueError: also where there is none of that name; names those there are.
    """
    dataset = find_dataset(name, module, custom, arguments)
    if dataset is None:
        known = ", ".join(sorted(getattr(importlib.import_module(module), "DATASETS", {})))
        raise ValueError(f"There is no dataset {name!r}; datasets are {known or 'none'}.")
    return dataset
