"""Blocks through the teacher: decode → launch → collect → write, all at the same time.

Decoding runs in processes, the teacher on its device, writing in a thread; this loop only passes
things on. Blocks are pulled as they are needed, so that they may come from anywhere.
"""

import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from distill.data.loader import ViewBatch, ViewRequest, in_batches, load_views
from distill.data.source import ImageSource
from distill.events import Journal
from distill.store.format.audit import audited_rows
from distill.store.logit_store import LogitStore
from distill.teacher_server.precompute.audit import REPLAY_ROWS
from distill.teacher_server.precompute.block import BlockAnswers, BlockWriter
from distill.teacher_server.precompute.options import PrecomputeOptions, Share
from distill.teacher_server.teacher.batch_size import Throughput, choose_speed, images_together
from distill.teacher_server.teacher.forward_pass import Encoded, Forward
from distill.teacher_server.teacher.stages import StageSeconds
from distill.teacher_server.teacher.teacher import Teacher

OnBatch = Callable[[int, dict[str, str]], None]


@dataclass(frozen=True, eq=False)
class Pipeline:
    """Computes blocks of one store from one data set with one teacher. share: whose they are."""

    store: LogitStore
    source: ImageSource
    teacher: Teacher
    options: PrecomputeOptions
    journal: Journal
    share: Share = field(default_factory=Share)

    def run(
        self,
        blocks: Iterable[int],
        *,
        rows: int,
        on_batch: OnBatch,
        stopping: Callable[[], bool] = lambda: False,
    ) -> tuple[Throughput, StageSeconds]:
        """Compute those blocks, `rows` rows or fewer, and write them.

        on_batch: called with the number of a batch's images, and the reasons of its bad ones by
        key; what it raises stops the run. stopping: asked after each block whether to stop.

        Raises:
            TeacherError, StoreError, DataError: blocks that were written before it are kept.
        """
        speed, stages = self._speed(rows), StageSeconds()
        started = time.perf_counter()
        forward = Forward(
            self.teacher,
            self.store.manifest.encoding,
            batch_size=speed.batch_size,
            threads=speed.threads,
            compiled=speed.compiled,
            journal=self.journal,
            stages=stages,
        )

        def facts() -> dict[str, Any]:
            at_last = replace(speed, batch_size=forward.batch_size).to_json()
            return {"speed": at_last, "host": socket.gethostname(), "share": asdict(self.share)}

        with forward, BlockWriter(self.store, stages, self.journal, facts) as writer:
            loaded = self._loaded(blocks, rows, speed.batch_size, stages)
            for block in self._computed(forward, loaded, on_batch):
                writer.write(block)
                if stopping():
                    break
        stages.wall = time.perf_counter() - started
        return speed, stages

    def _speed(self, rows: int) -> Throughput:
        """As finished blocks were computed, the smallest batch of them; measured without any."""
        speeds = [record["speed"] for record in self.store.records().values() if "speed" in record]
        earlier = min(speeds, key=lambda speed: int(speed["batch_size"]), default=None)
        return choose_speed(
            self.teacher,
            self.store.manifest.encoding,
            views=rows * self.store.manifest.views.count,
            frames=self.source.frames,
            batch_size=self.options.batch_size,
            compiled=self.options.compiled,
            earlier=earlier,
            journal=self.journal,
        )

    def _computed(
        self, forward: Forward, loaded: Iterable[ViewBatch], on_batch: OnBatch
    ) -> Iterator[BlockAnswers]:
        block: BlockAnswers | None = None
        for batch, answers in run_forward(forward, loaded, exact=self._audited):
            number = next(iter((*batch.rows, *batch.bad))) // self.store.manifest.block_rows
            if block is None:
                block = BlockAnswers(number, self.store, self.source, self.teacher)
            block.add(batch, answers)
            told = block.bad[len(block.bad) - len(batch.bad) :]
            keys = {bad["key"]: bad["reason"] for bad in told}
            on_batch(len(batch.rows) + len(batch.bad), keys)
            if block.is_complete:
                yield block
                block = None

    def _audited(self, batch: ViewBatch) -> int:
        """How many of a batch's views, the first ones, are audited."""
        manifest = self.store.manifest
        audited = audited_rows(manifest.block_rows, manifest.num_blocks)
        places = (row % manifest.block_rows for row in batch.rows)
        return manifest.views.count * sum(place < audited for place in places)

    def _loaded(
        self, blocks: Iterable[int], rows: int, batch_size: int, stages: StageSeconds
    ) -> Iterator[ViewBatch]:
        images = images_together(batch_size, self.store.manifest.views.count)
        batches = load_views(
            self.source,
            self.options.policy,
            self.teacher.sizes,
            self._requests(_waited_for(blocks, stages), images),
            workers=min(self.options.workers, -(-rows // images)),
            pin_memory=self.teacher.device.type == "cuda",
        )
        started, blocked = time.perf_counter(), stages.wait_for_blocks
        for batch in batches:
            waited = time.perf_counter() - started
            stages.wait_for_images += waited - (stages.wait_for_blocks - blocked)
            stages.read += batch.read_s
            stages.render += batch.render_s
            yield batch
            started, blocked = time.perf_counter(), stages.wait_for_blocks

    def _requests(self, blocks: Iterable[int], images: int) -> Iterator[list[ViewRequest]]:
        """Batches never cross a block's end: its answers do not depend on where a run began."""
        drawn = self.store.manifest.views.drawn
        for block in blocks:
            rows = self.store.manifest.rows_of_block(block)
            yield from in_batches(rows, drawn, images, prove_below=REPLAY_ROWS)


def _waited_for(blocks: Iterable[int], stages: StageSeconds) -> Iterator[int]:
    started = time.perf_counter()
    for block in blocks:
        stages.wait_for_blocks += time.perf_counter() - started
        yield block
        started = time.perf_counter()


def run_forward(
    forward: Forward, batches: Iterable[ViewBatch], *, exact: Callable[[ViewBatch], int]
) -> Iterator[tuple[ViewBatch, list[Encoded]]]:
    """Batches in order with their answers, image after image in all views.

    Those after it are on their way meanwhile: with the device, and in the processes that decode.
    """
    launched: deque[tuple[ViewBatch, Future[list[Encoded]]]] = deque()
    for batch in batches:
        views = [pixels.flatten(0, 1) for pixels in batch.pixels]
        launched.append((batch, forward.launch(views, exact=exact(batch))))
        if len(launched) > forward.in_flight:
            first, answers = launched.popleft()
            yield first, forward.collect(answers)
    for last, answers in launched:
        yield last, forward.collect(answers)
