"""What a lane runs its batches on: the teacher in this process, or in a process of its own.

On a GPU a teacher has a process of its own: launching a batch's kernels takes Python several
milliseconds, and several times as long beside threads that decode and a loop that answers. Pixels
lie in memory that both processes see; only answers go through a pipe.
"""

import mmap
import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.reduction import DupFd
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

from distill.errors import DistillError, TeacherError, TeacherUnavailableError, first_line
from distill.events import Event, Journal
from distill.process_pool import end_with_parent
from distill.targets.encoding import EncodingSpec
from distill.targets.rows import TargetRows
from distill.teacher_server.teacher.forward_pass import Encoded, Forward
from distill.teacher_server.teacher.teacher import Teacher

IN_FLIGHT = 2  # batches: one that runs, and one behind it
BUFFERS = IN_FLIGHT + 2  # of each shape: one that is filled, and one of a part that is tried alone
ENDS_WITHIN_S = 5.0


@dataclass(frozen=True, eq=False)
class Answers:
    """To the images of a batch, or of a part of it. probs: [n, ΣN_k] FP16, where asked for."""

    rows: TargetRows
    probs: NDArray[np.float16] | None

    @classmethod
    def of(cls, encoded: Encoded) -> "Answers":
        """As arrays."""
        probs = None if encoded.dense is None else encoded.dense.numpy()
        return cls(encoded.sparse.to_rows(), probs)


@dataclass(frozen=True, eq=False)
class Buffers:
    """pixels: [shape, height, width, 3] for each of the teacher's sizes. place: where they lie."""

    pixels: list[NDArray[np.uint8]]
    place: int = 0


@runtime_checkable
class Device(Protocol):
    """batch_size: most images in one pass; halved where memory runs out, and may be set again."""

    batch_size: int

    def start(self) -> None:
        """Be ready to launch.

        Raises:
            TeacherError: the teacher cannot be had there.
        """
        ...

    def buffers(self, shape: int) -> Buffers:
        """To be filled and launched, again and again; few of each shape."""
        ...

    def launch(self, buffers: Buffers, *, dense: bool) -> Any:
        """Begin to answer; the buffers must not change until `collect`."""
        ...

    def collect(self, launched: Any) -> list[Answers]:
        """Wait for the answers.

        Raises:
            TeacherError: not even one image fits into memory.
            TeacherUnavailableError: the device was lost.
        """
        ...

    def ended(self) -> str:
        """Why it cannot answer any more, before anything is launched; empty while it can."""
        ...

    def close(self) -> None:
        """Let it go."""
        ...


class InThisProcess:
    """See `Device`."""

    def __init__(
        self, teacher: Teacher, spec: EncodingSpec, *, batch_size: int, journal: Journal
    ) -> None:
        self.teacher = teacher
        self._pinned = teacher.device.type == "cuda"
        self._forward = _forward_of(teacher, spec, batch_size, journal)

    @property
    def batch_size(self) -> int:
        """See `Device`."""
        return self._forward.batch_size

    @batch_size.setter
    def batch_size(self, images: int) -> None:
        self._forward.batch_size = images

    def start(self) -> None:
        """See `Device`."""

    def buffers(self, shape: int) -> Buffers:
        """See `Device`."""
        shapes = [(shape, *size, 3) for size in self.teacher.sizes]
        made = [torch.zeros(each, dtype=torch.uint8, pin_memory=self._pinned) for each in shapes]
        return Buffers([each.numpy() for each in made])

    def launch(self, buffers: Buffers, *, dense: bool) -> "Future[list[Encoded]]":
        """See `Device`."""
        return _launched(self._forward, buffers.pixels, dense)

    def collect(self, launched: "Future[list[Encoded]]") -> list[Answers]:
        """See `Device`."""
        return [Answers.of(part) for part in self._forward.collect(launched)]

    def ended(self) -> str:
        """See `Device`."""
        return ""

    def close(self) -> None:
        """See `Device`."""
        self._forward.close()


def _forward_of(teacher: Teacher, spec: EncodingSpec, batch_size: int, journal: Journal) -> Forward:
    return Forward(teacher, spec, batch_size=batch_size, captured=True, lanes=1, journal=journal)


def _launched(
    forward: Forward, pixels: Sequence[NDArray[np.uint8]], dense: bool
) -> "Future[list[Encoded]]":
    tensors = [torch.from_numpy(each).permute(0, 3, 1, 2) for each in pixels]
    return forward.launch(tensors, dense=dense)


