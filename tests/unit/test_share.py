import pytest

from distill.cli.launcher import WorkerShare, share_of_work
from distill.errors import ConfigError
from teacher_server.precompute.options import Share


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
