import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsbs_jax.training.losses import LossConfig, multi_task_loss, task_counts, token_loss

BATCH, LENGTH, VOCAB = 3, 7, 50


@pytest.fixture
def tokens():
    rng = np.random.default_rng(0)
    logits = rng.normal(scale=4, size=(BATCH, LENGTH, VOCAB)).astype(np.float32)
    return logits, rng.integers(0, VOCAB, (BATCH, LENGTH)).astype(np.int32)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_and_its_gradient_are_torchs(tokens, smoothing):
    torch = pytest.importorskip("torch")
    logits, targets = tokens
    config = LossConfig(label_smoothing=smoothing)
    weights = np.random.default_rng(1).normal(size=(BATCH, LENGTH)).astype(np.float32)
    ours = token_loss(logits, targets, config)[0]
    gradient = jax.grad(lambda logits: jnp.sum(weights * token_loss(logits, targets, config)[0]))(logits)

    theirs_in = torch.tensor(logits, requires_grad=True)
    theirs = torch.nn.functional.cross_entropy(
        theirs_in.flatten(0, 1), torch.tensor(targets).long().flatten(), label_smoothing=smoothing, reduction="none"
    ).reshape(BATCH, LENGTH)
    (theirs * torch.tensor(weights)).sum().backward()
    # Two float32 implementations of sums over 50 classes.
    np.testing.assert_allclose(ours, theirs.detach(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(gradient, theirs_in.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("config", [LossConfig(z_loss=1e-2), LossConfig(z_loss=1e-2, label_smoothing=0.2)])
def test_gradient_is_that_of_the_formula(tokens, config):
    logits, targets = tokens

    def formula(logits):
        log_z = jax.nn.logsumexp(logits, axis=-1)
        q = (1 - config.label_smoothing) * jax.nn.one_hot(targets, VOCAB) + config.label_smoothing / VOCAB
        return -jnp.sum(q * jax.nn.log_softmax(logits), axis=-1), config.z_loss * log_z**2

    def weighed(loss):
        def total(logits):
            cross_entropy, z_loss = loss(logits)
            # Cotangents that differ between tokens and between the two outputs.
            return jnp.sum(cross_entropy * jnp.arange(1.0, LENGTH + 1)) - 3 * jnp.sum(z_loss)

        return jax.value_and_grad(total)(logits)

    value, gradient = weighed(lambda logits: token_loss(logits, targets, config))
    expected, expected_gradient = weighed(formula)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-4, atol=1e-5)


def test_large_logits_stay_finite(tokens):
    logits, targets = tokens
    value, gradient = jax.value_and_grad(lambda logits: jnp.sum(token_loss(logits, targets)[0]))(logits * 1e4)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_bfloat16_logits_get_float32_losses_and_bfloat16_gradients(tokens):
    logits, targets = tokens
    narrow = jnp.asarray(logits, jnp.bfloat16)
    loss = token_loss(narrow, targets)[0]
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, token_loss(narrow.astype(jnp.float32), targets)[0], rtol=1e-6)
    assert jax.grad(lambda logits: jnp.sum(token_loss(logits, targets)[0]))(narrow).dtype == jnp.bfloat16


def test_no_second_array_over_the_vocabulary():
    rows, width, vocab = 128, 16, 4096

    def loss(hidden, head, targets):
        return jnp.sum(token_loss(hidden @ head.T, targets)[0])

    arguments = (
        jax.ShapeDtypeStruct((rows, width), jnp.float32),
        jax.ShapeDtypeStruct((vocab, width), jnp.float32),
        jax.ShapeDtypeStruct((rows,), jnp.int32),
    )
    compiled = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(*arguments).compile()
    # The logits themselves, which their gradient overwrites, and small change.
    assert compiled.memory_analysis().temp_size_in_bytes < 1.1 * rows * vocab * 4


@pytest.mark.parametrize("options", [{"z_loss": -1.0}, {"label_smoothing": 1.0}, {"label_smoothing": -0.1}])
def test_options_that_make_no_sense(options):
    with pytest.raises(ValueError, match="z_loss must be at least 0, and label_smoothing must lie in"):
        LossConfig(**options)


def test_each_task_is_its_own_mean(tokens):
    logits, targets = tokens
    rng = np.random.default_rng(2)
    task_ids = rng.integers(0, 2, (BATCH, LENGTH)).astype(np.int32)
    weights = (rng.random((BATCH, LENGTH)) < 0.7).astype(np.float32)
    counts = task_counts(task_ids, weights, 3)
    loss, sums = multi_task_loss(logits, targets, task_ids, weights, (0.3, 2.0, 5.0), counts)

    cross_entropy = np.asarray(token_loss(logits, targets)[0])
    means = [cross_entropy[(task_ids == task) & (weights > 0)].mean() for task in (0, 1)]
    # Task 2 has no tokens and adds nothing.
    np.testing.assert_allclose(loss, 0.3 * means[0] + 2.0 * means[1], rtol=1e-6)
    np.testing.assert_allclose(sums.loss[:2] / counts[:2], means, rtol=1e-6)
    assert counts[2] == sums.loss[2] == 0


def test_parts_of_a_batch_add_up(tokens):
    logits, targets = tokens
    task_ids = (targets % 2).astype(np.int32)
    weights = np.ones((BATCH, LENGTH), np.float32)
    counts = task_counts(task_ids, weights, 2)
    config = LossConfig(z_loss=1e-3)
    whole, _ = multi_task_loss(logits, targets, task_ids, weights, (1.0, 1.0), counts, config)
    parts = [
        multi_task_loss(
            *(array[i : i + 1] for array in (logits, targets, task_ids, weights)), (1.0, 1.0), counts, config
        )
        for i in range(BATCH)
    ]
    np.testing.assert_allclose(sum(loss for loss, _ in parts), whole, rtol=1e-6)


def cqa_pairs(folder):
    """16 rows of CommonsenseQA with PaLM's rationales, as token ids: [(label pair, rationale pair)]."""
    from dsbs_jax.data.vocabulary import Vocabulary
    from dsbs_jax.teacher.parsers import PARSERS

    vocabulary = Vocabulary(str(folder / "vocab" / "spiece.model"))
    rows = (folder / "dss" / "cqa" / "cqa_train.json").read_text().splitlines()[:16]
    answers = json.loads((folder / "dss" / "cqa" / "llm" / "train_CoT_0.json").read_text())
    pairs = []
    for row, answer in zip(map(json.loads, rows), answers, strict=False):
        text = (
            row["question"]
            + "\nAnswer Choices:"
            + "".join(f"\n({letter}) {choice}" for letter, choice in zip("abcde", row["choices"], strict=False))
        )
        targets = ("predict: ", row["answer"]), ("explain: ", PARSERS["cqa"](answer).rationale)
        pairs.append([([*vocabulary.encode(a + text), 1], [*vocabulary.encode(b), 1]) for a, b in targets if b])
    return pairs


def generated_pairs():
    rng = np.random.default_rng(3)

    def draw(low, high):
        return [*rng.integers(2, 32000, rng.integers(low, high)).tolist(), 1]

    return [[(draw(4, 30), draw(1, 4)), (draw(4, 30), draw(5, 20))] for _ in range(8)]


def pack(pairs):
    """One row an example: label and rationale side by side."""
    lengths = [[sum(len(pair[side]) for pair in example) for example in pairs] for side in (0, 1)]
    batch = {
        f"{side}_{name}": np.zeros((len(pairs), max(of_side)), np.int32)
        for side, of_side in zip(("encoder", "decoder"), lengths, strict=True)
        for name in ("input_tokens", "segment_ids", "target_tokens", "task_ids")
    }
    for row, example in enumerate(pairs):
        at = [0, 0]
        for task, (inputs, targets) in enumerate(example):
            encoder = slice(at[0], at[0] + len(inputs))
            decoder = slice(at[1], at[1] + len(targets))
            batch["encoder_input_tokens"][row, encoder] = inputs
            batch["encoder_segment_ids"][row, encoder] = task + 1
            batch["decoder_input_tokens"][row, decoder] = [0, *targets[:-1]]
            batch["decoder_target_tokens"][row, decoder] = targets
            batch["decoder_segment_ids"][row, decoder] = task + 1
            batch["decoder_task_ids"][row, decoder] = task
            at = [encoder.stop, decoder.stop]
    return batch


@pytest.mark.parametrize("source", ["real", "generated"])
def test_one_packed_pass_is_the_references_two_passes(request, source, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from dsbs_jax.models.hf import config_from_huggingface, load_huggingface
    from dsbs_jax.models.t5 import T5

    pairs = cqa_pairs(request.getfixturevalue("shared_data")) if source == "real" else generated_pairs()
    alpha = 0.3
    torch.manual_seed(0)
    theirs = transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=32128, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0
        )
    ).eval()
    theirs.save_pretrained(tmp_path)

    def forward(task):
        chosen = [example[task] for example in pairs if task < len(example)]

        def pad(sequences, fill):
            width = max(map(len, sequences))
            return torch.tensor([sequence + [fill] * (width - len(sequence)) for sequence in sequences])

        inputs = pad([inputs for inputs, _ in chosen], 0)
        return theirs(
            input_ids=inputs, attention_mask=(inputs != 0).long(), labels=pad([targets for _, targets in chosen], -100)
        ).loss

    expected = alpha * forward(0) + (1 - alpha) * forward(1)
    expected.backward()

    config = config_from_huggingface(tmp_path)
    model, params, batch = T5(config), load_huggingface(tmp_path, config), pack(pairs)

    def loss(params):
        logits = model.apply(
            {"params": params},
            batch["encoder_input_tokens"],
            batch["decoder_input_tokens"],
            batch["encoder_segment_ids"],
            batch["decoder_segment_ids"],
        )
        weights = (batch["decoder_segment_ids"] > 0).astype(np.float32)
        counts = task_counts(batch["decoder_task_ids"], weights, 2)
        targets, task_ids = batch["decoder_target_tokens"], batch["decoder_task_ids"]
        return multi_task_loss(logits, targets, task_ids, weights, (alpha, 1 - alpha), counts)[0]

    value, gradients = jax.jit(jax.value_and_grad(loss))(params)
    assert abs(float(value) - expected.item()) < 1e-5
    # Float32 sums over hundreds of tokens in another order, against the largest entry.
    wanted = theirs.shared.weight.grad.numpy()
    np.testing.assert_allclose(gradients["embedding"], wanted, atol=1e-4 * np.abs(wanted).max())
