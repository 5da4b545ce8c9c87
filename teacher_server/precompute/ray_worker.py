"""A Ray actor: one teacher that computes the blocks it is given."""

import os
import queue
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from threading import Lock

from distill.data.source import ImageSource
from distill.events import Event, Journal
from distill.teacher_server.precompute.options import PrecomputeOptions
from distill.teacher_server.precompute.pipeline import Pipeline
from distill.teacher_server.precompute.run import log_start, open_or_create
from distill.teacher_server.teacher.batch_size import Throughput
from distill.teacher_server.teacher.stages import StageSeconds
from distill.teacher_server.teacher.teacher import Teacher

LoadTeacher = Callable[[str], Teacher]


@dataclass
class WorkerReport:
    """What happened in a worker since it was asked last. wants: a block more to have ahead."""

    images: int = 0
    bad: dict[str, str] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    wants: bool = True


class Worker:
    """`work` goes on in one thread while the other calls are answered in others."""

    def __init__(
        self,
        source: ImageSource,
        path: str,
        options: PrecomputeOptions,
        load: LoadTeacher,
        device: str,
    ) -> None:
        self.source, self.path, self.options = source, path, options
        self.load, self.device = load, device
        self.blocks: queue.Queue[int | None] = queue.Queue()
        self.stopped = False
        self.unsent, self.telling = WorkerReport(), Lock()
        self.journal = Journal(self._record, self._say)

    @cached_property
    def pipeline(self) -> Pipeline:
        """The teacher, loaded, and the store, opened or made."""
        teacher = self.load(self.device)
        pipeline = Pipeline(
            store=open_or_create(self.source, teacher, self.path, self.options),
            source=self.source,
            teacher=teacher,
            options=self.options,
            journal=self.journal,
        )
        log_start(pipeline)
        return pipeline

    def prepare(self) -> list[int]:
        """Get ready; the blocks that are to be computed."""
        return self.pipeline.store.pending_blocks()

    def work(self, rows: int) -> tuple[Throughput | None, StageSeconds]:
        """Compute the blocks of `take` until None comes. rows: about how many, to tune for."""
        first = self.blocks.get()
        if first is None:  # there was nothing left when this worker came
            return None, StageSeconds()
        return self.pipeline.run(
            self._blocks_from(first),
            rows=rows,
            on_batch=self._count,
            stopping=lambda: self.stopped,
        )

    def take(self, block: int | None) -> None:
        """A block more, or None: there are no more."""
        self.blocks.put(block)

    def stop(self) -> None:
        """Leave it at the block in hand."""
        self.stopped = True
        self.blocks.put(None)

    def report(self) -> WorkerReport:
        """Since the last time."""
        with self.telling:
            unsent, self.unsent = self.unsent, WorkerReport()
        unsent.wants = self.blocks.empty()
        return unsent

    def _blocks_from(self, first: int) -> Iterator[int]:
        yield first
        while (block := self.blocks.get()) is not None and not self.stopped:
            yield block

    def _count(self, images: int, bad: dict[str, str]) -> None:
        with self.telling:
            self.unsent.images += images
            self.unsent.bad |= bad

    def _record(self, event: Event) -> None:
        with self.telling:
            self.unsent.events.append({**event, "host": socket.gethostname(), "pid": os.getpid()})

    def _say(self, text: str) -> None:
        with self.telling:
            self.unsent.notes.append(text)
