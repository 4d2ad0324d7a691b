"""What a run tells: averages, late reading, and lines that an interrupted run will write again."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from dsbs_jax.training.telemetry import LAG, NonFiniteLossError, Telemetry


def metrics(loss: float, finite: bool = True) -> dict:
    return {
        "loss": jnp.float32(loss),
        "task_loss": jnp.array([loss, 2 * loss]),
        "z_loss": jnp.float32(0),
        "grad_norm": jnp.float32(1),
        "learning_rate": jnp.float32(0.1),
        "finite": jnp.bool_(finite),
    }


def host(data_seconds: float = 0.0) -> dict[str, float]:
    return {"tokens": 10.0, "seconds/data": data_seconds}


def lines(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def start(folder, start_step: int = 0) -> Telemetry:
    return Telemetry(folder, start_step, 8, 4, ("label", "rationale"), progress=False)


def test_lines_are_means_over_their_period(tmp_path):
    with start(tmp_path) as telemetry:
        for step in range(1, 9):
            telemetry.train_step(step, metrics(float(step)), host())
        telemetry.flush()
        telemetry.event(8, {"validation/accuracy": 0.5})
    first, second, evaluation = lines(tmp_path)
    assert (first["step"], first["loss"], first["loss/rationale"]) == (4, 2.5, 5.0)
    assert (second["step"], second["loss"], second["learning_rate"]) == (8, 6.5, pytest.approx(0.1))
    assert evaluation == {"step": 8, "validation/accuracy": 0.5}
    # Rates are totals over totals: 40 tokens in the window's seconds.
    assert first["tokens_per_second"] == pytest.approx(40 / (4 * first["seconds/step"]), rel=0.02)


def test_a_step_that_is_not_finite_is_noticed_when_it_is_read(tmp_path):
    with start(tmp_path) as telemetry:
        telemetry.train_step(1, metrics(1.0), host())
        telemetry.train_step(2, metrics(np.nan, finite=False), host())
        for step in range(3, 2 + LAG):
            telemetry.train_step(step, metrics(np.nan, finite=False), host())
        with pytest.raises(NonFiniteLossError, match=r"Step 2: .*loss nan") as failure:
            telemetry.train_step(2 + LAG, metrics(np.nan, finite=False), host())
    assert failure.value.step == 2


def test_a_process_that_does_not_write_notices_the_same_step(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with start(None) as telemetry:
        telemetry.train_step(1, metrics(1.0), host())
        telemetry.event(1, {"validation/accuracy": 0.5})
        telemetry.train_step(2, metrics(np.nan, finite=False), host())
        with pytest.raises(NonFiniteLossError, match="Step 2"):
            telemetry.flush()
    assert list(tmp_path.iterdir()) == []


def test_a_resumed_run_drops_the_lines_it_will_write_again(tmp_path):
    with start(tmp_path) as telemetry:
        for step in range(1, 9):
            telemetry.train_step(step, metrics(1.0), host())
        telemetry.flush()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "lo')  # What a killed process was writing.
    with start(tmp_path, start_step=5):
        pass
    assert [line["step"] for line in lines(tmp_path)] == [4]
