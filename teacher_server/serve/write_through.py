"""Write-through: computed rows are kept and become blocks of the store.

Rows go into the spool as they are answered, in a thread of their own; a block that is whole is
committed in another. What fails is told in the log and tried again, and never holds up an answer.
"""

import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.data.images import read_image
from distill.data.source import ImageSource
from distill.errors import DataError, first_line, printable
from distill.events import Journal
from distill.store.logit_store import LogitStore
from distill.store.views.spool import Spool
from distill.targets.rows import TargetRows
from distill.teacher_server.precompute.audit import audit_stored
from distill.teacher_server.precompute.bad_images import BadImages
from distill.teacher_server.precompute.options import PrecomputeOptions
from distill.teacher_server.precompute.run import finish_if_complete
from distill.teacher_server.teacher.teacher import Teacher

TRY_AGAIN_S = 30.0


class WriteThrough:
    """Write computed rows into the store. options: how blocks are computed, bad-image limit."""

    def __init__(
        self,
        spool: Spool,
        source: ImageSource,
        teacher: Teacher,
        options: PrecomputeOptions,
        journal: Journal,
    ) -> None:
        self.spool, self.source, self.teacher = spool, source, teacher
        self.store: LogitStore = spool.store
        self.options, self.journal = options, journal
        self._tally = BadImages(self.store, source, options.max_bad_fraction)
        self._rows = ThreadPoolExecutor(1, thread_name_prefix="spool")
        self._blocks = ThreadPoolExecutor(1, thread_name_prefix="commit")
        self._running: set[Future[None]] = set()
        self._lock = threading.Lock()
        self._failed: dict[int, float] = {}  # when each block was tried last
        self._ending = False
        self._unkept = 0  # rows, since the spool had room last
        self._commit(spool.complete_blocks())

    def keep(self, rows: NDArray[np.int64], views: NDArray[np.int64], answers: TargetRows) -> None:
        """Put answers into the spool, soon."""
        if len(rows) and not self._ending:
            codes = self.store.manifest.coding.quantise(answers)
            self._rows.submit(self._write, rows, views, codes)

    def close(self, within_s: float) -> bool:
        """Put the spool on the disk, and wait for a commit; whether it came to its end."""
        if self._ending:
            return True
        self._ending = True
        self._rows.shutdown(wait=True)
        self.spool.flush()
        self._blocks.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            running = set(self._running)
        ended = not wait(running, within_s).not_done
        if ended:  # else a thread still reads it
            self.spool.close()
        return ended

    def _write(self, rows: NDArray[np.int64], views: NDArray[np.int64], codes: Any) -> None:
        try:
            complete = self.spool.write(rows, views, codes)
        except Exception as error:  # answers go on without being kept
            if not self._unkept:
                text = first_line(error)
                self.journal.event(
                    "not written through", level="warning", rows=len(rows), text=text
                )
            self._unkept += len(rows)
            return
        if self._unkept:
            self.journal.event("written through again", rows_not_kept=self._unkept)
            self._unkept = 0
        self._commit(complete)

    def try_again(self) -> None:
        """Blocks that could not be written a while ago; to be called every second."""
        now = time.monotonic()
        self._commit([b for b, at in list(self._failed.items()) if now - at > TRY_AGAIN_S])

    def _commit(self, blocks: Sequence[int]) -> None:
        for block in [] if self._ending else blocks:
            self._failed.pop(block, None)
            future = self._blocks.submit(self._commit_block, block)
            with self._lock:
                self._running.add(future)
            future.add_done_callback(self._forget)

    def _forget(self, future: "Future[None]") -> None:
        with self._lock:
            self._running.discard(future)

    def _commit_block(self, block: int) -> None:
        """Write a whole block into the store, and certify the store by its last one."""
        if self._ending:
            return  # it is in the spool, and is found there next time
        try:
            if not self._write_block(block):
                return
            if not finish_if_complete(self.store, self.journal):
                self.spool.discard()
        except Exception as error:  # it stays in the spool, and is tried again
            self._failed[block] = time.monotonic()
            self.journal.event(
                "block not written", level="warning", block=block, text=first_line(error)
            )

    def _write_block(self, block: int) -> bool:
        """Whether it was written: not if images are good now that were bad before."""
        views, rows = self.spool.codes(block), self.store.manifest.rows_of_block(block)
        bad, good_now = [], []
        for place in np.flatnonzero(~np.all([codes.valid for codes in views], axis=0)):
            row = rows.start + int(place)
            sample = self.source.samples[row]
            try:
                read_image(sample)
                good_now.append(row)
            except DataError as error:
                bad.append({"key": printable(sample.key), "reason": printable(str(error))})
        if good_now:
            self.spool.forget(good_now)
            return False
        self._tally.add(len(rows), {each["key"]: each["reason"] for each in bad})
        speed = {"batch_size": self.options.batch_size, "threads": 1, "compiled": False}
        audit = audit_stored(self.store, self.source, self.teacher, block, views)
        self.store.write_codes(block, views, {"bad": bad, "speed": speed, **audit})
        self.journal.event("block written", block=block, rows=len(rows), bad=bad)
        return True
