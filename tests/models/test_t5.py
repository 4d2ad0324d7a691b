"""What must not depend on how the model computes: packing, scanning, rematerialisation; and where dropout is."""

import dataclasses
import functools

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsbs_jax.models.config import t5_config
from dsbs_jax.models.layers import Dropout, keep_mask, lookup
from dsbs_jax.models.stacking import stack_layers, unstack_layers
from dsbs_jax.models.t5 import T5

SHAPE = {
    "vocab_size": 53,
    "d_model": 18,
    "d_kv": 4,
    "d_ff": 22,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 3,
    "num_buckets": 8,
    "max_distance": 12,
}
CONFIGS = {version: t5_config(version, "small", **SHAPE) for version in ("v1_0", "v1_1")}
CONFIG = CONFIGS["v1_1"]


# Compiles 2.5 times faster; what it computes is parity's business (test_parity.py).
_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@functools.cache
def _params(config):
    tokens = jnp.ones((1, 2), jnp.int32)
    return nn.unbox(_jit(T5(config).init)(jax.random.key(0), tokens, tokens))["params"]


def _apply(config, *args, **kwargs):
    """`T5.apply` on the config's parameters, compiled as one."""
    return _jit(functools.partial(T5(config).apply, **kwargs))({"params": _params(config)}, *args)


def _tokens(seed, *shape):
    return np.random.default_rng(seed).integers(2, SHAPE["vocab_size"], shape).astype(np.int32)


@functools.cache
def _loss_and_gradients(config, dropout=False):
    """Of the scanned parameters, converted where the config's layers are unrolled."""
    params = _params(dataclasses.replace(config, scan_layers=True, remat_policy="none"))
    if not config.scan_layers:
        params = unstack_layers(params)
    inputs, targets = _tokens(1, 3, 15), _tokens(2, 3, 9)
    inputs[1, 10:] = 0

    @_jit
    def run(params):
        def loss(params):
            rngs = {"dropout": jax.random.key(3)} if dropout else {}
            logits = T5(config).apply({"params": params}, inputs, targets, deterministic=not dropout, rngs=rngs)
            return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - logits[..., 5]), logits

        return jax.value_and_grad(loss, has_aux=True)(params)

    return run(params)


def _assert_near(found, expected):
    """Float32 sums in another order: 1e-5 of the largest value."""
    for name, value in flax.traverse_util.flatten_dict(expected, sep="/").items():
        other = flax.traverse_util.flatten_dict(found, sep="/")[name]
        np.testing.assert_allclose(other, value, atol=1e-5 * max(1e-3, np.abs(value).max()), rtol=0, err_msg=name)


