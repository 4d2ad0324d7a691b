"""Parity with transformers' torch T5: logits and every gradient, through real safetensors files."""

import dataclasses

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from dsbs_jax.models.hf import config_from_huggingface, load_huggingface
from dsbs_jax.models.t5 import T5

# The bounds for float32; both sides add up the same numbers in another order.
LOGITS, GRADIENTS = 1e-4, 1e-3


def _torch_logits(model, batch):
    import torch

    inputs = torch.tensor(batch["inputs"], dtype=torch.long)
    shifted = torch.tensor(batch["shifted"], dtype=torch.long)
    return model(input_ids=inputs, attention_mask=(inputs != 0).long(), decoder_input_ids=shifted).logits


def _gradients_in_our_layout(model, config, folder):
    """Torch's gradients, saved as if they were weights and read by the loader."""
    from safetensors.numpy import save_file

    gradients = {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}
    save_file(gradients, folder / "model.safetensors")
    return load_huggingface(folder, config)


def test_logits_and_every_gradient_equal_torchs(torch_t5, padded_batch, tmp_path):
    import torch

    model = torch_t5.model
    model.zero_grad()
    expected = _torch_logits(model, padded_batch)
    torch_targets = torch.tensor(padded_batch["targets"], dtype=torch.long)
    torch.nn.functional.cross_entropy(expected.flatten(0, 1), torch_targets.flatten(), ignore_index=0).backward()

    config = config_from_huggingface(torch_t5.folder)
    params = load_huggingface(torch_t5.folder, config)
    weights = (padded_batch["targets"] != 0).astype(np.float32)

    def loss(params):
        logits = T5(config).apply({"params": params}, padded_batch["inputs"], padded_batch["shifted"])
        own = jnp.take_along_axis(jax.nn.log_softmax(logits), padded_batch["targets"][..., None], -1)[..., 0]
        return -jnp.sum(own * weights) / weights.sum(), logits

    (_, logits), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, expected.detach().numpy(), atol=LOGITS, rtol=0)

    wanted = flax.traverse_util.flatten_dict(_gradients_in_our_layout(model, config, tmp_path), sep="/")
    found = flax.traverse_util.flatten_dict(gradients, sep="/")
    assert found.keys() == wanted.keys()
    for name, gradient in found.items():
        scale = np.abs(wanted[name]).max()
        assert scale > 0, name
        np.testing.assert_allclose(gradient, wanted[name], atol=GRADIENTS * scale, rtol=0, err_msg=name)
        assert np.linalg.norm(gradient - wanted[name]) <= GRADIENTS * np.linalg.norm(wanted[name]), name


def test_bfloat16_stays_near_float32(torch_t5, padded_batch):
    config = config_from_huggingface(torch_t5.folder)
    params = load_huggingface(torch_t5.folder, config)
    expected, logits = (
        jax.jit(T5(dataclasses.replace(config, dtype=dtype)).apply)(
            {"params": params}, padded_batch["inputs"], padded_batch["shifted"]
        )
        for dtype in ("float32", "bfloat16")
    )
    assert logits.dtype == jnp.float32
    # bfloat16 has 8 bits of mantissa: 2^-8 for each of some 30 roundings along the residual stream, averaging out.
    assert np.linalg.norm(logits - expected) <= 0.02 * np.linalg.norm(expected)
