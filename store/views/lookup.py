"""From sample ids to rows, shared by every process of a machine.

The ascending ids of a store are kept in the cache as one memory-mapped file, so no worker holds a
dictionary of keys: 12 M rows are 192 MB of page cache once, and a few pages in each process.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.data.sample_ids import SampleIds, find_rows
from distill.store.logit_store import LogitStore
from distill.store.views.cache import Cache, Put

ROWS_PER_PREFIX = 64
ID_DTYPE = np.dtype([("words", np.uint64, (2,))])


class RowIndex:
    """ids: [rows] of `ID_DTYPE`, ascending, memory-mapped.

    Ids are hashes, so their first bits tell within a few dozen rows where one stands: a table of
    where each prefix begins leaves six steps of a binary search instead of 24, each a cache miss.
    """

    def __init__(self, ids: NDArray[Any]) -> None:
        self.ids: SampleIds = ids["words"]
        bits = max(0, (len(ids) // ROWS_PER_PREFIX).bit_length() - 1)
        self._shift = np.uint64(64 - bits)
        prefixes = np.arange(1, 2**bits, dtype=np.uint64) << self._shift
        begins = np.searchsorted(self.ids[:, 0], prefixes)
        self._begins = np.concatenate([[0], begins, [len(ids)]]).astype(np.int64)
        self._steps = int(np.diff(self._begins).max()).bit_length()

    def rows(self, sample_ids: SampleIds) -> NDArray[np.int64]:
        """[n]: the row of each id, -1 where the store has none."""
        high = np.ascontiguousarray(sample_ids[:, 0])
        prefix = (high >> self._shift).astype(np.int64) if len(self._begins) > 2 else 0 * high
        low, top = self._begins[prefix], self._begins[prefix + 1]
        for _ in range(self._steps):
            middle = (low + top) >> 1
            before = (middle < top) & (self.ids[np.minimum(middle, top - 1), 0] < high)
            low, top = np.where(before, middle + 1, low), np.where(before, top, middle)
        rows = np.minimum(low, len(self.ids) - 1)
        matches = (self.ids[rows] == sample_ids).all(axis=1)
        if not matches.all():  # absent, or second of two ids that share their high word
            rows[~matches] = find_rows(self.ids, sample_ids[~matches])
        return rows


def open_row_index(store: LogitStore, cache: Cache) -> RowIndex:
    """Map the ids, writing them into the cache first where they are not.

    Raises:
        CorruptStoreError: the ids are not what was written.
        StoreError: the cache cannot be written.
    """

    def fill(put: Put) -> None:
        put(0, store.sample_ids.view(ID_DTYPE)[:, 0])

    name = f"{store.manifest.dataset.digest[:32]}-ids"
    return RowIndex(cache.open(name, ID_DTYPE, store.manifest.dataset.rows, fill))
