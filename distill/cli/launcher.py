"""What a launcher says of this process: torchrun, Slurm, mpirun or Kubernetes.

A precompute takes its shard from it, a training joins the other processes.
"""

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

from distill.errors import ConfigError

FIRST_PORT, PORTS = 20_000, 10_000  # below those that Linux gives to clients


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


@dataclass(frozen=True)
class LauncherNames:
    """Variables in which a launcher tells a process what it is."""

    launcher: str
    index: str
    count: str
    local_rank: str


TORCH = LauncherNames("torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK")
# Of a step that srun started: a batch script also has SLURM_NTASKS, but runs once.
STEP = LauncherNames("Slurm", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
OPEN_MPI = LauncherNames(
    "mpirun", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"
)
PMI = LauncherNames("mpirun", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID")  # MPICH's and Intel's


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


def training_group(environment: Mapping[str, str]) -> dict[str, str]:
    """What torch needs to join the processes of one training, as torchrun sets it.

    From a step of srun or from mpirun; nothing where torchrun or the user has set it, or where the
    process is alone. An array of jobs is no group: each task of it trains alone.

    Raises:
        ConfigError: a launcher started several processes, and does not say where they meet.
    """
    launched = (
        _of_torch(environment)
        or _of(STEP, environment)
        or _of_mpi(environment)
        or _of_kubernetes(environment)
    )
    if launched is None and _number(environment, "WORLD_SIZE", 1) != 1:
        raise ConfigError(
            f"WORLD_SIZE={environment['WORLD_SIZE']} found, but nothing that says which of them "
            "this process is; expected RANK as well, or JOB_COMPLETION_INDEX of an indexed "
            "Kubernetes job (completionMode: Indexed); unset WORLD_SIZE to train alone"
        )
    if launched is None or launched.count == 1:
        return {}
    if launched.count < 1:
        raise ConfigError(
            f"process {launched.index} of a Kubernetes job found without WORLD_SIZE, expected the "
            "number of processes that train together: set WORLD_SIZE and MASTER_ADDR, or "
            "WORLD_SIZE=1 to train alone"
        )
    address = environment.get("MASTER_ADDR") or _meeting_place(launched, environment)
    if not address:
        raise ConfigError(
            f"process {launched.index} of {launched.count} by {launched.launcher} found, but not "
            "where they meet, expected MASTER_ADDR, the host of process 0; set it, or start one "
            "`torchrun --nproc-per-node N --no-python distill …` on each machine"
        )
    return {
        "RANK": str(launched.index),
        "WORLD_SIZE": str(launched.count),
        "LOCAL_RANK": str(launched.local_rank or 0),
        "MASTER_ADDR": address,
        "MASTER_PORT": environment.get("MASTER_PORT") or str(_port(environment)),
    }


def _of_torch(environment: Mapping[str, str]) -> WorkerShare | None:
    launched = _of(TORCH, environment)
    if launched is None and "RANK" in environment:
        raise ConfigError(
            f"RANK={environment['RANK']} found without WORLD_SIZE, expected both, as torchrun sets "
            "them; unset RANK to train alone"
        )
    if launched and not 0 <= launched.index < launched.count:
        raise ConfigError(
            f"RANK={launched.index} and WORLD_SIZE={launched.count} found, expected a RANK from 0 "
            "to below WORLD_SIZE; correct them, or unset both to train alone"
        )
    return launched


def _meeting_place(launched: WorkerShare, environment: Mapping[str, str]) -> str | None:
    """The host of process 0; None where nothing says it."""
    if launched.launcher == "Slurm":
        if hosts := environment.get("SLURM_STEP_NODELIST"):
            return _first_host(hosts)
        return "127.0.0.1" if environment.get("SLURM_STEP_NUM_NODES", "1") == "1" else None
    local = environment.get("OMPI_COMM_WORLD_LOCAL_SIZE") or environment.get("MPI_LOCALNRANKS")
    return "127.0.0.1" if local == str(launched.count) else None


def _first_host(hosts: str) -> str:
    """The first that Slurm's short form names: gpu[03-07,12],cpu1 gives gpu03."""
    head, bracket, rest = hosts.partition("[")
    if not bracket or "," in head:
        return head.partition(",")[0]
    inside, _, after = rest.partition("]")
    first = inside.partition(",")[0].partition("-")[0]
    return head + first + re.split(r"[,\[]", after)[0]


def _port(environment: Mapping[str, str]) -> int:
    """The same for all processes of a group, another for each group on a machine."""
    names = ("SLURM_JOB_ID", "SLURM_STEP_ID", "PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid")
    group = "/".join(environment.get(name, "") for name in names)
    return FIRST_PORT + zlib.crc32(group.encode()) % PORTS


def _launched(environment: Mapping[str, str]) -> WorkerShare | None:
    """count 0 where the launcher does not tell."""
    if launched := _of(TORCH, environment):
        return launched
    step = _of(STEP, environment)
    if step is None and "SLURM_ARRAY_TASK_ID" not in environment:
        return _of_mpi(environment) or _of_kubernetes(environment)
    inside = step or WorkerShare(launcher="Slurm")
    first = _number(environment, "SLURM_ARRAY_TASK_MIN")
    stride = max(1, _number(environment, "SLURM_ARRAY_TASK_STEP", 1))
    task = _number(environment, "SLURM_ARRAY_TASK_ID", first)
    count = _number(environment, "SLURM_ARRAY_TASK_COUNT", 1)
    last = _number(environment, "SLURM_ARRAY_TASK_MAX", first + (count - 1) * stride)
    place = (task - first) // stride
    if last != first + (count - 1) * stride:  # --array=3,7: some of a larger one, once more
        place, count = task, 0
    return replace(inside, index=place * inside.count + inside.index, count=count * inside.count)


def _of(names: LauncherNames, environment: Mapping[str, str]) -> WorkerShare | None:
    """What these variables say; None where index or count is not set."""
    if names.index not in environment or names.count not in environment:
        return None
    return WorkerShare(
        index=_number(environment, names.index),
        count=_number(environment, names.count),
        local_rank=_number(environment, names.local_rank),
        launcher=names.launcher,
    )


def _of_mpi(environment: Mapping[str, str]) -> WorkerShare | None:
    return _of(OPEN_MPI, environment) or _of(PMI, environment)


def _of_kubernetes(environment: Mapping[str, str]) -> WorkerShare | None:
    """An indexed job; how many processes it has, the user says."""
    if "JOB_COMPLETION_INDEX" not in environment:
        return None
    return WorkerShare(
        index=_number(environment, "JOB_COMPLETION_INDEX"),
        count=_number(environment, "WORLD_SIZE"),
        launcher="Kubernetes",
    )


def _number(environment: Mapping[str, str], name: str, default: int = 0) -> int:
    try:
        return int(environment.get(name, default))
    except ValueError as error:
        raise ConfigError(
            f"environment variable {name}={environment[name]!r} found, expected a number; correct "
            "or unset it"
        ) from error
