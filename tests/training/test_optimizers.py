import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dsbs_jax.training.optimizers import OptimizerConfig, make_optimizer, make_schedule, per_layer

STEPS = 10


def random_tree(seed, layers=3, scale=1.0):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(scale * rng.normal(size=shape), jnp.float32)  # noqa: E731
    return {
        "embedding": draw(160, 130),
        "encoder": {"wi": draw(layers, 130, 140), "norm": draw(layers, 130)},
        "decoder": {"wi": draw(2, 130, 140)},
    }


SCANNED = {"embedding": 0, "encoder": {"wi": 3, "norm": 3}, "decoder": {"wi": 2}}


def unroll(tree):
    """Every layer a parameter of its own."""
    leaves, counts = jax.tree_util.tree_leaves_with_path(tree), jax.tree.leaves(SCANNED)
    return {
        f"{jax.tree_util.keystr(path)}{i}": array[i] if count else array
        for (path, array), count in zip(leaves, counts, strict=True)
        for i in range(max(count, 1))
    }


def run(optimizer, params, gradients):
    state = optimizer.init(params)
    for gradient in gradients:
        updates, state = jax.jit(optimizer.update)(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return params


@pytest.mark.parametrize("warmup", [0, 4])
def test_linear_is_the_references_schedule(warmup):
    schedule = make_schedule(OptimizerConfig(learning_rate=2e-3, warmup_steps=warmup), STEPS)
    # transformers' get_linear_schedule_with_warmup.
    expected = [
        2e-3 * (step / warmup if step < warmup else (STEPS - step) / (STEPS - warmup)) for step in range(STEPS + 1)
    ]
    np.testing.assert_allclose([schedule(step) for step in range(STEPS + 1)], expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "last"), [("constant", 1.0), ("cosine", 0.0), ("rsqrt", (4 / 10) ** 0.5), ("linear", 0.0)]
)
def test_schedules_peak_after_the_warm_up(name, last):
    schedule = make_schedule(OptimizerConfig(learning_rate=1.0, schedule=name, warmup_steps=4), STEPS)
    values = [float(schedule(step)) for step in range(STEPS + 1)]
    assert values[0] == 0.0
    assert values[2] == 0.5
    assert values[4] == max(values) == 1.0
    assert values[-1] == pytest.approx(last, abs=1e-6)


def test_rsqrt_without_warm_up():
    schedule = make_schedule(OptimizerConfig(learning_rate=1.0, schedule="rsqrt"), STEPS)
    np.testing.assert_allclose([schedule(step) for step in (0, 1, 4)], [1.0, 1.0, 0.5])


def test_warm_up_longer_than_the_run():
    with pytest.raises(ValueError, match="warmup_steps is 10 in a run of 10 steps"):
        make_schedule(OptimizerConfig(warmup_steps=10), STEPS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "adam"}, "name is 'adam'; it must be one of adamw, adafactor"),
        ({"schedule": "sqrt"}, "schedule is 'sqrt'"),
        ({"learning_rate": -1.0}, "learning_rate is -1.0; it must be at least 0"),
        ({"clip_norm": 0.0}, "clip_norm is 0.0; it must be above 0, or None"),
    ],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(**options)


@pytest.mark.parametrize("gradient_scale", [1e-4, 10.0])
def test_adamw_is_torchs(gradient_scale):
    torch = pytest.importorskip("torch")
    config = OptimizerConfig(learning_rate=1e-2, weight_decay=0.1)
    params = random_tree(0)
    gradients = [random_tree(seed, scale=gradient_scale) for seed in range(1, 5)]
    ours = run(make_optimizer(config, STEPS, SCANNED), params, gradients)

    theirs = {path: torch.nn.Parameter(torch.tensor(np.asarray(array))) for path, array in unroll(params).items()}
    # transformers' Trainer leaves norms out of the decay.
    groups = [
        {"params": [theirs[path] for path in theirs if "norm" not in path], "weight_decay": 0.1},
        {"params": [theirs[path] for path in theirs if "norm" in path], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.999), eps=1e-8)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (STEPS - step) / STEPS)
    for gradient in gradients:
        for path, array in unroll(gradient).items():
            theirs[path].grad = torch.tensor(np.asarray(array))
        torch.nn.utils.clip_grad_norm_(theirs.values(), 1.0)
        optimizer.step()
        schedule.step()
    for path, array in unroll(ours).items():
        # Float32, and torch adds 1e-6 to the norm it clips by.
        np.testing.assert_allclose(array, theirs[path].detach(), rtol=1e-5, atol=2e-6)


