"""The queue of work for the teacher: first in, first out, fair between API keys.

Requests are images, not units: a large one is cut into parts, small ones share a batch. The queue
gives a device as much as it can take the moment it asks, and shares out fairly between the devices
that are idle and between the keys that wait.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from threading import Condition, Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.targets.rows import TargetRows
from distill.teacher_server.serve.decoding import DecodeFailure
from distill.wire.refusal import too_late


@dataclass(frozen=True, kw_only=True)
class BatchTiming:
    """queue_s: until the last image's batch was formed. batch_size: its images, padded."""

    queue_s: float
    infer_s: float
    batch_size: int


@dataclass(kw_only=True, eq=False)
class InferResult:
    """The teacher's predictions for the images of a request, or of a part of it.

    probs: [n, ΣN_k] FP16, where they are wanted. bad: why elements have none. timing: of the
    teacher's batch; None where none was needed.
    """

    rows: TargetRows
    probs: NDArray[np.float16] | None = None
    bad: dict[int, DecodeFailure] = field(default_factory=dict)
    timing: BatchTiming | None = None

    @classmethod
    def concatenate(cls, parts: Sequence["InferResult"]) -> "InferResult":
        """Parts of one request, none of them bad."""
        if len(parts) == 1:
            return parts[0]
        dense = [part.probs for part in parts if part.probs is not None]
        timings = [part.timing for part in parts if part.timing is not None]
        return cls(
            rows=TargetRows.concatenate([part.rows for part in parts]),
            probs=np.concatenate(dense) if dense else None,
            timing=BatchTiming(
                queue_s=max(timing.queue_s for timing in timings),
                infer_s=max(timing.infer_s for timing in timings),
                batch_size=max(timing.batch_size for timing in timings),
            ),
        )

    def tensors(self, names: Sequence[str]) -> dict[str, NDArray[Any]]:
        """The named outputs of the protocol."""
        rows = self.rows
        arrays: dict[str, Callable[[], NDArray[Any]]] = {
            "index": lambda: rows.index.astype(np.uint16),
            "prob": lambda: rows.prob,
            "sq_norm": lambda: rows.sq_norm,
            "confidence": lambda: rows.confidence,
            "probs": lambda: np.empty(0) if self.probs is None else self.probs,
            "status": self._status,
        }
        return {name: arrays[name]() for name in names}

    def _status(self) -> NDArray[np.int32]:
        status = np.zeros(len(self.rows), np.int32)
        for element, bad in self.bad.items():
            status[element] = bad.status
        return status


@dataclass(eq=False)
class InferJob:
    """One request's images. pixels: [n, height, width, 3] uint8 for each of the teacher's sizes.

    dense: whole probabilities are wanted. deadline: by the queue's clock. answer: in the order of
    the images.
    """

    pixels: tuple[NDArray[np.uint8], ...]
    dense: bool = False
    client: str = ""
    deadline: float = math.inf
    answer: "Future[InferResult]" = field(default_factory=Future)
    put_at: float = 0.0
    _taken: int = 0
    _parts: dict[int, InferResult] = field(default_factory=dict)
    _missing: int = 0
    _lock: Lock = field(default_factory=Lock)  # several lanes may put parts of it

    def __post_init__(self) -> None:
        self._missing = len(self)

    def __len__(self) -> int:
        return len(self.pixels[0])

    @property
    def left(self) -> int:
        """Images that no part holds yet."""
        return len(self) - self._taken

    def cut(self, most: int) -> "JobPart":
        """The next images, `most` or fewer."""
        start = self._taken
        self._taken = min(len(self), start + most)
        return JobPart(self, start, self._taken)

    def drop(self) -> int:
        """Give up what is left; how many images that was."""
        left, self._taken = self.left, len(self)
        return left

    def put(self, start: int, result: InferResult) -> None:
        """The answers to the images from `start` on; the last ones settle the job."""
        with self._lock:
            self._parts[start] = result
            self._missing -= len(result.rows)
            complete = not self._missing
        if complete:
            settle(
                self.answer,
                InferResult.concatenate([self._parts[start] for start in sorted(self._parts)]),
            )


@dataclass(frozen=True, eq=False)
class JobPart:
    """Images `start` to `stop` of a job."""

    job: InferJob
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


