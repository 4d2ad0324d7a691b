"""Randomly made torch models of odd shapes, and what transformers computes with them."""

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


@pytest.fixture(scope="session", params=VERSIONS)
def torch_t5(request: pytest.FixtureRequest, save_torch_t5, tmp_path_factory: pytest.TempPathFactory):
    """One model per version."""
    return save_torch_t5(request.param, tmp_path_factory.mktemp(request.param), **ODD_SHAPE)


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
