import jax
import pytest
from jax.sharding import AxisType

from dsbs_jax.sharding.mesh import MeshConfig, make_mesh


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (MeshConfig(), (8, 1, 1)),
        (MeshConfig(data=1, fsdp=-1, model=2), (1, 4, 2)),
        (MeshConfig(data=2, fsdp=2, model=-1), (2, 2, 2)),
        (MeshConfig(data=1, fsdp=1, model=8), (1, 1, 8)),
    ],
)
def test_minus_one_takes_the_remaining_devices(config, shape):
    assert config.shape(8) == shape


@pytest.mark.parametrize("config", [MeshConfig(model=3), MeshConfig(2, 2, 1), MeshConfig(4, 4, 1), MeshConfig(-1, 16)])
def test_devices_that_the_sizes_cannot_divide(config):
    with pytest.raises(ValueError, match=r"there are 8: choose data \* fsdp \* model = 8"):
        config.shape(8)


@pytest.mark.parametrize("sizes", [(0, 1, 1), (-2, 1, 1), (-1, -1, 1)])
def test_sizes_that_make_no_sense(sizes):
    with pytest.raises(ValueError, match="every axis must be at least 1, or -1 on one axis"):
        MeshConfig(*sizes)


def test_mesh_axes_are_auto():
    mesh = make_mesh(MeshConfig(2, -1, 2))
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "model": 2}
    assert mesh.axis_types == (AxisType.Auto,) * 3


def test_mesh_of_one_device():
    assert make_mesh(MeshConfig(), jax.devices()[:1]).size == 1
