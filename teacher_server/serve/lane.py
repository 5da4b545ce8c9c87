"""Lanes: threads that each run the teacher on one device, batch after batch.

A GPU has one lane, a CPU one a core (`distill.teacher_server.teacher.forward_pass` says why). A
batch is padded to one of a few shapes that were warmed up, so what an image is answered does not
depend on what else is in its batch, and no shape is new once the server is ready.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Thread
from typing import Any

import numpy as np
import torch

from distill.errors import TeacherError, TeacherUnavailableError, first_line
from distill.events import Journal
from distill.models.devices import devices_named
from distill.targets.rows import TargetRows
from distill.teacher_server.serve.device import IN_FLIGHT, Answers, Buffers, Device
from distill.teacher_server.serve.queue import BatchTiming, InferResult, JobPart, WorkQueue, settle
from distill.teacher_server.teacher.teacher import Teacher
from distill.wire.refusal import Refused, unavailable

BATCH_SIZES = {"cuda": 256, "cpu": 16}
GROW_AFTER_S = 60.0  # after memory ran out; twice as long each time that it does so again
WARM_UPS = 2  # of each shape; the last one is timed


def devices_of(named: Sequence[str]) -> list[str]:
    """One device a lane: those named, or all GPUs, or the CPU once a core."""
    named = named or devices_named("auto")
    cores = torch.get_num_threads()
    return [each for name in named for each in [name] * (cores if name == "cpu" else 1)]


def shapes_up_to(most: int) -> tuple[int, ...]:
    """1, 2, 4 … and `most`: a batch is at most twice as large as it need be."""
    powers = [2**i for i in range(most.bit_length()) if 2**i < most]
    return (*powers, most)


@dataclass(frozen=True, eq=False)
class _Launched:
    parts: list[JobPart]
    formed_at: float
    shape: int
    buffers: Buffers | None
    batch: Any  # of the device
    error: Exception | None = None


class Lane:
    """on_batch: told of each batch's images, padded images and seconds.

    failure: why this lane answers no more. busy_since: when it began to wait for its device.
    """

    def __init__(
        self,
        teacher: Teacher,
        device: Device,
        queue: WorkQueue,
        *,
        journal: Journal,
        on_batch: Callable[[int, int, float], None] = lambda images, padded, seconds: None,
    ) -> None:
        self.teacher, self.queue, self.on_batch, self.journal = teacher, queue, on_batch, journal
        self.device, self.shapes = device, shapes_up_to(device.batch_size)
        self.seconds: dict[int, float] = {}  # a batch of each shape takes, measured by `warm_up`
        self.failure = ""
        self.busy_since: float | None = None
        self._on_gpu = teacher.device.type == "cuda"
        self._spare: dict[int, list[Buffers]] = {}
        self._warm_shapes: tuple[int, ...] = ()
        self._changed_at, self._grow_after_s = 0.0, GROW_AFTER_S
        self._launched: deque[_Launched] = deque()
        self._thread = Thread(target=self._run, name=f"lane-{teacher.device}", daemon=True)

    def warm_up(self) -> None:
        """Run every shape, the largest first.

        Raises:
            TeacherError: not even one image fits into memory, or its answers are no numbers.
            TeacherUnavailableError: the device was lost.
        """
        self.device.start()
        for shape in reversed(self.shapes):
            for _ in range(WARM_UPS):
                if self.queue.closed:  # the server is told to end meanwhile
                    return
                started = time.perf_counter()
                buffers = self._buffers(shape)
                answers = self.device.collect(self.device.launch(buffers, dense=True))
                if not np.isfinite(answers[0].rows.confidence).all():
                    raise TeacherError(
                        f"{self.teacher.identity.name}: NaN or Inf found in its answer to a black "
                        "image, expected numbers; check its weights, or pass --precision float32"
                    )
                self._spare[shape].append(buffers)
                self.seconds[shape] = time.perf_counter() - started
            self._keep_to_what_fits()

    def _keep_to_what_fits(self) -> None:
        """Where memory ran out, batches are smaller for a while."""
        most = self.device.batch_size
        if most < self.max_batch_size:
            self.shapes = tuple(shape for shape in self.shapes if shape <= most) or (most,)
            self._changed_at = self.queue.now()
            self._grow_after_s *= 2

    def _grow(self) -> None:
        """Try the next shape that fitted at the start: others may have needed the memory."""
        due = self.queue.now() - self._changed_at > self._grow_after_s
        if due and (larger := [n for n in self._warm_shapes if n > self.max_batch_size]):
            self.shapes = (*self.shapes, larger[0])
            self.device.batch_size = larger[0]
            self._changed_at = self.queue.now()
            self.journal.event("larger batches again", batch_size=larger[0])

    def start(self) -> None:
        """Answer what is in the queue, until it is closed."""
        self._warm_shapes, self._grow_after_s = self.shapes, GROW_AFTER_S / 2
        self._thread.start()

    def join(self, timeout_s: float) -> bool:
        """Wait until the last answer is given; whether it was."""
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    @property
    def max_batch_size(self) -> int:
        """Images in one batch."""
        return self.shapes[-1]

    @property
    def images_per_s(self) -> float:
        """At full batches."""
        return self.max_batch_size / self.seconds.get(self.max_batch_size, 1.0)

    def look_after(self) -> None:
        """A device that ended while nobody asked it has failed."""
        if not self.failure and self._thread.is_alive() and (text := self.device.ended()):
            self._fail([], TeacherUnavailableError(text))

    def _run(self) -> None:
        try:
            while not self.failure:
                if parts := self._next_batch():
                    self.busy_since = self.busy_since or time.monotonic()
                    self._launched.append(self._begin(parts))
                elif self._launched:
                    self._end(self._launched[0])
                    self._launched.popleft()
                else:  # closed
                    break
                self.busy_since = time.monotonic() if self._launched else None
        except Exception as error:  # a lane that dies must say so
            self._fail([], error)
        finally:
            for each in self._launched:
                self._settle_all(each.parts, unavailable(self.failure, "device_lost"))
            self.busy_since = None
            self.device.close()

    def _next_batch(self) -> list[JobPart]:
        """Whatever waits, once the device is idle; a full batch, while a GPU works on another."""
        if not self._launched:
            self._grow()
            return self.queue.take(self.max_batch_size)
        if self._on_gpu and len(self._launched) < IN_FLIGHT:
            return self.queue.take(self.max_batch_size, at_least=self.max_batch_size)
        return []

    def _begin(self, parts: list[JobPart]) -> _Launched:
        formed_at = self.queue.now()
        count = sum(map(len, parts))
        shape = next(shape for shape in self.shapes if shape >= count)
        dense = any(part.job.dense for part in parts)
        buffers = None
        try:
            buffers = self._filled(parts, shape)
            batch = self.device.launch(buffers, dense=dense)
        except Exception as error:  # on a GPU launching runs the model's own code
            return _Launched(parts, formed_at, shape, buffers, None, error)
        return _Launched(parts, formed_at, shape, buffers, batch)

    def _end(self, launched: _Launched) -> None:
        try:
            if launched.error:
                raise launched.error
            answers = self.device.collect(launched.batch)
        except TeacherUnavailableError as error:
            self._fail(launched.parts, error)
        except Exception as error:
            self._retry_alone(launched, error)
        else:
            infer_s = self.queue.now() - launched.formed_at
            self._hand_out(launched, answers, infer_s)
            self.on_batch(sum(map(len, launched.parts)), launched.shape, infer_s)
        finally:
            if launched.buffers:
                self._spare.setdefault(launched.shape, []).append(launched.buffers)
            self._keep_to_what_fits()

    def _hand_out(self, launched: _Launched, answers: Sequence[Answers], infer_s: float) -> None:
        """Give each part its rows; answers: more than one where memory ran out."""
        rows = TargetRows.concatenate([each.rows for each in answers])
        dense = [each.probs for each in answers if each.probs is not None]
        probs = np.concatenate(dense) if dense else None
        first = 0
        for part in launched.parts:
            last = first + len(part)
            part.job.put(
                part.start,
                InferResult(
                    rows=rows.select(np.arange(first, last)),
                    probs=probs[first:last] if part.job.dense and probs is not None else None,
                    timing=BatchTiming(
                        queue_s=launched.formed_at - part.job.put_at,
                        infer_s=infer_s,
                        batch_size=launched.shape,
                    ),
                ),
            )
            first = last

    def _retry_alone(self, launched: _Launched, error: Exception) -> None:
        """Something in this batch is poison: whose is it?"""
        text = first_line(error)[:500]
        self.journal.event("batch failed", level="warning", error=type(error).__name__, text=text)
        if len(launched.parts) == 1:
            self._settle_all(
                launched.parts,
                Refused(500, f"the teacher fails on these images ({first_line(error)})", "failed"),
            )
            return
        for part in launched.parts:
            if not self.failure:
                self._end(self._begin([part]))
            else:
                self._settle_all([part], unavailable(self.failure, "device_lost"))

    def _fail(self, parts: Sequence[JobPart], error: Exception) -> None:
        self.failure = first_line(error)
        self.journal.event("device failed", level="error", text=self.failure)
        self._settle_all(parts, unavailable(self.failure, "device_lost"))

    def _settle_all(self, parts: Sequence[JobPart], error: Refused) -> None:
        for part in parts:
            settle(part.job.answer, error)

    def _buffers(self, shape: int) -> Buffers:
        spare = self._spare.setdefault(shape, [])
        return spare.pop() if spare else self.device.buffers(shape)

    def _filled(self, parts: Sequence[JobPart], shape: int) -> Buffers:
        buffers = self._buffers(shape)
        for i, target in enumerate(buffers.pixels):
            first = 0
            for part in parts:
                target[first : first + len(part)] = part.job.pixels[i][part.start : part.stop]
                first += len(part)
            target[first:] = 0
        return buffers
