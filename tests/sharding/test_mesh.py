import dataclasses

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
        (MeshConfig(fsdp=2), (4, 2, 1)),
        (MeshConfig(fsdp=-1), (1, 8, 1)),
        (MeshConfig(preset="fsdp"), (1, 8, 1)),
        (MeshConfig(preset="fsdp", data=2), (2, 4, 1)),
        (MeshConfig(preset="fsdp+tp"), (1, 4, 2)),
        (MeshConfig(preset="fsdp+tp", data=-1, fsdp=2), (2, 2, 2)),
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


def test_preset_that_does_not_exist():
    with pytest.raises(ValueError, match=r"no mesh preset 'zero'; the presets are dp, fsdp, fsdp\+tp"):
        MeshConfig(preset="zero")


@dataclasses.dataclass(frozen=True)
class TpuCore:
    """What `mesh_utils` asks of a TPU device."""

    id: int
    slice_index: int
    coords: tuple[int, int, int]
    platform: str = "tpu"
    device_kind: str = "TPU v5 lite"
    core_on_chip: int = 0
    process_index: int = 0


def two_slices():
    """Two slices of 2 x 2 chips."""
    return [TpuCore(4 * s + 2 * y + x, s, (x, y, 0)) for s in range(2) for y in range(2) for x in range(2)]


@pytest.mark.parametrize("config", [MeshConfig(), MeshConfig(preset="fsdp"), MeshConfig(2, 2, 2), MeshConfig(1, 4, 2)])
def test_only_the_outermost_axis_crosses_between_slices(config):
    """In either half of the outermost axis that has more than one device, all devices are of one slice."""
    grid = make_mesh(config, two_slices()).devices
    halves = grid.reshape(2, 4)
    assert [{device.slice_index for device in half} for half in halves] == [{0}, {1}]


def test_model_axis_never_crosses_between_slices():
    with pytest.raises(ValueError, match="does not divide over 2 TPU slices"):
        make_mesh(MeshConfig(1, 1, 8), two_slices())


def test_mesh_axes_are_auto():
    mesh = make_mesh(MeshConfig(2, -1, 2))
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "model": 2}
    assert mesh.axis_types == (AxisType.Auto,) * 3


def test_mesh_of_one_device():
    assert make_mesh(MeshConfig(), jax.devices()[:1]).size == 1
