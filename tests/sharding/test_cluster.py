import pytest

from dsbs_jax.sharding import cluster
from dsbs_jax.sharding.cluster import Start, find

PREFIXES = ("JAX_COORDINATOR", "JAX_NUM", "JAX_PROCESS", "SLURM_", "OMPI_", "TPU_", "MEGASCALE_", "JOB_", "DSBS_DIST")


@pytest.fixture(autouse=True)
def nothing_around(monkeypatch):
    for variable in list(cluster.os.environ):
        if variable.startswith(PREFIXES):
            monkeypatch.delenv(variable)


@pytest.fixture
def around(monkeypatch):
    def set_all(**variables: object) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, str(value))

    return set_all


def test_a_lone_process_stays_alone(around):
    assert find() is None
    around(JAX_COORDINATOR_ADDRESS="here:1", JAX_NUM_PROCESSES=1, JAX_PROCESS_ID=0)
    assert find() is None


def test_arguments_win_over_variables_and_variables_over_the_cluster(around):
    around(SLURM_STEP_ID=0, SLURM_STEP_NUM_TASKS=8)
    around(JAX_COORDINATOR_ADDRESS="there:1", JAX_NUM_PROCESSES=4, JAX_PROCESS_ID=3)
    assert find("here:2", 2, 1) == Start("here:2", 2, 1, None, "deactivate", "what was given")
    assert find("here:2") == Start("here:2", 4, 3, None, "deactivate", "what was given")
    assert find() == Start("there:1", 4, 3, None, "deactivate", "what was given")


def test_a_slurm_step_of_several_tasks(around):
    around(SLURM_STEP_ID=0, SLURM_STEP_NUM_TASKS=1)
    assert find() is None
    around(SLURM_STEP_NUM_TASKS=8, SLURM_STEP_NUM_NODES=2, SLURM_GPUS_ON_NODE=4)
    assert find() == Start(None, None, None, None, "slurm", "slurm")
    # What is given stands, the rest is SLURM's.
    assert find("here:2") == Start("here:2", None, None, None, "slurm", "slurm")


def test_one_slurm_task_on_each_host_has_all_its_accelerators(around):
    around(SLURM_STEP_ID=0, SLURM_STEP_NUM_TASKS=2, SLURM_STEP_NUM_NODES=2, SLURM_GPUS_ON_NODE=4)
    assert find() == Start(None, None, None, [0, 1, 2, 3], "slurm", "slurm")


def test_pods_of_an_indexed_job_number_themselves(around):
    around(JAX_COORDINATOR_ADDRESS="run-0-0.run:8476", JAX_NUM_PROCESSES=4, JOB_COMPLETION_INDEX=2)
    assert find() == Start("run-0-0.run:8476", 4, 2, None, "deactivate", "what was given")


def test_mpirun(around):
    around(OMPI_COMM_WORLD_SIZE=2, OMPI_COMM_WORLD_RANK=1)
    assert find() is None
    assert find("here:2") == Start("here:2", 2, 1, None, "deactivate", "what was given")
    around(OMPI_MCA_orte_hnp_uri="1531576320.0;tcp://10.96.0.1:34911")
    assert find() == Start(None, None, None, None, "ompi", "ompi")


def test_a_tpu_slice_of_several_hosts_on_gke(around):
    around(TPU_WORKER_HOSTNAMES="localhost")
    assert find() is None
    around(TPU_WORKER_HOSTNAMES="host-0.run,host-1.run")
    assert find() == Start(None, None, None, None, "gketpu", "gketpu")


def test_the_switch_asks_everything_or_nothing(around):
    around(DSBS_DISTRIBUTED=1)
    assert find() == Start(None, None, None, None, None, "the cluster")
    around(DSBS_DISTRIBUTED=0, SLURM_STEP_ID=0, SLURM_STEP_NUM_TASKS=8)
    assert find() is None
    assert find("here:2", 2, 1) is not None
    around(DSBS_DISTRIBUTED="yes")
    with pytest.raises(ValueError, match="DSBS_DISTRIBUTED is 'yes'"):
        find()


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (("here:2", None, None), "the number of processes None.*all three are needed"),
        ((None, 2, 0), "address is None.*all three are needed"),
        (("here", 2, 0), "'here'; it must be HOST:PORT"),
        (("here:port", 2, 0), "'here:port'; it must be HOST:PORT"),
        (("here:70000", 2, 0), "must be HOST:PORT"),
        (("here:2", 2, 2), "number is 2 of 2 processes: it must be one of 0 to 1"),
        (("here:2", 2, -1), "number is -1 of 2"),
    ],
)
def test_what_cannot_be_is_refused(given, sentence):
    with pytest.raises(ValueError, match=sentence):
        find(*given)


def test_a_variable_that_is_no_number(around):
    around(JAX_NUM_PROCESSES="two")
    with pytest.raises(ValueError, match="JAX_NUM_PROCESSES is 'two'"):
        find("here:2")


def test_several_processes_are_refused_where_one_can_run(around):
    cluster.refuse_several("dsbs predict")
    around(JAX_COORDINATOR_ADDRESS="there:1", JAX_NUM_PROCESSES=4, JAX_PROCESS_ID=3)
    with pytest.raises(ValueError, match="dsbs predict runs as one process"):
        cluster.refuse_several("dsbs predict")
