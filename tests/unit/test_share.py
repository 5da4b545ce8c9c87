import pytest

from distill.cli.launcher import WorkerShare, share_of_work, training_group
from distill.errors import ConfigError
from distill.teacher_server.precompute.options import Share


def of(environment: dict[str, str], index: int | None = None, count: int | None = None) -> object:
    share = share_of_work(index, count, environment)
    return share.index, share.count, share.local_rank, share.launcher


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (0, 1, None, "")),
        ({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, (3, 8, 1, "torchrun")),
        (
            {"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "6", "SLURM_LOCALID": "2"},
            (5, 6, 2, "Slurm"),
        ),
        # A batch script, which runs once, though the job has four tasks.
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, (0, 1, None, "")),
        (
            {
                "SLURM_ARRAY_TASK_ID": "7",
                "SLURM_ARRAY_TASK_COUNT": "4",
                "SLURM_ARRAY_TASK_MIN": "1",
                "SLURM_ARRAY_TASK_STEP": "2",
            },
            (3, 4, None, "Slurm"),
        ),
        (
            {
                "SLURM_ARRAY_TASK_ID": "1",
                "SLURM_ARRAY_TASK_COUNT": "2",
                "SLURM_PROCID": "2",
                "SLURM_STEP_NUM_TASKS": "3",
            },
            (5, 6, 0, "Slurm"),
        ),
    ],
)
def test_launchers_tell_the_share(environment: dict[str, str], expected: object) -> None:
    assert of(environment) == expected


def test_options_that_contradict_a_launcher_are_refused() -> None:
    launched = {"RANK": "3", "WORLD_SIZE": "8"}
    assert of({}, 1, 2) == (1, 2, None, "options")
    assert of(launched, 3, 8) == (3, 8, 0, "torchrun")
    with pytest.raises(ConfigError, match="--shard-index 1 found, but torchrun says 3"):
        of(launched, 1, 8)
    with pytest.raises(ConfigError, match="--num-shards 2 found, but torchrun says 8"):
        of(launched, count=2)


def test_kubernetes_tells_the_index_alone() -> None:
    indexed = {"JOB_COMPLETION_INDEX": "4"}
    assert of(indexed, count=16) == (4, 16, None, "Kubernetes")
    with pytest.raises(ConfigError, match="does not say how many there are; pass --num-shards"):
        of(indexed)


def test_half_a_share_is_refused() -> None:
    with pytest.raises(ConfigError, match="pass --shard-index as well"):
        of({}, count=4)
    with pytest.raises(ConfigError, match="RANK='x' found, expected a number"):
        of({"RANK": "x", "WORLD_SIZE": "8"})


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WORLD_SIZE": "2"}, r"WORLD_SIZE=2 found, but nothing that says which of them"),
        ({"WORLD_SIZE": "2", "MASTER_ADDR": "a"}, r"completionMode: Indexed"),
        ({"RANK": "0"}, r"RANK=0 found without WORLD_SIZE"),
        ({"RANK": "5", "WORLD_SIZE": "2"}, r"expected a RANK from 0 to below WORLD_SIZE"),
        ({"RANK": "0", "WORLD_SIZE": "-2"}, r"expected a RANK from 0 to below WORLD_SIZE"),
        ({"RANK": "a", "WORLD_SIZE": "2"}, r"RANK='a' found, expected a number"),
    ],
)
def test_half_a_launcher_is_an_error(environment: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        training_group(environment)


def test_alone_is_alone() -> None:
    assert training_group({}) == training_group({"WORLD_SIZE": "1"}) == {}


def test_shares_are_disjoint_and_cover_all() -> None:
    blocks = [0, 1, 2, 5, 6, 7, 9, 10]
    shares = [Share(index=i, count=3).of(blocks) for i in range(3)]
    assert sorted(block for share in shares for block in share) == blocks
    assert Share().of(blocks) == blocks
    with pytest.raises(ConfigError, match="shard index 3 of 3 found, expected 0 to 2"):
        Share(index=3, count=3)


def test_worker_takes_its_own_gpu_unless_told_otherwise() -> None:
    share = WorkerShare(local_rank=2)
    assert share.device("auto") == "auto:2"
    assert share.device("cpu") == "cpu"
    assert WorkerShare().device("auto") == "auto"


# -- training together -----------------------------------------------------------------------------

STEP = {"SLURM_JOB_ID": "5", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"}


def test_a_step_of_srun_meets_on_its_first_host() -> None:
    here = training_group(STEP)
    assert (here["RANK"], here["WORLD_SIZE"], here["MASTER_ADDR"]) == ("1", "2", "127.0.0.1")
    assert here["MASTER_PORT"] == training_group({**STEP, "SLURM_PROCID": "0"})["MASTER_PORT"]
    assert here["MASTER_PORT"] != training_group({**STEP, "SLURM_JOB_ID": "6"})["MASTER_PORT"]
    hosts = {
        "gpu[03-07,12],cpu1": "gpu03",
        "gpu7": "gpu7",
        "a1,b2": "a1",
        "a,b[1-2]": "a",
        "rack[2-3]-gpu": "rack2-gpu",
    }
    for short, first in hosts.items():
        assert training_group({**STEP, "SLURM_STEP_NODELIST": short})["MASTER_ADDR"] == first
    assert training_group({**STEP, "MASTER_ADDR": "there"})["MASTER_ADDR"] == "there"
    assert training_group({**STEP, "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}) == {}
    with pytest.raises(ConfigError, match=r"not where they meet, .* `torchrun --nproc-per-node N"):
        training_group({**STEP, "SLURM_STEP_NUM_NODES": "2"})


def test_mpirun_meets_on_one_machine_or_where_it_is_told() -> None:
    one = {
        "OMPI_COMM_WORLD_RANK": "1",
        "OMPI_COMM_WORLD_SIZE": "2",
        "OMPI_COMM_WORLD_LOCAL_RANK": "1",
        "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    }
    assert training_group(one)["MASTER_ADDR"] == "127.0.0.1"
    assert of(one) == (1, 2, 1, "mpirun")
    with pytest.raises(ConfigError, match="expected MASTER_ADDR"):
        training_group({**one, "OMPI_COMM_WORLD_LOCAL_SIZE": "1"})
    intel = {"PMI_RANK": "0", "PMI_SIZE": "4", "MPI_LOCALRANKID": "0", "MPI_LOCALNRANKS": "4"}
    assert training_group(intel)["WORLD_SIZE"] == "4"


def test_a_kubernetes_job_must_say_its_size() -> None:
    indexed = {"JOB_COMPLETION_INDEX": "0"}
    with pytest.raises(ConfigError, match="set WORLD_SIZE and MASTER_ADDR, or WORLD_SIZE=1"):
        training_group(indexed)
    assert training_group({**indexed, "WORLD_SIZE": "1"}) == {}
    with pytest.raises(ConfigError, match="expected MASTER_ADDR"):
        training_group({**indexed, "WORLD_SIZE": "2"})
    assert training_group({**indexed, "WORLD_SIZE": "2", "MASTER_ADDR": "a"})["RANK"] == "0"


def test_an_array_of_jobs_trains_apart() -> None:
    assert training_group({"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_COUNT": "4"}) == {}
