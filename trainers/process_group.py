"""The processes that train one student together, one a device; usually one process is all.

A launcher starts them and tells each its rank. Everything here is a no-op for a process alone.
"""

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count

import torch
import torch.distributed as dist
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from distill.errors import ConfigError, first_line
from distill.models.devices import pick_device

CONNECTIONS = ("gloo", "NCCL", "Connection", "collective")  # in what torch raises of a lost peer
SAY_EVERY_S = 10.0
ASK_EVERY_S, MOST_STEPS = 1.0, 50  # between two votes
PR_SET_PDEATHSIG = 1


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

    def from_leader(self, content: bytes | None) -> bytes | None:
        """What rank 0 has, on every process."""
        if self.size == 1:
            return content
        box = [content]
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]

    def synchronised(self, model: nn.Module, device: torch.device) -> nn.Module:
        """The model whose batch norms see the images of all processes.

        Raises:
            ConfigError: torch has such norms for GPUs alone.
        """
        if self.size == 1:
            return model
        if device.type != "cuda":
            raise ConfigError(
                f"sync_bn=true found for {self.size} processes on {device.type}, expected GPUs; "
                "leave it out: each process normalises by its own images"
            )
        together: nn.Module = convert_sync_batchnorm(model)
        return together

    def parallel(self, model: nn.Module, device: torch.device) -> nn.Module:
        """The model whose gradients are averaged over all processes."""
        if self.size == 1:
            return model
        ids = [device] if device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=ids)

    def share_buffers(self, model: nn.Module) -> None:
        """Give all processes the mean of theirs, as of running statistics of batch norm.

        What is counted, not measured, is the leader's.
        """
        if self.size > 1:
            for buffer in model.buffers():
                if buffer.is_floating_point():
                    dist.all_reduce(buffer)
                    buffer /= self.size
                else:
                    dist.broadcast(buffer, src=0)

    def gather(self, of_rank: Mapping[int, str]) -> dict[int, str]:
        """What all processes found, together."""
        if self.size == 1:
            return dict(of_rank)
        parts: list[dict[int, str]] = [{}] * self.size
        dist.all_gather_object(parts, dict(of_rank))
        return {key: value for part in parts for key, value in part.items()}


class Votes:
    """Whether any process says so: asked about once a second, as all must meet to answer.

    At which steps depends on times that they share, so that all ask at the same. step: the last one
    that is done.
    """

    def __init__(
        self, world: World, step: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._world, self._clock = world, clock
        self._next, self._last, self._since = step + 1, step, clock()

    def any(self, step: int, *flags: bool, now: bool) -> list[bool]:
        """Tell it of each flag; False where this step does not ask. now: ask, as all others do."""
        if self._world.size == 1:
            return [*flags]
        if step < self._next and not now:
            return [False] * len(flags)
        seconds = (self._clock() - self._since) / (step - self._last)
        *counts, total = self._world.sum(torch.tensor([*flags, seconds]).double()).tolist()
        steps = int(ASK_EVERY_S * self._world.size / max(total, 1e-9))
        self._next, self._last = step + max(1, min(MOST_STEPS, steps)), step
        self._since = self._clock()
        return [bool(count) for count in counts]


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
def join_process_group(
    environment: Mapping[str, str], say: Callable[[str], None] = lambda line: None
) -> Iterator[World]:
    """Join the processes that a launcher started with this one, if it did.

    environment: as torchrun sets it. say: told now and then while the others are waited for.

    Raises:
        ConfigError: the environment is torchrun's, but not whole; or others do not come.
    """
    if "RANK" not in environment or "WORLD_SIZE" not in environment:
        yield World()
        return
    try:
        world = World(int(environment["RANK"]), int(environment["WORLD_SIZE"]))
    except ValueError as error:
        raise _incomplete(error) from error
    if world.size > 1:
        _meet(world, environment, say)
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


def _meet(world: World, environment: Mapping[str, str], say: Callable[[str], None]) -> None:
    """Wait in a thread: in native code this one would hear no signal."""
    address, port = environment.get("MASTER_ADDR"), environment.get("MASTER_PORT")
    if not (address and port):
        raise _incomplete("MASTER_ADDR and MASTER_PORT are not")
    at = f" at {address}:{port}"
    failures: list[Exception] = []

    def join() -> None:
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        try:
            dist.init_process_group(backend)
        except Exception as error:  # torch raises whatever a network does
            failures.append(error)

    joining = threading.Thread(target=join, name="rendezvous", daemon=True)
    joining.start()
    for waited in count():
        joining.join(SAY_EVERY_S if waited else 1.0)
        if not joining.is_alive():
            break
        say(f"process {world.rank} of {world.size} waits for the others{at}")
    if failures:
        raise ConfigError(
            f"process {world.rank} of {world.size} cannot join the others{at} "
            f"({first_line(failures[0])}), expected all to start within some minutes; look at the "
            "others, and whether the port is open"
        ) from failures[0]


def _incomplete(found: object) -> ConfigError:
    return ConfigError(
        f"RANK and WORLD_SIZE found, but {found}; expected what torchrun sets: start with "
        "`torchrun --nproc-per-node N --no-python distill …`"
    )


def end_with_launcher() -> None:
    """Have this process stopped, as by SIGTERM, when the one that started it is gone.

    torchrun that is killed leaves its processes behind; they would train on for nobody. Linux alone
    can do this; elsewhere nothing is done.
    """
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)
