"""From sample ids to rows, shared by every process of a machine.

The ascending ids of a store are kept in the cache as one memory-mapped file, so no worker holds a
dictionary of keys: 12 M rows are 192 MB of page cache once, and a few pages in each process.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.sample_id import SampleIds, find_rows
from store.cache import Cache
from store.logit_store import LogitStore

ID_DTYPE = np.dtype([("words", np.uint64, (2,))])


@dataclass(frozen=True, eq=False)
class RowIndex:
    """ids: [rows] of `ID_DTYPE`, ascending, memory-mapped."""

    ids: NDArray[Any]

    def rows(self, sample_ids: SampleIds) -> NDArray[np.int64]:
        """[n]: the row of each id, -1 where the store has none."""
        return find_rows(self.ids["words"], sample_ids)


def open_row_index(store: LogitStore, cache: Cache) -> RowIndex:
    """Map the ids, writing them into the cache first where they are not.

    Raises:
        CorruptStoreError: the ids are not what was written.
        StoreError: the cache cannot be written.
    """

    def fill(rows: NDArray[Any]) -> None:
        rows["words"] = store.sample_ids

    name = f"{store.manifest.dataset.digest[:32]}-ids"
    return RowIndex(cache.open(name, ID_DTYPE, store.manifest.dataset.rows, fill))
