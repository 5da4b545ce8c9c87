"""Rows of one view of a store, wherever their blocks are."""

import numpy as np
from numpy.typing import NDArray

from distill.store.format.codes import FIELDS, Codes
from distill.store.logit_store import LogitStore


class RowReader:
    """Fast while rows come in ascending order: the last block stays decoded."""

    def __init__(self, store: LogitStore, view: int) -> None:
        self.store, self.view = store, view
        self._commits = store.block_commits()
        self._block = -1
        self._codes: Codes | None = None

    def rows(self, rows: NDArray[np.int64]) -> Codes:
        """Those rows, ascending.

        Raises:
            CorruptStoreError: a block is not what was committed.
        """
        parts = []
        blocks, places = np.divmod(rows, self.store.manifest.block_rows)
        for block in np.unique(blocks).tolist():
            if block != self._block:
                self._codes = self.store.read_codes(block, self.view, self._commits[block])
                self._block = block
            mine = places[blocks == block]
            parts.append(Codes(**{n: getattr(self._codes, n)[mine] for n in FIELDS}))
        return Codes.concatenate(parts)
