"""The processes that train one student together, one a device; usually one process is all.

torchrun starts them and tells each its rank. Everything here is a no-op for a process alone.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from distill.errors import ConfigError, first_line
from distill.models.creation import pick_device

CONNECTIONS = ("gloo", "NCCL", "Connection", "collective")  # in what torch raises of a lost peer


@dataclass(frozen=True)
class World:
    """rank: 0 to size - 1; rank 0 alone writes files."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The elementwise sum over all processes; `values` itself holds it."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def any(self, flag: bool) -> bool:
        """Whether any process says so. All must ask."""
        if self.size == 1:
            return flag
        return bool(self.sum(torch.tensor(int(flag))) > 0)

    def from_leader(self, content: bytes | None) -> bytes | None:
        """What rank 0 has, on every process."""
        if self.size == 1:
            return content
        box = [content]
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]

    def parallel(self, model: nn.Module, device: torch.device) -> nn.Module:
        """The model whose gradients are averaged over all processes."""
        if self.size == 1:
            return model
        ids = [device] if device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=ids)

    def share_buffers(self, model: nn.Module) -> None:
        """Give all processes the leader's, such as running statistics of batch norm."""
        if self.size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, src=0)

    def gather(self, of_rank: Mapping[int, str]) -> dict[int, str]:
        """What all processes found, together."""
        if self.size == 1:
            return dict(of_rank)
        parts: list[dict[int, str]] = [{}] * self.size
        dist.all_gather_object(parts, dict(of_rank))
        return {key: value for part in parts for key, value in part.items()}


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where a run runs, which does not change what it computes, but for rounding.

    workers: processes that decode images, for each device.
    """

    device: torch.device
    world: World = World()
    workers: int = 2
    compiled: bool = False


def device_of_rank(name: str) -> torch.device:
    """The device of this process, made the one that threads of torch's use."""
    device = pick_device(name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


@contextmanager
def join_process_group(environment: Mapping[str, str]) -> Iterator[World]:
    """Join the processes that torchrun started with this one, if it did.

    Raises:
        ConfigError: the environment is torchrun's, but not whole.
    """
    if "RANK" not in environment or "WORLD_SIZE" not in environment:
        yield World()
        return
    try:
        world = World(int(environment["RANK"]), int(environment["WORLD_SIZE"]))
        if world.size > 1:
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            dist.init_process_group(backend)
    except ValueError as error:
        raise ConfigError(
            f"RANK and WORLD_SIZE found, but {error}; expected what torchrun sets: start with "
            "`torchrun --nproc-per-node N --no-python distill …`"
        ) from error
    try:
        yield world
    except RuntimeError as error:
        if world.size > 1 and any(word in str(error) for word in CONNECTIONS):
            raise ConfigError(
                f"process {world.rank} of {world.size} lost the others ({first_line(error)}), "
                "expected all to keep running; the process that ended first reports the cause"
            ) from error
        raise
    finally:
        if world.size > 1:
            dist.destroy_process_group()
