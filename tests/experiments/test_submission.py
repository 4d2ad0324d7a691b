"""A sweep's workers as jobs of a cluster."""

import os
import pathlib
import re
import signal
import sys
import time

import pytest

from dsbs_jax import cli
from dsbs_jax.experiments import results

submitit = pytest.importorskip("submitit", reason="needs the extra `slurm`")


@pytest.fixture
def cluster(tmp_path, monkeypatch) -> pathlib.Path:
    """A login node: `sbatch` keeps what it is given in the folder returned, and refuses the partition `closed`."""
    (tmp_path / "bin").mkdir()
    script = f"#!{sys.executable}\nimport pathlib, sys\ntext = pathlib.Path(sys.argv[1]).read_text()\n"
    script += "if 'partition=closed' in text:\n    sys.exit('sbatch: error: invalid partition specified: closed')\n"
    script += f"pathlib.Path({str(tmp_path)!r}, 'batch').write_text(text)\nprint('Submitted batch job 77')\n"
    for name in ("sbatch", "srun"):
        (tmp_path / "bin" / name).write_text(script)
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    return tmp_path


def test_an_array_of_workers_is_told_everything(cluster, capsys, monkeypatch):
    monkeypatch.chdir(cluster)
    (cluster / "mine.gin").write_text("include 'recipes/smoke'\nSubmitConfig.timeout_min = 90\n")
    words = ["sweep", "mine.gin", "--run", "--submit", "slurm", "--workers", "3", "--gin.TRAIN_STEPS=7"]
    words += ["--gin.SubmitConfig.partition='long'", "--gin.SubmitConfig.extra={'constraint': 'h100'}"]
    assert cli.main([*words, "--gin.SubmitConfig.setup=('module load cuda',)"]) == 0
    told = capsys.readouterr().out
    assert "Submitted 3 workers to slurm: 77_0, 77_1, 77_2." in told
    assert "scancel 77" in told
    assert f"dsbs sweep {cluster}/mine.gin --output {cluster}/sweeps/smoke" in told
    asked = (cluster / "batch").read_text()
    for flag in ("array=0-2%3", "partition=long", "time=90", "constraint=h100", "gpus-per-node=1", "signal=USR2@300"):
        assert f"#SBATCH --{flag}\n" in asked, asked
    assert "\nmodule load cuda\n" in asked
    assert f"{cluster}/sweeps/smoke/logs/%A_%a_%t_log.out" in asked
    for number in range(3):
        job = submitit.core.utils.DelayedSubmission.load(cluster / f"sweeps/smoke/logs/77_{number}_submitted.pkl")
        command = job.function._command
        assert command[:4] == [sys.executable, "-m", "dsbs_jax", "sweep"]
        assert command[4:7] == [str(cluster / "mine.gin"), "--output", str(cluster / "sweeps/smoke")]
        assert {"--run", "--gin.TRAIN_STEPS=7"} <= set(command)
        assert "--submit" not in command


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--list", "--submit", "slurm"), "give --run or --retry-failed with it"),
        (("--run", "--submit", "slurm"), "start it on a login node"),
        (("--run", "--submit", "local", "--gin.SubmitConfig.timeout_min=3"), "signal_delay_s is 300 seconds"),
        (("--run", "--submit", "local", "--gin.SubmitConfig.gpus_per_worker=-1"), "gpus_per_worker is -1"),
        (("--run", "--submit", "local", "--gin.SubmitConfig.gpus=1"), "'gpus'"),
    ],
)
def test_mistakes_end_in_one_sentence(words, sentence, refused, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    refused("recipes/smoke", "--output", str(tmp_path), *words, sentence=sentence)
    assert not any(tmp_path.iterdir())


def test_what_the_cluster_says_against_it_is_told(cluster, capsys):
    words = ["sweep", "recipes/smoke", "--output", str(cluster / "sweep"), "--run", "--submit", "slurm"]
    assert cli.main([*words, "--gin.SubmitConfig.partition='closed'"]) == 1
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("dsbs: slurm refuses the jobs: ")
    assert "invalid partition specified: closed" in told


def test_without_submitit_it_says_what_to_install(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert cli.main(["sweep", "recipes/smoke", "--output", str(tmp_path), "--run", "--submit", "local"]) == 1
    assert "pip install 'dsbs_jax[slurm]'" in capsys.readouterr().err


@pytest.mark.slow
def test_a_job_that_is_told_to_end_saves_and_goes_on_when_it_is_queued_again(dsbs, tmp_path):
    """A real submission, whose jobs outlive the command; preempted in the middle of a cell."""
    words = ["recipes/smoke", "--output", tmp_path / "sweep", "--gin.SweepConfig.methods=('methods/standard',)"]
    words += ["--gin.SweepConfig.fractions=(1.0,)", "--gin.TRAIN_STEPS=300", "--gin.EVAL_PERIOD=300"]
    words += ["--gin.SweepConfig.seeds=(0,)"]
    submitted = dsbs("sweep", *words, "--gin.LOG_PERIOD=10", "--run", "--submit", "local")
    assert submitted.returncode == 0, submitted.stderr
    job = re.search(r"Submitted 1 workers to local: (\d+)\. ", submitted.stdout)[1]
    log = tmp_path / "sweep" / "logs" / f"{job}_0_log.out"
    try:
        wait_for(lambda: "step 10/300" in log.read_text(), log)
        children = pathlib.Path(f"/proc/{job}/task/{job}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGUSR2)
        wait_for(lambda: "Exiting after successful completion" in log.read_text(), log)
    finally:
        if pathlib.Path(f"/proc/{job}").exists():
            os.kill(int(job), signal.SIGINT)
    told = log.read_text()
    assert re.search(
        r"Stopped by SIGTERM after step (\d+).*Requeued job.*Going on after step \1\..*finished, test accuracy",
        told,
        flags=re.DOTALL,
    )
    assert "Traceback" not in told
    assert [(row.status, row.steps) for row in results.read_rows(tmp_path / "sweep")] == [("finished", 300)]


def wait_for(there, log: pathlib.Path) -> None:
    deadline = time.monotonic() + 300
    while not (log.exists() and there()):
        assert time.monotonic() < deadline, log.read_text() if log.exists() else log
        time.sleep(0.05)
