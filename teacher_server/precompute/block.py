"""Predictions of one block as they arrive, and the thread that writes complete blocks."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.data.loader import ViewBatch
from distill.data.source import ImageSource
from distill.errors import StoreError, TeacherError, printable
from distill.events import Journal
from distill.store.logit_store import LogitStore
from distill.targets.rows import TargetRows
from distill.teacher_server.precompute.audit import Audit
from distill.teacher_server.teacher.forward_pass import Encoded
from distill.teacher_server.teacher.stages import StageSeconds
from distill.teacher_server.teacher.teacher import Teacher

SAY_EVERY_S, LONGEST_WAIT_S = 30, 1800
UNWRITTEN_BLOCKS = 2  # that wait for the disk; beyond it the teacher waits


class BlockAnswers:
    """All views of the rows of `block`."""

    def __init__(
        self, block: int, store: LogitStore, source: ImageSource, teacher: Teacher
    ) -> None:
        self.block, self.source, self.teacher = block, source, teacher
        self.rows = store.manifest.rows_of_block(block)
        slots, hierarchies = sum(store.manifest.slots), teacher.hierarchy.num_hierarchies
        self.views = [
            TargetRows.empty(len(self.rows), slots, hierarchies)
            for _ in range(store.manifest.views.count)
        ]
        self.bad: list[dict[str, str]] = []
        self.audit, self.coding = Audit(store, teacher), store.manifest.coding
        self.missing = len(self.rows)

    @property
    def is_complete(self) -> bool:
        """Whether every row has come in."""
        return self.missing == 0

    def add(self, batch: ViewBatch, answers: Sequence[Encoded]) -> None:
        """What the teacher said of a batch, its views image after image.

        Raises:
            TeacherError: an answer is not finite.
        """
        self.bad += [
            {"key": printable(self.source.samples[row].key), "reason": printable(reason)}
            for row, reason in batch.bad.items()
        ]
        self.audit.add_proofs(batch)
        for part, rows, views in located(batch, answers, len(self.views)):
            predicted = part.sparse.to_rows()
            self._require_finite(predicted, rows)
            put_by_view(self.views, predicted, rows - self.rows.start, views)
            if part.exact:
                kept = np.arange(len(part.exact.probs))
                self.audit.add_answers(
                    rows[kept],
                    views[kept],
                    exact=part.exact,
                    reference=part.reference,
                    codes=self.coding.quantise(predicted.select(kept)),
                )
        self.missing -= len(batch.rows) + len(batch.bad)

    def _require_finite(self, predicted: TargetRows, rows: NDArray[np.int64]) -> None:
        wrong = sorted({int(row) for row in rows[~np.isfinite(predicted.confidence).all(1)]})
        if wrong:
            keys = ", ".join(self.source.samples[row].key for row in wrong[:5])
            raise TeacherError(
                f"teacher {self.teacher.identity.name}: NaN or Inf for {len(wrong)} images "
                f"({keys}), expected finite logits; check the weights, or try --precision float32"
            )


def located(
    batch: ViewBatch, parts: Sequence[Encoded], views: int
) -> Iterator[tuple[Encoded, NDArray[np.int64], NDArray[np.int64]]]:
    """Each part of a batch's answers with the row and the view of each of its answers."""
    rows = np.repeat(np.array(batch.rows, np.int64), views)
    drawn = np.tile(np.arange(views), len(batch.rows))
    first = 0
    for part in parts:
        here = slice(first, first + len(part.sparse.index))
        yield part, rows[here], drawn[here]
        first = here.stop


def put_by_view(
    kept: Sequence[TargetRows],
    predicted: TargetRows,
    rows: NDArray[np.int64],
    views: NDArray[np.int64],
) -> None:
    """Copy each answer into its row of its view."""
    for view, of_it in enumerate(kept):
        which = np.flatnonzero(views == view)
        of_it.put(rows[which], predicted.select(which))


class BlockWriter:
    """Compresses and writes blocks in a thread of its own, while the teacher goes on."""

    def __init__(
        self,
        store: LogitStore,
        stages: StageSeconds,
        journal: Journal,
        facts: Callable[[], Mapping[str, Any]],
    ) -> None:
        self.store, self.stages, self.journal, self.facts = store, stages, journal, facts
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._unwritten: deque[Future[None]] = deque()

    def write(self, answers: BlockAnswers) -> None:
        """Hand a whole block over.

        Raises:
            StoreError: an earlier block could not be written.
        """
        self._wait(UNWRITTEN_BLOCKS - 1)
        self._unwritten.append(self._thread.submit(self._write, answers))

    def _write(self, answers: BlockAnswers) -> None:
        started = time.perf_counter()
        facts = {"bad": answers.bad, **self.facts(), **answers.audit.to_json()}
        self.store.write_block(answers.block, answers.views, facts)
        seconds = time.perf_counter() - started
        self.stages.write += seconds
        self.journal.event(
            "block written",
            block=answers.block,
            rows=len(answers.rows),
            bad=answers.bad,
            seconds=round(seconds, 3),
        )

    def _wait(self, at_most: int) -> None:
        started = time.perf_counter()
        while self._unwritten and (len(self._unwritten) > at_most or self._unwritten[0].done()):
            self._patiently(self._unwritten.popleft())
        self.stages.wait_for_write += time.perf_counter() - started

    def _patiently(self, written: Future[None]) -> None:
        """Wait for a block; say so where it takes long, and not for ever: a disk may hang."""
        waited = 0
        while not wait([written], timeout=SAY_EVERY_S).done:
            waited += SAY_EVERY_S
            if waited >= LONGEST_WAIT_S:
                self._unwritten.clear()
                raise StoreError(
                    f"{self.store.location}: a block is being written for {waited} s, expected a "
                    "disk or a network that answers; finished blocks are kept: fix it, then run "
                    "the same command again"
                )
            self.journal.note(
                f"waiting for {self.store.location} for {waited} s: a block is being written",
                "waiting for the store",
            )
        written.result()

    def __enter__(self) -> "BlockWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self._wait(0)
            elif not isinstance(error, KeyboardInterrupt):
                with suppress(Exception):  # the first error counts, and whole blocks are kept
                    self._wait(0)
        finally:
            self._thread.shutdown(wait=False, cancel_futures=True)