class InItsProcess:
    """See `Device`. make: the same teacher, in the process; batch_size: also the most ever."""

    def __init__(
        self,
        teacher: Teacher,
        make: Callable[[], Teacher],
        spec: EncodingSpec,
        *,
        shapes: Sequence[int],
        journal: Journal,
    ) -> None:
        self.teacher, self.batch_size, self.journal = teacher, shapes[-1], journal
        self._image_bytes = sum(height * width * 3 for height, width in teacher.sizes)
        size = BUFFERS * sum(shapes) * self._image_bytes
        number = os.memfd_create("distill-pixels")  # gone with the last process that has it
        os.truncate(number, size)
        self._memory = mmap.mmap(number, size)
        self._free = 0
        self._next, self._arrived = 0, dict[int, _Reply]()
        self._pipe, theirs = get_context("forkserver").Pipe()
        self._process = get_context("forkserver").Process(
            target=_work,
            args=(make, spec, shapes[-1], teacher.sizes, DupFd(number), size, theirs),
            name=f"lane-{teacher.device}",
            daemon=True,
        )
        self._process.start()
        theirs.close()
        os.close(number)

    def start(self) -> None:
        """See `Device`. The process has been loading its teacher meanwhile."""
        reply = self._receive()
        if reply.error:
            raise TeacherError(reply.text)
        if reply.text != self.teacher.identity.fingerprint:
            raise TeacherError(
                f"{self.teacher.identity.name}: another teacher found in the process of "
                f"{self.teacher.device}, expected the same; its weights may have changed, so start "
                "the server anew"
            )

    def buffers(self, shape: int) -> Buffers:
        """See `Device`."""
        place, self._free = self._free, self._free + shape * self._image_bytes
        return Buffers(_views(self._memory, place, shape, self.teacher.sizes), place)

    def launch(self, buffers: Buffers, *, dense: bool) -> int:
        """See `Device`."""
        number, self._next = self._next, self._next + 1
        shape = len(buffers.pixels[0])
        try:
            self._pipe.send(_Batch(number, buffers.place, shape, dense, self.batch_size))
        except OSError as error:
            raise self._ended() from error
        return number

    def collect(self, launched: int) -> list[Answers]:
        """See `Device`."""
        while launched not in self._arrived:
            reply = self._receive()
            self._arrived[reply.number] = reply
        reply = self._arrived.pop(launched)
        self.batch_size = min(self.batch_size, reply.batch_size)
        for event in reply.events:
            self.journal.pass_on(event)
        if reply.error:
            raise ERRORS.get(reply.error, RuntimeError)(reply.text)
        return list(reply.answers)

    def ended(self) -> str:
        """See `Device`."""
        return "" if self._process.is_alive() else str(self._ended())

    def close(self) -> None:
        """See `Device`."""
        with suppress(OSError):  # it has ended
            self._pipe.send(None)
        self._process.join(ENDS_WITHIN_S)
        self._process.kill()
        self._pipe.close()

    def _receive(self) -> "_Reply":
        try:
            reply: _Reply = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise self._ended() from error
        return reply

    def _ended(self) -> TeacherUnavailableError:
        self._process.join(1)
        return TeacherUnavailableError(
            f"the process of {self.teacher.device} ended (exit code {self._process.exitcode}), "
            "expected it to go on; start the server anew"
        )


ERRORS: dict[str, type[Exception]] = {
    "TeacherError": TeacherError,
    "TeacherUnavailableError": TeacherUnavailableError,
}


@dataclass(frozen=True)
class _Batch:
    """To be run. most: images in one pass."""

    number: int
    place: int
    shape: int
    dense: bool
    most: int


@dataclass(frozen=True)
class _Reply:
    """error: the class of what went wrong; the first reply tells the fingerprint as its text.

    events: of the process's journal, since the last reply.
    """

    number: int
    batch_size: int
    error: str = ""
    text: str = ""
    answers: tuple[Answers, ...] = ()
    events: tuple[Event, ...] = ()


def _views(
    memory: mmap.mmap, place: int, shape: int, sizes: Sequence[tuple[int, int]]
) -> list[NDArray[np.uint8]]:
    views = []
    for height, width in sizes:
        count = shape * height * width * 3
        view = np.frombuffer(memory, np.uint8, count, place)
        views.append(view.reshape(shape, height, width, 3))
        place += count
    return views


def _work(
    make: Callable[[], Teacher],
    spec: EncodingSpec,
    batch_size: int,
    sizes: Sequence[tuple[int, int]],
    number: Any,
    size: int,
    pipe: Connection,
) -> None:
    """The process: launches what comes while it has room, and answers in that order."""
    end_with_parent()
    try:
        teacher = make()
    except DistillError as error:
        pipe.send(_Reply(0, 0, type(error).__name__, str(error)))
        return
    pipe.send(_Reply(0, batch_size, text=teacher.identity.fingerprint))
    memory = mmap.mmap(number.detach(), size)
    launched: deque[tuple[int, Future[list[Encoded]]]] = deque()
    events: list[Event] = []
    with _forward_of(teacher, spec, batch_size, Journal(events.append)) as forward:
        while True:
            if launched and (len(launched) == IN_FLIGHT or not pipe.poll()):
                reply = _collected(forward, *launched.popleft())
                pipe.send(replace(reply, events=tuple(events)))
                events.clear()
                continue
            try:
                batch: _Batch | None = pipe.recv()
            except (EOFError, OSError):
                return
            if batch is None:
                return
            forward.batch_size = batch.most
            answers: Future[list[Encoded]]
            try:
                pixels = _views(memory, batch.place, batch.shape, sizes)
                answers = _launched(forward, pixels, batch.dense)
            except Exception as error:  # on a GPU launching runs the model's own code
                answers = Future()
                answers.set_exception(error)
            launched.append((batch.number, answers))


def _collected(forward: Forward, number: int, launched: "Future[list[Encoded]]") -> _Reply:
    try:
        answers = tuple(Answers.of(part) for part in forward.collect(launched))
    except Exception as error:  # told to whoever asked
        return _Reply(number, forward.batch_size, type(error).__name__, first_line(error))
    return _Reply(number, forward.batch_size, answers=answers)
