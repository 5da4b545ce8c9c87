"""Whether decoding or training limits a run."""

import os
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


@pytest.mark.parametrize(("cores", "cure"), [(8, "--workers 6"), (4, "more cores")])
def test_decoding_limits(
    clock: Clock, cores: int, cure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(cores))
    assert said(clock, wait_s=0.3, step_s=0.2, processes=2, count=200) == [
        "speed: 200 images/s, limited by decoding, 60% of the time spent waiting; 2 processes "
        "found, which decode 100 images/s each, training would take 500: "
        f"{cure}, or smaller images (`distill data prepare`)"
    ]


def test_what_is_no_step_does_not_count(clock: Clock) -> None:
    """An epoch that is judged for minutes."""
    lines: list[str] = []
    for number, _ in enumerate(watched(batches(clock, wait_s=0.5, count=99), 2, lines.append)):
        clock.now += 300 if number == 9 else 0.01
    assert "limited by decoding" in lines[0]


def test_short_runs_say_nothing(clock: Clock) -> None:
    assert said(clock, wait_s=0.3, step_s=0.2, processes=2, count=30) == []
