"""Which batch a run gets, on simulated devices of many speeds: near the best, and soon found."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from distill.teacher_server.teacher.batch_size import SHARE_OF_RUN, best_batch
from distill.teacher_server.teacher.forward_pass import Forward


@dataclass
class Device:
    """Time passes when it is used. A host launches; the device computes one batch after another.

    launch_s: of the host, a batch. wave: views that take as long as one. memory: views of a batch
    that fit. first_s: of the first launch. lanes: devices of their own.
    """

    launch_s: float
    view_s: float
    wave: int = 1
    memory: int = 10**6
    first_s: float = 3.0
    lanes: int = 1
    now: float = 0.0
    ready: list[float] = field(default_factory=list)
    launched: int = 0

    def seconds(self, views: int) -> float:
        return -(-views // self.wave) * self.wave * self.view_s

    def rate(self, views: int) -> float:
        return views * min(1 / self.launch_s, self.lanes / self.seconds(views))

    def clock(self) -> float:
        return self.now


class Pass(Forward):
    """On such a device."""

    def __init__(self, device: Device, batch_size: int) -> None:
        self.device, self.batch_size, self.lanes = device, batch_size, device.lanes

    def close(self) -> None:
        pass

    def launch(self, pixels: Sequence[Tensor], **_: Any) -> Any:
        device = self.device
        self.batch_size = min(self.batch_size, device.memory)
        device.now += device.launch_s + (0 if device.launched else device.first_s)
        device.launched += 1
        device.ready = sorted(device.ready or [0.0] * device.lanes)
        ends = max(device.now, device.ready[0]) + device.seconds(len(pixels[0]))
        device.ready[0] = ends
        return ends

    def collect(self, launched: Any) -> list[Any]:
        self.device.now = max(self.device.now, launched)
        return []


def chosen(device: Device, **more: Any) -> int:
    asked = {"smallest": 64, "largest": 1024, "views": VIEWS} | more
    found = best_batch(
        lambda size: Pass(device, size),
        lambda size: [torch.empty(size)],
        clock=device.clock,
        **asked,
    )
    return found.batch_size


SIZES, VIEWS = (64, 128, 256, 512, 1024), 10**7


@pytest.mark.parametrize(
    "device",
    [
        Device(launch_s=0.018, view_s=1e-4),  # a large GPU, and a host that is slow to launch
        Device(launch_s=0.018, view_s=3e-4),
        Device(launch_s=0.018, view_s=2e-5),
        Device(launch_s=0.001, view_s=1e-3),
        Device(launch_s=0.005, view_s=2e-4, wave=132),
        Device(launch_s=0.01, view_s=5e-5, first_s=30),
        Device(launch_s=0.018, view_s=1e-4, memory=200),
        Device(launch_s=0.0001, view_s=0.05, lanes=4),
    ],
    ids=lambda device: f"{device.launch_s:g}+{device.view_s:g}",
)
def test_the_batch_is_within_5_percent_of_the_fastest(device: Device) -> None:
    best = max(device.rate(size) for size in SIZES if size <= device.memory)
    found = chosen(device)
    assert device.rate(found) >= 0.95 * best
    assert all(device.rate(size) < 0.98 * device.rate(found) for size in SIZES if size < found)
    spent = device.now - device.first_s
    assert spent < 4 * SHARE_OF_RUN * VIEWS / device.rate(found)


def test_a_short_run_is_not_measured_longer_than_it_lasts() -> None:
    device = Device(launch_s=0.018, view_s=1e-4)
    found = chosen(device, views=4096)
    assert device.now - device.first_s < 4096 / device.rate(found)


def test_memory_for_less_than_the_smallest_batch() -> None:
    device = Device(launch_s=0.01, view_s=1e-4, memory=20)
    assert chosen(device) == 20
