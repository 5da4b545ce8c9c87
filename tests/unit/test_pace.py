"""Whether decoding or training limits a run."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from distill.data.loader import ViewBatch
from distill.trainers.training import pace
from distill.trainers.training.pace import watched


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(pace, "time", made)
    return made


def batches(clock: Clock, *, wait_s: float, count: int) -> Iterator[tuple[ViewBatch, int, Tensor]]:
    """Of 100 images that took a process 1 s."""
    for number in range(count):
        clock.now += wait_s if number else 60.0  # to begin takes long
        batch = ViewBatch(
            rows=[*range(100)], pixels=(), bad={}, proofs={}, read_s=0.6, render_s=0.4
        )
        yield batch, 100, torch.empty(0)


def said(clock: Clock, *, wait_s: float, step_s: float, processes: int, count: int) -> list[str]:
    lines: list[str] = []
    coming = batches(clock, wait_s=wait_s, count=count)
    for number, _ in enumerate(watched(coming, processes, lines.append)):
        clock.now += step_s if number else 30.0
    assert number == count - 1
    return lines


def test_training_limits(clock: Clock) -> None:
    assert said(clock, wait_s=0.01, step_s=0.39, processes=8, count=200) == [
        "speed: 250 images/s, limited by training; a process decodes 100 images/s, and 3 would be "
        "enough"
    ]


def test_decoding_limits(clock: Clock) -> None:
    assert said(clock, wait_s=0.3, step_s=0.2, processes=2, count=200) == [
        "speed: 200 images/s, limited by decoding, 60% of the time spent waiting; 2 processes of "
        "100 images/s each found, training at 500 images/s wants 6: --workers 6, smaller images, "
        "or `distill data prepare`"
    ]


def test_short_runs_say_nothing(clock: Clock) -> None:
    assert said(clock, wait_s=0.3, step_s=0.2, processes=2, count=30) == []