@pytest.mark.parametrize("version", CONFIGS)
def test_packed_equals_unpacked(version):
    config = CONFIGS[version]
    params = _params(config)
    apply = _jit(T5(config).apply)
    # Lengths beyond max_distance, so that far buckets count; the second row is packed in another order.
    lengths = [(17, 5), (4, 9), (21, 14)]
    examples = [(_tokens(i, n), _tokens(10 + i, m)) for i, (n, m) in enumerate(lengths)]
    rows = [[0, 1, 2], [2, 0]]
    inputs, input_segments = np.zeros((2, 45), np.int32), np.zeros((2, 45), np.int32)
    targets, target_segments = np.zeros((2, 30), np.int32), np.zeros((2, 30), np.int32)
    places = []
    for row, members in enumerate(rows):
        start, target_start = 0, 0
        for segment, number in enumerate(members, start=1):
            source, target = examples[number]
            inputs[row, start : start + len(source)] = source
            input_segments[row, start : start + len(source)] = segment
            # Decoder inputs start with 0 in every segment.
            targets[row, target_start + 1 : target_start + len(target)] = target[:-1]
            target_segments[row, target_start : target_start + len(target)] = segment
            places.append((number, row, slice(target_start, target_start + len(target))))
            start, target_start = start + len(source), target_start + len(target)
    packed = apply({"params": params}, inputs, targets, input_segments, target_segments)
    assert np.isfinite(packed).all()
    for number, row, place in places:
        source, target = examples[number]
        alone = apply({"params": params}, source[None], np.concatenate([[0], target[:-1]])[None].astype(np.int32))
        # The bound; logits are of order 1.
        np.testing.assert_allclose(packed[row, place], alone[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("version", CONFIGS)
def test_scanned_equals_unrolled(version):
    config = CONFIGS[version]
    (loss, logits), gradients = _loss_and_gradients(config)
    unrolled = dataclasses.replace(config, scan_layers=False)
    (other_loss, other_logits), other_gradients = _loss_and_gradients(unrolled)
    np.testing.assert_allclose(other_loss, loss, rtol=1e-6)
    np.testing.assert_allclose(other_logits, logits, atol=1e-5)
    _assert_near(stack_layers(other_gradients), gradients)


def test_stacking_is_the_inverse_of_unstacking_and_fits_the_model():
    params = _params(CONFIG)
    unrolled = unstack_layers(params)
    tokens = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    init = T5(dataclasses.replace(CONFIG, scan_layers=False)).init
    expected = nn.unbox(jax.eval_shape(init, jax.random.key(0), tokens, tokens))["params"]
    assert jax.tree.map(jnp.shape, unrolled) == jax.tree.map(jnp.shape, expected)
    jax.tree.map(np.testing.assert_array_equal, stack_layers(unrolled), params)


@pytest.mark.parametrize(
    ("policy", "scan_layers"),
    [("dots", True), ("minimal", True), ("offload", True), ("full", True), ("minimal", False)],
)
def test_rematerialisation_changes_nothing_even_under_dropout(policy, scan_layers):
    config = dataclasses.replace(CONFIG, scan_layers=scan_layers)
    (loss, _), gradients = _loss_and_gradients(config, dropout=True)
    remat = dataclasses.replace(config, remat_policy=policy)
    (other_loss, _), other_gradients = _loss_and_gradients(remat, dropout=True)
    np.testing.assert_allclose(other_loss, loss, rtol=1e-6)
    _assert_near(other_gradients, gradients)


def test_rematerialisation_recomputes():
    params = _params(CONFIG)

    def program(policy):
        config = dataclasses.replace(CONFIG, remat_policy=policy)
        tokens = _tokens(0, 2, 8)
        gradient = jax.grad(lambda params: T5(config).apply({"params": params}, tokens, tokens).sum())
        return str(jax.make_jaxpr(gradient)(params))

    def work(policy):
        return program(policy).count("dot_general")

    assert work("none") == work("dots") < work("minimal") == work("offload") < work("full")
    # What `minimal` keeps on the device waits in the host's memory.
    assert "host" in program("offload")
    assert "host" not in program("minimal")


def test_padding_changes_nothing():
    params = _params(CONFIG)
    inputs, targets = _tokens(0, 2, 7), _tokens(1, 2, 5)
    apply = _jit(T5(CONFIG).apply)
    expected = apply({"params": params}, inputs, targets)
    padded = apply({"params": params}, np.pad(inputs, ((0, 0), (0, 4))), np.pad(targets, ((0, 0), (0, 3))))
    np.testing.assert_allclose(padded[:, :5], expected, atol=1e-5)


def test_a_later_target_token_does_not_reach_an_earlier_logit():
    params = _params(CONFIG)
    inputs, targets = _tokens(0, 1, 7), _tokens(1, 1, 6)
    apply = _jit(T5(CONFIG).apply)
    expected = apply({"params": params}, inputs, targets)
    changed = apply({"params": params}, inputs, targets + (np.arange(6) == 3))
    np.testing.assert_array_equal(changed[:, :3], expected[:, :3])
    assert np.abs(changed[:, 3:] - expected[:, 3:]).max() > 1e-3


def test_every_parameter_names_its_axes():
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    known = {"vocab", "embed", "joined_kv", "heads", "mlp", "layers", "relpos_buckets"}
    for scan_layers in (True, False):
        config = dataclasses.replace(CONFIG, scan_layers=scan_layers)
        boxed = jax.eval_shape(T5(config).init, jax.random.key(0), tokens, tokens)["params"]
        for path, box in flax.traverse_util.flatten_dict(boxed, sep="/").items():
            assert isinstance(box, nn.LogicallyPartitioned), path
            assert len(box.names) == box.value.ndim, path
            assert set(box.names) <= known, path
            assert ("layers" in box.names) == (scan_layers and "/layers/" in path)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_initial_logits_are_of_order_one(dtype):
    for config in CONFIGS.values():
        config = dataclasses.replace(config, dtype=dtype)
        logits = _apply(config, _tokens(0, 4, 20), _tokens(1, 4, 12))
        assert logits.dtype == jnp.float32
        assert 0.3 < np.std(logits) < 3


def test_dropout_keeps_its_share_and_the_mean():
    x = jnp.ones((7, 31, 501))
    config = dataclasses.replace(CONFIG, dropout_rate=0.1)
    dropped = Dropout(config).apply({}, x, False, rngs={"dropout": jax.random.key(0)})
    # Four standard errors of a share of 0.1 among 108,717 elements.
    assert abs(np.mean(dropped == 0) - 0.1) < 4 * (0.1 * 0.9 / x.size) ** 0.5
    np.testing.assert_allclose(np.unique(dropped), [0, 1 / 0.9], rtol=1e-6)
    np.testing.assert_array_equal(Dropout(config).apply({}, x, True), x)


def test_keep_masks_are_independent_between_halves_rows_and_keys():
    mask = np.asarray(keep_mask(jax.random.key(0), 0.5, (2, 5, 4000)), np.float64) - 0.5
    rows = mask.reshape(10, 4000)
    correlation = rows @ rows.T / (0.25 * 4000)
    # Five standard errors of a correlation over 4,000 columns.
    assert np.abs(correlation - np.eye(10)).max() < 5 * 4000**-0.5
    other = np.asarray(keep_mask(jax.random.key(1), 0.5, (2, 5, 4000)), np.float64) - 0.5
    assert abs(np.mean(mask * other) / 0.25) < 5 * mask.size**-0.5


def test_dropout_is_random_only_when_asked():
    params = _params(CONFIG)
    tokens = _tokens(0, 2, 8)

    @_jit
    def run(key):
        return T5(CONFIG).apply({"params": params}, tokens, tokens, deterministic=False, rngs={"dropout": key})

    first, again, other = run(jax.random.key(0)), run(jax.random.key(0)), run(jax.random.key(1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-2


@pytest.mark.parametrize("version", CONFIGS)
def test_dropout_is_where_transformers_has_it(version, monkeypatch):
    torch = pytest.importorskip("torch", reason="needs the extra `parity`")
    transformers = pytest.importorskip("transformers")
    config = dataclasses.replace(CONFIGS[version], scan_layers=False)
    inputs, targets = _tokens(0, 2, 7), _tokens(1, 2, 5)

    ours = []

    def record(next_function, args, kwargs, context):
        if isinstance(context.module, Dropout) and context.method_name == "__call__":
            ours.append(args[0].shape)
        return next_function(*args, **kwargs)

    params = unstack_layers(_params(CONFIGS[version]))
    with nn.intercept_methods(record):
        jax.eval_shape(
            lambda key: T5(config).apply(
                {"params": params}, inputs, targets, deterministic=False, rngs={"dropout": key}
            ),
            jax.random.key(0),
        )

    theirs = []

    def dropout(x, *args, **kwargs):
        theirs.append(tuple(x.shape))
        return x

    monkeypatch.setattr(torch.nn.functional, "dropout", dropout)
    model = transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            **{name: SHAPE[name] for name in ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads")},
            num_decoder_layers=SHAPE["num_decoder_layers"],
            feed_forward_proj=config.feed_forward,
            attn_implementation="eager",
        )
    ).train()
    model(input_ids=torch.tensor(inputs).long(), decoder_input_ids=torch.tensor(targets).long())
    assert ours == theirs


def test_a_bfloat16_tables_gradient_is_summed_in_float32():
    """4,096 times 1/64 is 64. Summed in bfloat16 it stops where 1/64 is less than half of its last digit, at 4."""
    table = jnp.zeros((8, 2), jnp.bfloat16)
    tokens = jnp.full((16, 256), 3)
    gradient = jax.grad(lambda table: jnp.sum(lookup(table, tokens).astype(jnp.float32) / 64))(table)
    assert gradient.dtype == jnp.bfloat16
    np.testing.assert_array_equal(gradient[3].astype(np.float32), 64.0)
    assert jnp.count_nonzero(gradient) == 2