def settle(answer: "Future[InferResult]", result: InferResult | BaseException) -> None:
    """Give an answer to whoever still waits for it."""
    try:
        if isinstance(result, BaseException):
            answer.set_exception(result)
        else:
            answer.set_result(result)
    except InvalidStateError:  # cancelled, or failed already
        pass


class WorkQueue:
    """Any thread may put, take and give up. now: the clock of deadlines, in seconds.

    max_wait_s: how long a device that is idle waits for a fuller batch. undivided: images that are
    not shared out between idle devices, because a small batch takes as long as these.
    """

    def __init__(
        self,
        *,
        max_wait_s: float = 0.0,
        undivided: int = 1,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.max_wait_s, self.undivided, self.now = max_wait_s, undivided, now
        self.images = 0  # that wait
        self._changed = Condition()
        self._clients: deque[str] = deque()  # whose turn it is, of those that have work here
        self._jobs: dict[str, deque[InferJob]] = {}
        self._idle = 0
        self._failure: BaseException | None = None
        self.closed = False

    def put(self, job: InferJob) -> None:
        """At the end of its client's line. Work without images is settled by nobody: do not put it.

        Raises:
            ValueError: the job has no images.
        """
        if not len(job):
            raise ValueError("job without images")
        with self._changed:
            if self._failure:
                settle(job.answer, self._failure)
                return
            job.put_at = self.now()
            if job.client not in self._jobs:
                self._clients.append(job.client)
                self._jobs[job.client] = deque()
            self._jobs[job.client].append(job)
            self.images += len(job)
            self._changed.notify_all()

    def give_up(self, job: InferJob) -> None:
        """Nobody waits for this job any more."""
        with self._changed:
            self.images -= job.drop()
            jobs = self._jobs.get(job.client, deque())
            if job in jobs:
                jobs.remove(job)
                self._forget_if_served(job.client)
        job.answer.cancel()

    def fail(self, error: BaseException) -> None:
        """Nobody will answer: what waits is told so, and whatever comes."""
        with self._changed:
            self._failure = error
            for jobs in self._jobs.values():
                for job in jobs:
                    self.images -= job.drop()
                    settle(job.answer, error)
            self._jobs.clear()
            self._clients.clear()

    def close(self) -> None:
        """Devices get what still waits, and then nothing."""
        with self._changed:
            self.closed = True
            self._changed.notify_all()

    def take(self, most: int, *, at_least: int = 0) -> list[JobPart]:
        """`most` images or fewer, once there are any; none when the queue is closed and empty.

        at_least: do not wait at all, and take nothing where fewer than these are there.
        """
        with self._changed:
            if at_least:
                return self._cut(most) if self.images >= at_least else []
            while True:
                self._idle += 1
                while not self.images and not self.closed:
                    self._changed.wait()
                self._wait_for_more(most)
                self._idle -= 1
                # Other devices that are idle are about to take their part.
                share = max(self.undivided, -(-self.images // (1 + self._idle)))
                parts = self._cut(min(most, share))
                if parts or self.closed:
                    return parts

    def _wait_for_more(self, most: int) -> None:
        ends = self.now() + self.max_wait_s
        while 0 < self.images < most and not self.closed and (left := ends - self.now()) > 0:
            self._changed.wait(left)

    def _cut(self, most: int) -> list[JobPart]:
        """Clients take turns; each gets its part of the batch, and what others leave."""
        parts: list[JobPart] = []
        room, share = most, max(1, most // max(1, len(self._clients)))
        while room and self._clients:
            quantum = min(room, share)
            client = self._clients[0]
            jobs = self._jobs[client]
            while quantum and jobs:
                job = jobs[0]
                if job.left and self.now() >= job.deadline:
                    self.images -= job.drop()
                    settle(job.answer, too_late("the deadline passed before a batch had room"))
                if job.left:
                    parts.append(job.cut(quantum))
                    quantum -= len(parts[-1])
                    room -= len(parts[-1])
                    self.images -= len(parts[-1])
                if not job.left:
                    jobs.popleft()
            self._clients.rotate(-1)
            self._forget_if_served(client)
        return parts

    def _forget_if_served(self, client: str) -> None:
        if not self._jobs[client]:
            self._clients.remove(client)
            del self._jobs[client]
