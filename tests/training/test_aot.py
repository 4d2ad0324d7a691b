"""Estimates against what is known: the state's real size, and FLOPs that can be counted by hand."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from dsbs_jax.models.config import T5Config
from dsbs_jax.models.flops import decode_flops, train_step_flops
from dsbs_jax.sharding.chips import Chip
from dsbs_jax.sharding.mesh import MeshConfig, make_mesh
from dsbs_jax.training import aot
from dsbs_jax.training.aot import AotConfig, estimate
from dsbs_jax.training.program import abstract_batch, training_program
from dsbs_jax.training.step import create_state

MODEL = T5Config(d_model=32, d_kv=8, d_ff=64, num_layers=3, num_decoder_layers=2, num_heads=8, vocab_size=256)
CONFIG = AotConfig(MODEL, mesh=MeshConfig(preset="fsdp"), rows=16, lengths=(24, 16), decode_rows=16, decode_length=12)
NAMED = (
    *("argument_bytes_per_chip", "temp_bytes_per_chip", "peak_bytes_per_chip", "hbm_bytes_per_chip", "compiled_flops"),
    *("model_flops", "flops_ratio", "collective_bytes", "roofline_step_seconds", "compile_seconds", "fits"),
)


@pytest.fixture(scope="module")
def trained():
    return estimate(CONFIG, jax.devices())


def test_arguments_are_what_a_device_really_holds(trained):
    mesh = make_mesh(CONFIG.mesh)
    program = training_program(MODEL, CONFIG.optimizer, CONFIG.steps, (1.0, 1.0), mesh)
    state = create_state(program.model, program.optimizer, 0, mesh)
    on_first = sum(array.addressable_shards[0].data.nbytes for array in jax.tree.leaves(state))
    batch = abstract_batch(mesh, CONFIG.rows, *CONFIG.lengths)
    # T5 does not read positions, and jit leaves out what nothing reads.
    read = [array for name, array in batch.items() if "positions" not in name]
    on_first += sum(np.prod(array.shape) * 4 / mesh.size for array in read)
    assert trained.argument_bytes_per_chip == on_first


def test_nothing_is_computed_twice_without_rematerialisation(trained):
    # At this size the lookup of relative positions, a product that model FLOPs leave out, still shows.
    assert 1.0 <= trained.flops_ratio < 1.05
    assert trained.model_flops == train_step_flops(MODEL, 16, 24, 16) / 8


@pytest.mark.slow
def test_full_rematerialisation_computes_the_layers_forward_pass_twice():
    full = dataclasses.replace(CONFIG, model=dataclasses.replace(MODEL, remat_policy="full"))
    found = estimate(full, jax.devices())
    assert 1.15 < found.flops_ratio < 4 / 3


def test_model_flops_by_hand():
    """6 FLOPs a parameter and token, where the tokens that meet a parameter are those of its stack."""
    one = dataclasses.replace(MODEL, num_layers=1, num_decoder_layers=1)
    attention, feed_forward = 4 * 32 * 64, 3 * 32 * 64
    encoder = 24 * (attention + feed_forward) + 24 * attention / 2
    decoder = 16 * (attention + attention / 2 + feed_forward + 32 * 256)
    scores = 24 * 24 * 64 * 2 + 16 * 16 * 64 * 2 + 16 * 24 * 64 * 2
    assert train_step_flops(one, 5, 24, 16) == 6 * 5 * (encoder + decoder + scores)


def test_decoding_counts_every_token_to_the_last():
    found = estimate(CONFIG, jax.devices(), "decode")
    assert found.lengths == (24, 12)
    assert found.model_flops == decode_flops(MODEL, 16, 24, 12) / 8
    assert 1.0 <= found.flops_ratio < 1.2


def test_rows_are_rounded_up_to_what_the_mesh_divides():
    found = estimate(dataclasses.replace(CONFIG, decode_rows=9), jax.devices(), "decode")
    assert found.rows == 16


def test_what_does_not_fit_says_how_it_could(monkeypatch):
    small = Chip("small", peak_flops=1e9, hbm_bytes=1e5, hbm_bandwidth=1e9, interconnect_bandwidth=1e9)
    monkeypatch.setattr(aot, "find_chip", lambda kind: small)
    found = estimate(dataclasses.replace(CONFIG, mesh=MeshConfig(), decode_rows=32), jax.devices(), "decode")
    assert found.fits is False
    for way in ("MESH='fsdp'", "dtype='bfloat16'", "remat_policy='full'", "MICROBATCHES=2", "name='adafactor'"):
        assert way in found.suggestion
    assert found.roofline_step_seconds == max(found.compiled_flops, found.collective_bytes) / 1e9
    assert "DOES NOT FIT" in aot.report([found], "here")


@pytest.mark.parametrize(
    ("message", "gigabytes"),
    # As libtpu 0.0.42 writes them.
    [
        ("Ran out of memory in memory space hbm. Used 20.52G of 15.75G hbm. Exceeded hbm capacity by 4.77G.", 20.52),
        (
            "Ran out of memory on HBM, the total memory required for HLO temporaries (49.81G) exceeds available HBM",
            49.81,
        ),
        ("Ran out of memory.", None),
    ],
)
def test_a_program_that_the_compiler_refuses_does_not_fit(monkeypatch, message, gigabytes):
    def refuse(*_, **__):
        raise jax.errors.JaxRuntimeError(f"RESOURCE_EXHAUSTED: {message}")

    monkeypatch.setattr(jax.stages.Lowered, "compile", refuse)
    found = estimate(CONFIG, jax.devices(), "decode")
    assert found.fits is False
    assert found.peak_bytes_per_chip == (None if gigabytes is None else pytest.approx(gigabytes * 1024**3))
    assert "remat_policy='full'" in found.suggestion
    assert "DOES NOT FIT" in aot.report([found], "here")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": 0}, "rows is 0"),
        ({"microbatches": 0}, "microbatches is 0"),
        ({"decode_rows": -1}, "decode_rows is -1"),
    ],
)
def test_options_that_make_no_sense(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **change)


def test_from_the_command_line(dsbs):
    flags = ("--gin_file", "models/tiny", "--devices", 16, "--platform", "cpu", "--gin.MeshConfig.model=2")
    done = dsbs("aot", *flags, "--gin.TASK_FEATURE_LENGTHS={'inputs': 32, 'targets': 16}", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["rows"] == 64
    for name in NAMED:
        assert name in found
        assert name in found["decode"]
    unknown = ("hbm_bytes_per_chip", "roofline_step_seconds", "fits")
    assert all((found[name] is None) == (name in unknown) for name in NAMED)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "Name what to compile for: --topology v5p:2x2x4, or --devices 16"),
        (("--devices", 6, "--gin.MeshConfig.model=4"), "asks for a multiple of 4 devices, but there are 6"),
        (("--devices", 8, "--gin.T5Config.attention='cudnn'", "--gin.DROPOUT_RATE=0.0"), "needs an NVIDIA GPU"),
        (("--topology", "v9:2x2"), "The TPU topology 'v9:2x2' cannot be compiled for"),
    ],
)
def test_what_cannot_be_compiled_is_one_sentence(dsbs, flags, message):
    done = dsbs("aot", "--gin_file", "models/tiny", *flags)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
