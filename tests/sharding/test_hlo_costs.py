import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from dsbs_jax.sharding.hlo_costs import program_costs
from dsbs_jax.sharding.mesh import MeshConfig, make_mesh


def costs(function, *shapes, **options):
    return program_costs(jax.jit(function, **options).lower(*shapes).compile().as_text())


def array(*shape, sharding=None):
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)


def test_a_product():
    assert costs(lambda a, b: a @ b, array(8, 32), array(32, 64)).flops == 2 * 8 * 32 * 64


def test_a_batched_product():
    flops = costs(lambda a, b: jnp.einsum("bhqd,bhkd->bhqk", a, b), array(2, 3, 16, 8), array(2, 3, 32, 8)).flops
    assert flops == 2 * 2 * 3 * 16 * 32 * 8


def test_a_scan_counts_as_often_as_it_runs():
    def layers(x, weights):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]

    shapes = array(8, 32), array(24, 32, 32)
    assert costs(layers, *shapes).flops == 24 * 2 * 8 * 32 * 32
    compiled = jax.jit(layers).lower(*shapes).compile()
    # What is at hand elsewhere counts it once; the difference is why this module exists.
    assert compiled.cost_analysis()["flops"] < 3 * 2 * 8 * 32 * 32


def test_a_scan_within_a_scan():
    def nested(x, weights):
        def outer(x, _):
            return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0], None

        return jax.lax.scan(outer, x, None, length=5)[0]

    assert costs(nested, array(8, 32), array(24, 32, 32)).flops == 5 * 24 * 2 * 8 * 32 * 32


def test_a_loop_that_may_end_early_counts_to_its_bound():
    def decode(x, w):
        def unfinished(state):
            return (state[0] < 40) & (jnp.sum(state[1]) > 0)

        return jax.lax.while_loop(unfinished, lambda state: (state[0] + 1, jnp.tanh(state[1] @ w)), (0, x))[1]

    assert costs(decode, array(8, 32), array(32, 32)).flops == 40 * 2 * 8 * 32 * 32


def test_a_loop_that_counts_by_twos():
    """As a TPU's products that overlap with a ring of permutations do."""

    def pairs(x, w):
        def turn(state):
            return state[0] + 2, jnp.tanh(jnp.tanh(state[1] @ w) @ w)

        return jax.lax.while_loop(lambda state: state[0] < 15, turn, (0, x))[1]

    assert costs(pairs, array(8, 32), array(32, 32)).flops == 8 * 2 * 2 * 8 * 32 * 32


def test_a_loop_without_a_bound_is_an_error():
    def forever(x, w):
        return jax.lax.while_loop(lambda x: jnp.sum(x) > 0, lambda x: jnp.tanh(x @ w), x)

    with pytest.raises(ValueError, match="no trip count"):
        costs(forever, array(8, 32), array(32, 32))


def test_a_conditional_counts_its_dearest_branch():
    def either(flag, x, w):
        return jax.lax.cond(flag, lambda x: jnp.tanh(x @ w) @ w, lambda x: x @ w, x)

    flag = jax.ShapeDtypeStruct((), jnp.bool_)
    assert costs(either, flag, array(8, 32), array(32, 32)).flops == 2 * 2 * 8 * 32 * 32


@pytest.mark.parametrize(
    ("window", "padding"), [((1, 1), "VALID"), ((2, 1), "SAME"), ((1, 2), ((5, 5), (0, 3))), ((3, 2), ((1, 0), (2, 2)))]
)
@pytest.mark.parametrize("dilation", [1, 2])
def test_a_convolution_counts_what_meets_the_input(window, padding, dilation):
    """As XLA counts them; on a TPU products become convolutions, batched ones with wide padding."""

    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, window, padding, rhs_dilation=(dilation, 1))

    shapes = array(2, 4, 16, 16), array(8, 4, 3, 3)
    lowered = jax.jit(convolve).lower(*shapes)
    assert costs(convolve, *shapes).flops == lowered.cost_analysis()["flops"]


@pytest.fixture
def mesh():
    return make_mesh(MeshConfig(1, 4, 2))


def placed(mesh, *axes):
    return NamedSharding(mesh, PartitionSpec(*axes))


def test_bytes_of_an_all_gather(mesh):
    """Weights split over 4 are gathered: of 64 x 32 floats a device sends its quarter to the 3 others."""
    found = costs(
        lambda x: x * 2,
        array(64, 32, sharding=placed(mesh, "fsdp")),
        out_shardings=placed(mesh),
    )
    assert found.collective_bytes == 3 / 4 * 64 * 32 * 4


def test_bytes_of_an_all_reduce():
    """A product whose contracted dimension is split over 8: twice 7/8 of the result."""
    mesh = make_mesh(MeshConfig(1, 1, 8))
    found = costs(
        lambda a, b: a @ b,
        array(64, 32, sharding=placed(mesh, None, "model")),
        array(32, 16, sharding=placed(mesh, "model")),
        out_shardings=placed(mesh),
    )
    assert found.collective_bytes == 2 * 7 / 8 * 64 * 16 * 4
    assert found.flops == 2 * 64 * 16 * 32 / 8


def test_bytes_within_a_scan(mesh):
    def layers(x, weights):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]

    once, often = (
        costs(
            layers,
            array(8, 32, sharding=placed(mesh, "fsdp")),
            array(height, 32, 32, sharding=placed(mesh, None, "fsdp")),
            out_shardings=placed(mesh, "fsdp"),
        ).collective_bytes
        for height in (5, 10)
    )
    assert often == 2 * once > 0


def test_bytes_of_an_all_to_all(mesh):
    found = costs(
        lambda x: x * 2,
        array(64, 32, sharding=placed(mesh, "fsdp")),
        out_shardings=placed(mesh, None, "fsdp"),
    )
    assert found.collective_bytes == 3 / 4 * 16 * 32 * 4


def test_one_device_sends_nothing():
    assert costs(lambda a, b: a @ b, array(8, 32), array(32, 64)).collective_bytes == 0


def test_a_text_that_is_no_program():
    with pytest.raises(ValueError, match="it has no ENTRY computation"):
        program_costs("HloModule nothing\n")
