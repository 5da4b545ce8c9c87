"""The shard of this process: from options, torchrun, Slurm or Kubernetes."""

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

    def device(self, device_name: str) -> str:
        """`asked`, or the GPU of this worker's own where that is left open."""
        if device_name not in ("auto", "cuda") or self.local_rank is None:
            return device_name
        return f"{device_name}:{self.local_rank}"


def share_of_work(
    index: int | None, count: int | None, environment: Mapping[str, str]
) -> WorkerShare:
    """From --shard-index and --num-shards, or else from a launcher.

    Raises:
        ConfigError: one of the two is missing, or they contradict the launcher.
    """
    launched = _launched(environment)
    if launched:
        _require_agreement("--shard-index", index, launched.index, launched.launcher)
        _require_agreement("--num-shards", count, launched.count or None, launched.launcher)
    elif index is not None and count is not None:
        return WorkerShare(index=index, count=count, launcher="options")
    if launched is None:
        if index is None and count is None:
            return WorkerShare()
        missing = "--num-shards" if count is None else "--shard-index"
        raise ConfigError(
            f"one of --shard-index and --num-shards found, expected both or neither; pass "
            f"{missing} as well"
        )
    total = count if count is not None else launched.count
    if total < 1:
        raise ConfigError(
            f"shard {launched.index} of {launched.launcher} found, which does not say how many "
            "there are; pass --num-shards"
        )
    return WorkerShare(
        index=index if index is not None else launched.index,
        count=total,
        local_rank=launched.local_rank,
        launcher=launched.launcher,
    )


def _require_agreement(name: str, given: int | None, launched: int | None, launcher: str) -> None:
    if given is not None and launched is not None and given != launched:
        raise ConfigError(
            f"{name} {given} found, but {launcher} says {launched}; expected the same: leave the "
            "option out, or start the process without the launcher"
        )


def _launched(environment: Mapping[str, str]) -> WorkerShare | None:
    """count 0 where the launcher does not tell."""

    def number(name: str, default: int = 0) -> int:
        try:
            return int(environment.get(name, default))
        except ValueError as error:
            raise ConfigError(
                f"environment variable {name}={environment[name]!r} found, expected a number; pass "
                "--shard-index and --num-shards"
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
