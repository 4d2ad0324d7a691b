"""The scripts for clusters, run with stand-ins for the clusters' own commands, which note what they are told."""

import json
import pathlib
import shlex
import stat
import subprocess
import sys

import pytest
import yaml

from dsbs_jax import cli
from dsbs_jax.sharding import cluster

SCRIPTS = pathlib.Path(__file__).resolve().parent.parent / "scripts"


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Puts a command on the PATH that appends its words to `tmp_path/calls` and then does `body` (bash)."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    def make(name, body="exit 0"):
        path = folder / name
        path.write_text(f'#!/usr/bin/env bash\n(printf "%s " {name} "$@"; echo) >>{tmp_path}/calls\n{body}\n')
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    return make


def run(script, *words, **environment):
    command = ["env", *(f"{name}={value}" for name, value in environment.items()), SCRIPTS / script, *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def calls(tmp_path):
    path = tmp_path / "calls"
    return [line.strip() for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.parametrize(("code", "again"), [(0, False), (1, False), (143, True)])
def test_slurm_starts_the_run_and_starts_it_again_after_it_was_stopped(stand_in, tmp_path, code, again):
    stand_in("srun", f"exit {code}")
    stand_in("scontrol")
    process = run("slurm_gpu.sh", "--gin_file", "models/mini", "--gin.LABEL_SOURCE='gold'", SLURM_JOB_ID="17")
    assert process.returncode == code, process.stderr
    started = "srun --kill-on-bad-exit=1 dsbs train --gin_file models/mini --gin.LABEL_SOURCE='gold'"
    assert calls(tmp_path) == [started, *(["scontrol requeue 17"] if again else [])]


def test_slurm_is_asked_for_one_process_a_node_and_for_time_to_save():
    text = (SCRIPTS / "slurm_gpu.sh").read_text()
    asked = dict(line.removeprefix("#SBATCH --").partition("=")[::2] for line in text.splitlines() if "#SBATCH" in line)
    assert asked["ntasks-per-node"] == "1"
    assert {"requeue", "gpus-per-node", "nodes"} <= asked.keys()
    # To the processes (no "B:", which would be this script alone), some minutes before the end.
    assert asked["signal"].startswith("TERM@")


TPU = {"PROJECT": "p", "ZONE": "z", "NAME": "n"}


def test_tpu_pod_says_the_same_to_every_host(stand_in, tmp_path):
    stand_in("gcloud")
    assert run("tpu_pod.sh", "create", **TPU, CREATE_OPTIONS="--spot --labels=a=b").returncode == 0
    words = ("train", "--gin_file", "models/mini", "--gin.LABEL_SOURCE='gold'")
    for step in (("install",), ("start", *words), ("log",), ("stop",), ("delete",)):
        process = run("tpu_pod.sh", *step, **TPU, SHARE="10.0.0.2:/share")
        assert process.returncode == 0, process.stderr
    text = (tmp_path / "calls").read_text()
    where = "n --project=p --zone=z"
    assert f"tpu-vm create {where} --accelerator-type=v5litepod-16" in text
    assert "--spot --labels=a=b" in text
    assert text.count(f"tpu-vm ssh {where} --worker=all --command=") == 4
    assert "n: --project=p --zone=z --worker=all" in text
    assert "mount -t nfs '10.0.0.2:/share' /mnt/dsbs" in text
    # What the hosts' shells will make of it is what was asked for.
    started = next(line for line in text.splitlines() if "DSBS_DISTRIBUTED=1" in line).partition("bin/dsbs ")[2]
    assert tuple(shlex.split(started.partition(" >>")[0])) == words
    assert text.rstrip().endswith(f"tpu-vm delete {where} --quiet")


def test_tpu_pod_names_what_it_can_do(stand_in, tmp_path):
    stand_in("gcloud")
    process = run("tpu_pod.sh", "strat", **TPU)
    assert process.returncode == 2
    assert "create | install | start VERB ... | log | stop | delete" in process.stderr
    assert "the Google Cloud project" in run("tpu_pod.sh", "create", ZONE="z").stderr
    assert calls(tmp_path) == []


def test_accelerator_benchmark_goes_on_after_a_size_that_does_not_fit(stand_in, tmp_path):
    stand_in("dsbs", """[[ "$*" == *t5_1_1_xl* ]] && exit 1; echo "{\\"size\\": \\"$4\\"}" """)
    output = tmp_path / "out.jsonl"
    process = run("bench_accelerator.sh", "--gin.DROPOUT_RATE=0.0", OUTPUT=output, SIZES="large xl xxl", ROWS_xxl="16")
    assert process.returncode == 1
    assert "Not measured: xl. Fewer rows (ROWS_xl=...)" in process.stderr
    lines = [json.loads(line)["size"] for line in output.read_text().splitlines()]
    assert lines == ["models/t5_1_1_large", "models/t5_1_1_xxl"]
    made = "bench step --gin_file models/t5_1_1_xxl --gin.BATCH_SIZE=16 --gin.T5Config.remat_policy='minimal'"
    assert calls(tmp_path)[-1] == f"dsbs {made} --gin.DROPOUT_RATE=0.0"


def test_gke_jobset_starts_as_many_processes_as_it_says(monkeypatch):
    jobset = yaml.safe_load((SCRIPTS / "gke_jobset.yaml").read_text())
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    (job,) = jobset["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    environment = {entry["name"]: entry["value"] for entry in container["env"]}
    assert job["replicas"] == 1
    assert spec["completionMode"] == "Indexed"
    assert spec["parallelism"] == spec["completions"] == int(environment["JAX_NUM_PROCESSES"])
    # A TPU v5e host has four chips.
    sizes = map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
    per_host = container["resources"]["limits"]["google.com/tpu"]
    assert next(sizes) * next(sizes) == per_host * spec["completions"]

    # Every pod finds its place, and the first one is where the address says.
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("JOB_COMPLETION_INDEX", str(spec["completions"] - 1))
    start = cluster.find()
    assert (start.count, start.process) == (spec["completions"], spec["completions"] - 1)
    name = jobset["metadata"]["name"]
    host, port = cluster.host_and_port(start.address)
    assert host == f"{name}-{job['name']}-0-0.{name}"
    assert port in {entry["containerPort"] for entry in container["ports"]}
    mounted = container["volumeMounts"][0]["mountPath"]
    assert environment["JAX_COMPILATION_CACHE_DIR"].startswith(mounted)

    assert container["command"][0] == "dsbs"
    arguments, rest = cli._parser().parse_known_args(container["command"][1:])
    assert arguments.run is cli._train
    assert arguments.model_dir.startswith(mounted)
    assert [word for word in rest if not word.startswith("--gin.")] == []


@pytest.mark.slow
def test_a_recipes_cost_counts_all_cells(environment):
    words = ["smoke", "--data_dir", "nowhere", "--instead", "bestiary", "--mfu", "0.5"]
    command = [sys.executable, SCRIPTS / "recipe_cost.py", *words]
    process = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert process.returncode == 0, process.stderr
    _, recipe, cells, steps, flops, hours, _ = map(str.strip, process.stdout.splitlines()[-1].split("|"))
    assert (recipe, cells, steps, hours) == ("`smoke`", "8", "48", "0.0")
    # 6 FLOPs a parameter and token: 0.3 million parameters, 32 questions of 10 to 30 tokens a step.
    assert 6 * 2e5 * 32 * 10 * 48 < float(flops) < 6 * 4e5 * 32 * 60 * 48
    process = subprocess.run(
        [*command, "--chip", "abacus"], capture_output=True, text=True, env=environment, timeout=300
    )
    assert process.stderr == "There is no data sheet of 'abacus' in dsbs_jax/sharding/chips.py.\n"
