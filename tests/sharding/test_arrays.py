import numpy as np
import pytest
from jax.sharding import PartitionSpec

from dsbs_jax.sharding import arrays
from dsbs_jax.sharding.arrays import batch_sharding, check_rows, local_rows, put_batch, row_multiple
from dsbs_jax.sharding.mesh import MeshConfig, make_mesh


@pytest.mark.parametrize("config", [MeshConfig(), MeshConfig(2, 2, 2), MeshConfig(1, 4, 2), MeshConfig(1, 1, 8)])
def test_one_process_holds_every_row(config):
    mesh = make_mesh(config)
    np.testing.assert_array_equal(local_rows(mesh, 16), np.arange(16))
    batch = {"tokens": np.arange(16 * 3, dtype=np.int32).reshape(16, 3), "weights": np.ones((16, 3), np.float32)}
    placed = put_batch(batch, mesh)
    for name, array in placed.items():
        np.testing.assert_array_equal(array, batch[name])
        assert array.dtype == batch[name].dtype
        assert array.sharding.is_equivalent_to(batch_sharding(mesh), array.ndim)
        assert array.addressable_shards[0].data.shape == (16 // row_multiple(mesh), 3)


def test_rows_lie_on_data_and_fsdp():
    mesh = make_mesh(MeshConfig(2, 2, 2))
    assert row_multiple(mesh) == 4
    assert batch_sharding(mesh).spec == PartitionSpec(("data", "fsdp"))


def test_rows_the_mesh_cannot_divide():
    mesh = make_mesh(MeshConfig(4, 1, 2))
    with pytest.raises(ValueError, match=r"6 rows .* data=4 x fsdp=1 .* must be a multiple of 4"):
        local_rows(mesh, 6)
    with pytest.raises(ValueError, match=r"'tokens' has 6 rows .* must be a multiple of 4"):
        put_batch({"tokens": np.zeros((6, 2), np.int32)}, mesh)
    with pytest.raises(ValueError, match=r"4 rows .* in 2 microbatches: its rows must be a multiple of 8"):
        check_rows(mesh, 4, num_microbatches=2)
    with pytest.raises(ValueError, match="0 rows"):
        check_rows(mesh, 0)


@pytest.mark.parametrize("held", [[0, 1], [0, 2], [1, 3], [2]])
def test_rows_of_one_of_several_processes(monkeypatch, held):
    """Neighbouring shards, shards of a torus, which interleave, and unequal ones."""
    mesh = make_mesh(MeshConfig(2, 2, 2))
    monkeypatch.setattr(arrays, "_held_shards", lambda _: held)
    expected = [row for shard in held for row in range(4 * shard, 4 * shard + 4)]
    np.testing.assert_array_equal(local_rows(mesh, 16), expected)
