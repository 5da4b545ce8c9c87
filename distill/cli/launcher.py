"""Which share of the work is this process's: by options, torchrun, Slurm or Kubernetes."""

from collections.abc import Mapping
from dataclasses import dataclass

from distill.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class WorkerShare:
    """local_rank: which GPU of this machine, where the launcher says so. launcher: who said it."""

    index: int = 0
    count: int = 1
    local_rank: int | None = None
    launcher: str = ""

    def device(self, asked: str) -> str:
        """`asked`, or the GPU of this worker's own where that is left open."""
        if asked not in ("auto", "cuda") or self.local_rank is None:
            return asked
        return f"{asked}:{self.local_rank}"


def share_of_work(
    index: int | None, count: int | None, environment: Mapping[str, str]
) -> WorkerShare:
    """From --worker-index and --num-workers, and where they are left out from a launcher.

    Raises:
        ConfigError: one of the two is missing and nobody tells it.
    """
    if index is not None and count is not None:
        return WorkerShare(index=index, count=count, launcher="options")
    told = _launched(environment)
    if told is None:
        if index is None and count is None:
            return WorkerShare()
        missing = "--num-workers" if count is None else "--worker-index"
        raise ConfigError(
            f"one of --worker-index and --num-workers found, expected both or neither; pass "
            f"{missing} as well"
        )
    total = count if count is not None else told.count
    if total < 1:
        raise ConfigError(
            f"worker {told.index} of {told.launcher} found, which does not tell how many there are;"
            " pass --num-workers"
        )
    return WorkerShare(
        index=index if index is not None else told.index,
        count=total,
        local_rank=told.local_rank,
        launcher=told.launcher,
    )


def _launched(environment: Mapping[str, str]) -> WorkerShare | None:
    """count 0 where the launcher does not tell."""

    def number(name: str, default: int = 0) -> int:
        try:
            return int(environment.get(name, default))
        except ValueError as error:
            raise ConfigError(
                f"environment variable {name}={environment[name]!r} found, expected a number; pass "
                "--worker-index and --num-workers"
            ) from error

    if "RANK" in environment and "WORLD_SIZE" in environment:
        return WorkerShare(
            index=number("RANK"),
            count=number("WORLD_SIZE"),
            local_rank=number("LOCAL_RANK"),
            launcher="torchrun",
        )
    # Of a step that srun started: a batch script also has SLURM_NTASKS, but runs once.
    in_step = "SLURM_PROCID" in environment and "SLURM_STEP_NUM_TASKS" in environment
    if in_step or "SLURM_ARRAY_TASK_ID" in environment:
        tasks = number("SLURM_STEP_NUM_TASKS") if in_step else 1
        first, stride = number("SLURM_ARRAY_TASK_MIN"), number("SLURM_ARRAY_TASK_STEP", 1)
        place = (number("SLURM_ARRAY_TASK_ID", first) - first) // max(1, stride)
        return WorkerShare(
            index=place * tasks + (number("SLURM_PROCID") if in_step else 0),
            count=number("SLURM_ARRAY_TASK_COUNT", 1) * tasks,
            local_rank=number("SLURM_LOCALID") if in_step else None,
            launcher="Slurm",
        )
    if "JOB_COMPLETION_INDEX" in environment:
        return WorkerShare(index=number("JOB_COMPLETION_INDEX"), count=0, launcher="Kubernetes")
    return None
