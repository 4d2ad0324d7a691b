"""The jitted step: its loss, gradients and update, on one device and on a mesh."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from dsbs_jax.models.config import T5Config
from dsbs_jax.models.parameters import abstract_params
from dsbs_jax.models.t5 import T5
from dsbs_jax.sharding.arrays import put_batch
from dsbs_jax.sharding.mesh import MeshConfig, make_mesh
from dsbs_jax.sharding.rules import DEFAULT_RULES, make_rules, scanned_layers
from dsbs_jax.training.losses import LossConfig
from dsbs_jax.training.optimizers import OptimizerConfig, make_optimizer, make_schedule
from dsbs_jax.training.step import abstract_state, create_state, init_params, make_train_step

pytestmark = pytest.mark.usefixtures("quick_compilation")

CONFIG = T5Config(
    d_model=16, d_kv=4, d_ff=32, num_layers=2, num_decoder_layers=2, num_heads=8, vocab_size=64, dropout_rate=0.0
)
MODEL = T5(CONFIG)
ROWS, ENCODER_LENGTH, DECODER_LENGTH = 16, 12, 10
WEIGHTS = (0.5, 2.0)
CONSTANT = optax.constant_schedule(1.0)
# With this the update of a step is its gradient.
SGD = optax.sgd(1.0)


def one_device():
    return make_mesh(MeshConfig(), jax.devices()[:1])


def make_batch(seed):
    """Two sequences a row, of random lengths, label then rationale, and padding behind them."""
    rng = np.random.default_rng(seed)

    def side(length):
        first = rng.integers(2, length // 2, (ROWS, 1))
        both = first + rng.integers(1, length // 2, (ROWS, 1))
        at = np.arange(length)
        segments = np.where(at < first, 1, np.where(at < both, 2, 0)).astype(np.int32)
        positions = np.where(at < first, at, at - first).astype(np.int32)
        tokens = rng.integers(2, CONFIG.vocab_size, (ROWS, length)).astype(np.int32) * (segments > 0)
        return tokens.astype(np.int32), segments, positions

    encoder, encoder_segments, encoder_positions = side(ENCODER_LENGTH)
    targets, segments, positions = side(DECODER_LENGTH)
    shifted = np.where(positions > 0, np.roll(targets, 1, axis=1), 0).astype(np.int32)
    return {
        "encoder_input_tokens": encoder,
        "encoder_segment_ids": encoder_segments,
        "encoder_positions": encoder_positions,
        "decoder_input_tokens": shifted,
        "decoder_target_tokens": targets,
        "decoder_segment_ids": segments,
        "decoder_positions": positions,
        "decoder_task_ids": (segments == 2).astype(np.int32),
        "decoder_loss_weights": (segments > 0).astype(np.float32),
    }


@functools.cache
def first_params():
    return jax.device_get(init_params(MODEL, 0, one_device()))


def start(model, optimizer, mesh, rules=DEFAULT_RULES):
    """`create_state`, but compiling the initialisation once for all tests."""
    placed = jax.device_put(first_params(), _shardings(abstract_state(model, optimizer, mesh, rules)).params)
    return create_state(model, optimizer, 0, mesh, rules, placed)


def _shardings(state):
    return jax.tree.map(lambda array: array.sharding, state)


def run(mesh, steps=1, optimizer=SGD, **options):
    """The parameters after `steps` steps, and the last metrics, on the host."""
    step = make_train_step(MODEL, optimizer, CONSTANT, WEIGHTS, mesh, **options)
    state = start(MODEL, optimizer, mesh, options.get("rules", DEFAULT_RULES))
    for number in range(steps):
        state, metrics = step(state, put_batch(make_batch(number), mesh))
    return jax.device_get((state.params, metrics))


@functools.cache
def reference():
    return run(one_device(), loss=LossConfig(z_loss=1e-3, label_smoothing=0.1))


def assert_same_step(found, expected):
    """Same metrics and gradients. Float32 sums over up to 16 rows in another order: 1e-5 of the largest entry."""
    for name, value in expected[1].items():
        np.testing.assert_allclose(found[1][name], value, rtol=2e-5, err_msg=name)
    for (path, before), one, other in zip(
        jax.tree_util.tree_leaves_with_path(first_params()),
        jax.tree.leaves(found[0]),
        jax.tree.leaves(expected[0]),
        strict=True,
    ):
        scale = np.abs(before - other).max()
        assert scale > 0, f"{jax.tree_util.keystr(path)} has no gradient"
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * scale + 1e-7, err_msg=jax.tree_util.keystr(path))


def test_parameters_start_alike_on_every_mesh():
    jax.tree.map(
        np.testing.assert_array_equal,
        jax.device_get(init_params(MODEL, 0, make_mesh(MeshConfig(2, 2, 2)))),
        first_params(),
    )


@pytest.mark.parametrize("shape", [(8, 1, 1), (1, 8, 1), (4, 2, 1), (2, 2, 2), (1, 4, 2), (1, 1, 8)], ids=str)
def test_every_mesh_makes_the_step_of_one_device(shape):
    found = run(make_mesh(MeshConfig(*shape)), loss=LossConfig(z_loss=1e-3, label_smoothing=0.1))
    assert_same_step(found, reference())


def test_fifty_steps_follow_those_of_one_device():
    """Losses of 50 steps of AdamW. Sums in another order differ by 1e-7 a step; training multiplies that, so 1e-4."""

    def losses(mesh):
        config = OptimizerConfig(learning_rate=3e-3)
        optimizer = make_optimizer(config, 50, scanned_layers(abstract_params(MODEL)))
        step = make_train_step(MODEL, optimizer, make_schedule(config, 50), WEIGHTS, mesh)
        state = start(MODEL, optimizer, mesh)
        found = []
        for number in range(50):
            state, metrics = step(state, put_batch(make_batch(number % 5), mesh))
            found.append(float(metrics["loss"]))
        return np.array(found)

    one, many = losses(one_device()), losses(make_mesh(MeshConfig(2, 2, 2)))
    assert one[-1] < 0.9 * one[0]
    np.testing.assert_allclose(many, one, rtol=1e-4)


def test_other_rules_make_the_same_step():
    rules = make_rules([("vocab", None), ("act_vocab", None), ("heads", None), ("length", "model")])
    found = run(make_mesh(MeshConfig(2, 2, 2)), loss=LossConfig(z_loss=1e-3, label_smoothing=0.1), rules=rules)
    assert_same_step(found, reference())


@pytest.mark.parametrize("lengths", [(12, 10), (7, 5)])
def test_lengths_need_not_divide_over_the_mesh(lengths):
    """Rows and widths are split, tokens never: any row length goes through any mesh."""
    mesh = make_mesh(MeshConfig(2, 2, 2))
    step = make_train_step(MODEL, SGD, CONSTANT, WEIGHTS, mesh)
    batch = {name: array[:, : lengths[name.startswith("decoder")]] for name, array in make_batch(0).items()}
    _, metrics = step(start(MODEL, SGD, mesh), put_batch(batch, mesh))
    assert metrics["finite"]


@pytest.mark.parametrize(("shape", "microbatches"), [((1, 1, 1), 4), ((2, 2, 2), 2)], ids=str)
def test_microbatches_add_up_to_the_whole_batch(shape, microbatches):
    mesh = make_mesh(MeshConfig(*shape), jax.devices()[: np.prod(shape)])
    loss = LossConfig(z_loss=1e-3, label_smoothing=0.1)
    assert_same_step(run(mesh, loss=loss, num_microbatches=microbatches), reference())


def test_optimiser_state_is_split_as_the_parameters():
    mesh = make_mesh(MeshConfig(2, 2, 2))
    config = OptimizerConfig()
    optimizer = make_optimizer(config, 10, scanned_layers(abstract_params(MODEL)))
    state = start(MODEL, optimizer, mesh)
    expected = abstract_state(MODEL, optimizer, mesh)
    assert jax.tree.structure(state) == jax.tree.structure(expected)
    for array, shape in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        assert (array.shape, array.dtype) == (shape.shape, shape.dtype)
        assert array.sharding.is_equivalent_to(shape.sharding, array.ndim)
    adam = state.opt_state[1]
    for tree in (state.params, adam.mu, adam.nu):
        assert tree["embedding"].sharding.spec == PartitionSpec("model", "fsdp")
        assert tree["encoder"]["layers"]["ffn"]["wo"]["kernel"].addressable_shards[0].data.shape == (2, 16, 8)


def test_adafactor_learns_alike_on_a_mesh():
    config = OptimizerConfig("adafactor", learning_rate=1e-2)
    optimizer = make_optimizer(config, 10, scanned_layers(abstract_params(MODEL)))
    _, one = run(one_device(), 3, optimizer)
    _, mesh = run(make_mesh(MeshConfig(2, 2, 2)), 3, optimizer)
    # Factored moments are means over split dimensions: looser than a gradient.
    np.testing.assert_allclose(mesh["loss"], one["loss"], rtol=1e-3)


def test_step_compiles_once_donates_its_state_and_never_asks_the_host():
    mesh = make_mesh(MeshConfig(2, 2, 2))
    config = OptimizerConfig()
    optimizer = make_optimizer(config, 10, scanned_layers(abstract_params(MODEL)))
    step = make_train_step(MODEL, optimizer, make_schedule(config, 10), WEIGHTS, mesh)
    state = start(MODEL, optimizer, mesh)
    batches = [put_batch(make_batch(number), mesh) for number in range(5)]
    first, seen = state, []
    with jax.transfer_guard("disallow"):
        for batch in batches:
            state, metrics = step(state, batch)
            seen.append(metrics)
    assert step._cache_size() == 1
    assert all(array.is_deleted() for array in jax.tree.leaves(first))
    assert int(state.step) == 5
    np.testing.assert_allclose([m["learning_rate"] for m in seen], [5e-5 * (10 - i) / 10 for i in range(5)], rtol=1e-6)
    last = make_batch(4)
    assert seen[-1]["encoder_tokens"] == (last["encoder_segment_ids"] > 0).sum()
    assert seen[-1]["decoder_tokens"] == (last["decoder_segment_ids"] > 0).sum()
    assert seen[-1]["task_tokens"].tolist() == [(last["decoder_segment_ids"] == task).sum() for task in (1, 2)]
    np.testing.assert_allclose(seen[-1]["loss"], np.dot(WEIGHTS, seen[-1]["task_loss"]), rtol=1e-6)


@pytest.mark.parametrize("poisoned", ["loss", "gradient"])
def test_step_that_is_not_finite_leaves_the_state_as_it_was(poisoned):
    optimizer = make_optimizer(OptimizerConfig(), 10)
    step = make_train_step(MODEL, optimizer, CONSTANT, WEIGHTS, one_device())
    state, _ = step(start(MODEL, optimizer, one_device()), put_batch(make_batch(0), one_device()))
    batch = make_batch(1)
    if poisoned == "loss":
        batch["decoder_loss_weights"][0, 0] = np.nan
    else:
        # A head this large gives a finite loss whose gradient's square overflows.
        state = state.replace(params={**state.params, "lm_head": jnp.full_like(state.params["lm_head"], 3e37)})
        state = state.replace(params={**state.params, "lm_head": state.params["lm_head"].at[::2].set(0.0)})
    before = jax.device_get(state)
    state, metrics = step(state, put_batch(batch, one_device()))
    assert not metrics["finite"]
    assert not state.healthy
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), before.replace(healthy=np.False_))
    assert int(state.step) == 1
    # A good batch afterwards changes nothing either: who notices late still holds the state before the bad step.
    state, metrics = step(state, put_batch(make_batch(0), one_device()))
    assert not metrics["finite"]
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), before.replace(healthy=np.False_))


def test_run_goes_on_as_if_never_interrupted():
    model = T5(dataclasses.replace(CONFIG, dropout_rate=0.3))
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-2), 10)
    mesh = one_device()
    step = make_train_step(model, optimizer, CONSTANT, WEIGHTS, mesh)
    batches = [put_batch(make_batch(number), mesh) for number in range(4)]

    state = start(model, optimizer, mesh)
    for batch in batches[:2]:
        state, _ = step(state, batch)
    saved = jax.device_get(state)
    losses = []
    for batch in batches[2:]:
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))

    resumed = jax.device_put(saved, _shardings(abstract_state(model, optimizer, mesh)))
    for batch, loss in zip(batches[2:], losses, strict=True):
        resumed, metrics = step(resumed, batch)
        assert float(metrics["loss"]) == loss
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(resumed), jax.device_get(state))


def test_dropout_differs_between_steps_and_seeds_and_not_between_meshes():
    model = T5(dataclasses.replace(CONFIG, dropout_rate=0.3))
    optimizer = optax.sgd(0.0)

    def losses(mesh, drops):
        step = make_train_step(model, optimizer, CONSTANT, WEIGHTS, mesh)
        state = start(model, optimizer, mesh)
        for rng, at in drops:
            places = state.rng.sharding
            state = state.replace(rng=jax.device_put(np.uint32(rng), places), step=jax.device_put(np.int32(at), places))
            state, metrics = step(state, put_batch(make_batch(0), mesh))
            yield float(metrics["loss"])

    base, later, other, again = losses(one_device(), [((0, 1), 0), ((0, 1), 1), ((0, 2), 0), ((0, 1), 0)])
    assert len({base, later, other}) == 3
    assert again == base
    # Masks are drawn for the global array, whatever its layout; sums are in another order.
    assert next(losses(make_mesh(MeshConfig(2, 2, 2)), [((0, 1), 0)])) == pytest.approx(base, rel=1e-5)


def test_given_parameters_are_started_from():
    mesh = make_mesh(MeshConfig(4, 2, 1))
    fresh = create_state(MODEL, SGD, 0, mesh)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(fresh.params), first_params())
    state = create_state(MODEL, SGD, 1, mesh, params=fresh.params)
    assert state.params is fresh.params
    assert (state.rng != fresh.rng).any()


def test_rows_that_microbatches_cannot_divide():
    step = make_train_step(MODEL, SGD, CONSTANT, WEIGHTS, one_device(), num_microbatches=3)
    state = start(MODEL, SGD, one_device())
    with pytest.raises(ValueError, match=r"16 rows .* in 3 microbatches: its rows must be a multiple of 3"):
        step(state, put_batch(make_batch(0), one_device()))
    with pytest.raises(ValueError, match="num_microbatches is 0"):
        make_train_step(MODEL, SGD, CONSTANT, WEIGHTS, one_device(), num_microbatches=0)
