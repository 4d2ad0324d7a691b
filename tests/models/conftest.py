"""Randomly made torch models of odd shapes, and what transformers computes with them."""

import dataclasses
import pathlib
from typing import Any

import numpy as np
import pytest

# Nothing is a multiple of anything: a transposed matrix or a swapped size cannot go unseen.
ODD_SHAPE = {
    "vocab_size": 101,
    "d_model": 26,
    "d_kv": 6,
    "d_ff": 38,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 5,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 20,
    "dropout_rate": 0.0,
}
VERSIONS = ("v1_0", "v1_1", "v1_1_tied")


@dataclasses.dataclass(frozen=True)
class TorchT5:
    """A transformers model and the folder it was saved to."""

    model: Any
    folder: pathlib.Path


def save_torch_model(version: str, folder: pathlib.Path, seed: int = 0, **overrides: Any) -> TorchT5:
    """A random model: `v1_0` (ReLU, tied, scaled), `v1_1` (gated, own head) or `v1_1_tied` (gated, tied, unscaled)."""
    torch = pytest.importorskip("torch", reason="parity needs the extra `parity` (torch, transformers)")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(seed)
    gated = version != "v1_0"
    config = transformers.T5Config(
        **(ODD_SHAPE | overrides),
        feed_forward_proj="gated-gelu" if gated else "relu",
        tie_word_embeddings=not gated,
        decoder_start_token_id=0,
    )
    model = transformers.T5ForConditionalGeneration(config).eval()
    for name, parameter in model.named_parameters():
        if "layer_norm" in name:
            parameter.data.uniform_(0.5, 1.5)
    if version == "v1_1":
        # Transformers 5 makes every new T5 tied; published v1.1 weights have a matrix of their own.
        model.lm_head.weight = torch.nn.Parameter(torch.randn(model.shared.weight.shape))
    model.save_pretrained(folder)
    return TorchT5(model, folder)


@pytest.fixture(scope="session", params=VERSIONS)
def torch_t5(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TorchT5:
    """One model per version."""
    return save_torch_model(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="session")
def padded_batch() -> dict[str, np.ndarray]:
    """Inputs and targets of different lengths, beyond the last bucket of relative positions; 0 is padding."""
    generator = np.random.default_rng(0)
    inputs, targets = np.zeros((3, 41), np.int32), np.zeros((3, 27), np.int32)
    for row, (input_length, target_length) in enumerate([(41, 9), (30, 27), (5, 1)]):
        inputs[row, :input_length] = generator.integers(2, 101, input_length)
        targets[row, :target_length] = generator.integers(2, 101, target_length)
    shifted = np.pad(targets, ((0, 0), (1, 0)))[:, :-1]
    return {"inputs": inputs, "targets": targets, "shifted": shifted}
