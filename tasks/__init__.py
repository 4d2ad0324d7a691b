"""The datasets that come with the package, one module each.

Importing this registers each of them with SeqIO as `dsbs_NAME_label`, `dsbs_NAME_rationale` and the mixture
`dsbs_NAME`; it does not import SeqIO itself (see `dsbs_jax.data.registration`).
"""

from dsbs_jax.data import registration
from dsbs_jax.data.dataset import Dataset
from dsbs_jax.tasks import anli1, asdiv, bestiary, cqa, esnli, svamp

DATASETS: dict[str, Dataset] = {
    module.DATASET.name: module.DATASET for module in (anli1, asdiv, bestiary, cqa, esnli, svamp)
}

registration.add(DATASETS.values())