def test_first_moment_in_bfloat16():
    optimizer = make_optimizer(OptimizerConfig(moment_dtype="bfloat16"), STEPS)
    adam = optimizer.init({"w": jnp.zeros((2, 3))})[1]
    assert adam.mu["w"].dtype == jnp.bfloat16
    assert adam.nu["w"].dtype == jnp.float32


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_bfloat16_parameters_have_the_state_and_the_updates_of_float32_ones(name):
    config = OptimizerConfig(name, learning_rate=1e-2, weight_decay=0.1)
    optimizer = make_optimizer(config, STEPS, SCANNED)
    narrow = lambda tree: jax.tree.map(lambda array: array.astype(jnp.bfloat16), tree)  # noqa: E731
    wide = lambda tree: jax.tree.map(lambda array: array.astype(jnp.float32), tree)  # noqa: E731
    params, states = narrow(random_tree(0)), []
    for as_given in (narrow, wide):
        state = optimizer.init(as_given(params))
        for seed in (1, 2, 3):
            updates, state = jax.jit(optimizer.update)(as_given(narrow(random_tree(seed))), state, as_given(params))
        assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype("float32")}
        states.append((updates, state))
    assert "bfloat16" not in {leaf.dtype.name for leaf in jax.tree.leaves(states)}
    # One program after the widening; where it is fused differently, a float32's last bits differ.
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-9), *states)


@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.1}, {"clip_norm": None, "schedule": "constant"}])
def test_adafactor_treats_scanned_layers_one_by_one(options):
    config = OptimizerConfig("adafactor", learning_rate=1e-2, **options)
    params = random_tree(0)
    # Layers of very different scales, which one RMS over the stack would mix up.
    spread = lambda tree: jax.tree.map(  # noqa: E731
        lambda array, count: array * 10.0 ** jnp.arange(count).reshape(-1, *[1] * (array.ndim - 1)) if count else array,
        tree,
        SCANNED,
    )
    params, gradients = spread(params), [spread(random_tree(seed)) for seed in range(1, 4)]
    scanned = run(make_optimizer(config, STEPS, SCANNED), params, gradients)
    unrolled = run(make_optimizer(config, STEPS), unroll(params), [unroll(gradient) for gradient in gradients])
    for path, array in unroll(scanned).items():
        # The same float32 sums, grouped by another compiler pass. Parameters are of order 1, where a float32's last bit
        # is 1.2e-7: one that an update takes to near 0 may be off by two of those.
        np.testing.assert_allclose(array, unrolled[path], rtol=1e-5, atol=2.4e-7)
    as_one_tensor = run(make_optimizer(config, STEPS), params, gradients)
    assert not np.allclose(as_one_tensor["encoder"]["wi"], scanned["encoder"]["wi"], rtol=1e-3)


def test_adafactor_is_optaxs_where_nothing_is_scanned():
    config = OptimizerConfig("adafactor", learning_rate=1e-2, schedule="constant", clip_norm=None)
    params, gradients = unroll(random_tree(0)), [unroll(random_tree(seed)) for seed in range(1, 4)]
    ours = run(make_optimizer(config, STEPS), params, gradients)
    theirs = run(optax.adafactor(1e-2), params, gradients)
    for path, array in ours.items():
        # The learning rate is multiplied in one place later.
        np.testing.assert_allclose(array, theirs[path], rtol=1e-6, atol=1e-7)


def test_adafactor_keeps_no_full_second_moment_of_a_scanned_matrix():
    state = make_optimizer(OptimizerConfig("adafactor"), STEPS, SCANNED).init(random_tree(0))
    assert not [array for array in jax.tree.leaves(state) if array.shape == (3, 130, 140)]


def test_per_layer_without_stacks_is_the_transformation_itself():
    transformation = optax.clip_by_block_rms(1.0)
    assert per_layer(transformation, None) is transformation
