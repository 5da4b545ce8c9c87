"""Streamed views: a few blocks decoded at a time, where a whole view does not fit the cache.

Holds at most `capacity` decoded blocks; a row of another block replaces the one unused for longest.
Any order of rows is answered right, but only one that stays within `capacity` blocks for a while is
fast: `distill.data.order.SampleOrder` with `block_rows` and a window of that many blocks.
"""

import threading
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.store.format.codes import codes_of, record_dtype
from distill.store.logit_store import LogitStore
from distill.store.views.resident import decode_block, decoders, require_view
from distill.targets.rows import TargetRows


class StreamedView:
    """capacity: blocks in memory, each of `block_rows` rows of `record_dtype`."""

    def __init__(self, store: LogitStore, view: int, *, capacity: int) -> None:
        require_view(store, view)
        store.require_complete()
        self.store, self.view = store, view
        self.manifest = store.manifest
        self._commits = store.block_commits()
        self._capacity = max(1, min(capacity, self.manifest.num_blocks))
        block_rows = self.manifest.block_rows
        self._records = np.empty(self._capacity * block_rows, record_dtype(self.manifest.coding))
        self._slot_of: NDArray[np.int64] = np.full(self.manifest.num_blocks, -1)
        self._held: OrderedDict[int, int] = OrderedDict()  # slot of block, oldest use first
        self._free = list(range(self._capacity))
        self._pool = ThreadPoolExecutor(decoders(store), thread_name_prefix="stream")
        self._lock = threading.Lock()  # of one asker at a time: blocks replace each other

    def gather(self, rows: NDArray[np.int64]) -> TargetRows:
        """Those rows, in that order.

        Raises:
            CorruptStoreError: a block is not what was committed.
        """
        return self.manifest.coding.dequantise(codes_of(self.records_of(rows)))

    def records_of(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """`gather`, as records of `record_dtype`."""
        with self._lock:
            return self._records_of(rows)

    def _records_of(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        blocks, places = np.divmod(rows, self.manifest.block_rows)
        needed = np.unique(blocks)
        if len(needed) <= self._capacity:
            self._hold(needed)
            at = self._slot_of[blocks] * self.manifest.block_rows + places
            return self._records[at]
        picked = np.empty(len(rows), self._records.dtype)
        for start in range(0, len(needed), self._capacity):
            some = needed[start : start + self._capacity]
            self._hold(some)
            mine = np.isin(blocks, some)
            at = self._slot_of[blocks[mine]] * self.manifest.block_rows + places[mine]
            picked[mine] = self._records[at]
        return picked

    def _hold(self, needed: NDArray[Any]) -> None:
        missing = []
        for block in map(int, needed):
            if block in self._held:
                self._held.move_to_end(block)
            else:
                missing.append(block)
        while len(self._free) < len(missing):
            oldest, slot = self._held.popitem(last=False)
            self._slot_of[oldest] = -1
            self._free.append(slot)
        decoding = [
            self._pool.submit(self._decode, *pair)
            for pair in zip(missing, self._free, strict=False)
        ]
        wait(decoding)  # all of them, so that none writes into a slot that is given away again
        for done in decoding:
            done.result()
        for block in missing:
            self._held[block] = self._slot_of[block] = self._free.pop(0)

    def _decode(self, block: int, slot: int) -> None:
        rows = self.manifest.block_rows
        target = self._records[slot * rows : (slot + 1) * rows]
        decode_block(self.store, block, self.view, self._commits[block], target)
