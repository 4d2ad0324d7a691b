"""What a run finds in its folder, and whether it may go on from there."""

import dataclasses
import json

import pytest

from dsbs_jax import schema
from dsbs_jax.data.prepare import StoreRequest
from dsbs_jax.data.vocabulary import Vocabulary
from dsbs_jax.models.config import T5Config
from dsbs_jax.teacher.noise import RationaleNoise
from dsbs_jax.training.config import TrainConfig
from dsbs_jax.training.folder import check_same

MODEL = T5Config(d_model=8, d_kv=2, d_ff=8, num_layers=1, num_decoder_layers=1, num_heads=4)


@pytest.mark.parametrize("change", [{"teacher": "errs_50"}, {"rationale_noise": RationaleNoise(wrong=0.5)}])
def test_a_run_goes_on_whatever_its_method_does_not_read(change):
    def configured(method: str, **changes) -> TrainConfig:
        data = StoreRequest("bestiary", Vocabulary("v"), teacher="errs_18")
        return TrainConfig("run", dataclasses.replace(data, **changes), schema.make_method(method), MODEL)

    def saved(method: str) -> dict:
        return json.loads(json.dumps(configured(method).to_json()))

    check_same(configured("standard", **change), saved("standard"), "run")
    with pytest.raises(ValueError, match=f"run holds a run with another configuration.*data.{next(iter(change))}"):
        check_same(configured("step_by_step", **change), saved("step_by_step"), "run")
