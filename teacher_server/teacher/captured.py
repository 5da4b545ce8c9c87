"""A forward pass captured once for each shape of its inputs (CUDA graphs): launched as one kernel.

Launching hundreds of kernels one by one takes Python longer than a small batch takes a GPU. A pass
that cannot be captured, or that comes out differently when it is replayed, runs as it is.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from distill.errors import first_line
from distill.events import Journal

Run = Callable[[Sequence[Tensor]], tuple[Tensor, ...]]
CLOSE = 2e-3  # logits of one batch by two choices of kernels; what a wrong graph gives is far off


@dataclass(frozen=True, eq=False)
class Capture:
    """replay: reads the inputs as they are then, and writes the outputs."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    replay: Callable[[], None]


class CapturedPasses:
    """run: queues kernels and waits for none. capture: as `capture_on_gpu`.

    A pass's outputs are overwritten by the next of its shape, so they are to be used on the stream
    that it was called on.
    """

    def __init__(
        self,
        run: Run,
        journal: Journal,
        capture: "Callable[[Run, Sequence[Tensor]], Capture] | None" = None,
    ) -> None:
        self._run, self._journal = run, journal
        self._capture = capture or CaptureOnGpu()
        self._by_shape: dict[tuple[torch.Size, ...], Capture | None] = {}

    def __call__(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """What `run` gives; the first call for a shape captures it."""
        shape = tuple(each.shape for each in inputs)
        if shape not in self._by_shape:
            expected = self._run(inputs)  # kernels are chosen and loaded outside of the capture
            self._by_shape[shape] = self._captured(inputs, expected)
            return expected
        captured = self._by_shape[shape]
        if captured is None:
            return self._run(inputs)
        return _replayed(captured, inputs)

    def _captured(self, inputs: Sequence[Tensor], expected: Sequence[Tensor]) -> Capture | None:
        count = len(inputs[0])
        try:
            captured = self._capture(self._run, inputs)
        except RuntimeError as error:
            self._say(count, first_line(error))
            return None
        found = _replayed(captured, inputs)
        if all(map(_is_close, found, expected)):
            return captured
        self._say(count, "its replay answers otherwise than the pass itself")
        return None

    def _say(self, count: int, text: str) -> None:
        self._journal.event("not captured", level="warning", batch_size=count, text=text)


class CaptureOnGpu:
    """All captures of one object share memory: no two of them may run at a time."""

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, run: Run, inputs: Sequence[Tensor]) -> Capture:
        """A CUDA graph of the pass.

        Raises:
            RuntimeError: the pass waits for the device, or there is no memory.
        """
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        own = tuple(each.clone() for each in inputs)
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            outputs = run(own)
        return Capture(own, outputs, graph.replay)


def _replayed(captured: Capture, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    for own, given in zip(captured.inputs, inputs, strict=True):
        own.copy_(given)
    captured.replay()
    return captured.outputs


def _is_close(found: Tensor, expected: Tensor) -> bool:
    return torch.allclose(found, expected, rtol=CLOSE, atol=CLOSE, equal_nan=True)
