"""Captured passes: replayed where they come out the same, and run as they are where not."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distill.events import Event, Journal
from distill.teacher_server.teacher.captured import Capture, CapturedPasses, Run


class Recorded:
    """As a CUDA graph: the same memory, read and written by each replay. off: added to outputs."""

    def __init__(self, off: float = 0.0, error: str = "") -> None:
        self.off, self.error = off, error
        self.replays = 0

    def __call__(self, run: Run, inputs: Sequence[Tensor]) -> Capture:
        if self.error:
            raise RuntimeError(self.error)
        own = tuple(each.clone() for each in inputs)
        outputs = run(own)

        @torch.inference_mode()
        def replay() -> None:
            self.replays += 1
            for mine, new in zip(outputs, run(own), strict=True):
                mine.copy_(new + self.off)

        return Capture(own, outputs, replay)


def passes(recorded: Recorded) -> tuple[CapturedPasses, list[Event], list[int]]:
    """Of a layer; the sizes of the batches that it runs."""
    events: list[Event] = []
    layer, ran = nn.Linear(3, 2), list[int]()

    @torch.inference_mode()
    def run(inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        ran.append(len(inputs[0]))
        return layer(inputs[0]), inputs[-1].sum(1)

    return CapturedPasses(run, Journal(events.append), recorded), events, ran


def batch(count: int) -> list[Tensor]:
    return [torch.randn(count, 3), torch.randn(count, 5)]


def test_each_shape_is_captured_once_and_answers_what_it_is_given() -> None:
    recorded = Recorded()
    captured, events, ran = passes(recorded)
    for count in (4, 2, 4, 2, 4):
        given = batch(count)
        for found, expected in zip(captured(given), captured._run(given), strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert recorded.replays == 2 + 3  # the capture is tried, too
    assert sorted(set(ran)) == [2, 4]
    assert not events


@pytest.mark.parametrize(
    ("recorded", "text"),
    [
        (Recorded(off=0.1), "answers otherwise"),
        (Recorded(error="operation not permitted when stream is capturing"), "not permitted"),
    ],
)
def test_what_cannot_be_captured_runs_as_it_is(recorded: Recorded, text: str) -> None:
    captured, events, _ = passes(recorded)
    for count in (4, 4, 2):
        given: Any = batch(count)
        for found, expected in zip(captured(given), captured._run(given), strict=True):
            torch.testing.assert_close(found, expected)
    assert [event["batch_size"] for event in events] == [4, 2]
    assert all(text in event["text"] and event["level"] == "warning" for event in events)
