"""Resident views: one view of a store, decoded into a memory-mapped file for random access.

Reading rows at random from Zarr decodes a whole chunk a row. A resident view is decoded once a
machine, block by block and in parallel, checked against the commits, and shared through the cache
by every process that maps it. Its name holds the content's digest, so a stale one is never found.
"""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import local
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.errors import StoreError
from distill.store.format.codes import codes_of, record_dtype
from distill.store.format.commits import Commit
from distill.store.format.manifest import Manifest
from distill.store.logit_store import LogitStore
from distill.store.views.cache import Cache, Put
from distill.targets.rows import TargetRows


@dataclass(frozen=True, eq=False)
class ResidentView:
    """One row a record: gathering a batch touches one piece of memory a row."""

    manifest: Manifest
    view: int
    records: NDArray[Any]  # [rows] of `record_dtype`, memory-mapped, read-only

    def gather(self, rows: NDArray[np.int64]) -> TargetRows:
        """Those rows, in that order."""
        return self.manifest.coding.dequantise(codes_of(self.records_of(rows)))

    def records_of(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """`gather`, as records of `record_dtype`."""
        return self.records[rows]


def open_resident_view(
    store: LogitStore, view: int, cache: Cache, *, workers: int | None = None
) -> ResidentView:
    """Map the decoded view, decoding it first where the cache has none.

    workers: threads that decode; None is one a core, or more where a bucket has to answer.

    Raises:
        IncompleteStoreError: the store has missing blocks.
        CorruptStoreError: a block is not what was committed.
        StoreError: the store has no such view, or the cache cannot hold it.
    """
    require_view(store, view)
    store.require_complete()
    commits = store.block_commits()
    digests = [commit.digests[view] for commit in commits.values()]
    dtype, rows = record_dtype(store.manifest.coding), store.manifest.dataset.rows

    def fill(put: Put) -> None:
        buffers = local()

        def decode(block: int) -> None:
            if not hasattr(buffers, "records"):
                buffers.records = np.empty(store.manifest.block_rows, dtype)
            decoded = decode_block(store, block, view, commits[block], buffers.records)
            put(store.manifest.rows_of_block(block).start, decoded)

        with ThreadPoolExecutor(workers or decoders(store)) as pool:
            list(pool.map(decode, range(store.manifest.num_blocks)))

    records = cache.open(resident_name(store, view, digests), dtype, rows, fill)
    return ResidentView(store.manifest, view, records)


def resident_name(store: LogitStore, view: int, digests: list[str]) -> str:
    """The name of a decoded view in the cache: a digest of its content."""
    content = hashlib.sha256("".join([store.manifest.identity, *digests]).encode()).hexdigest()
    return f"{content[:32]}-view{view}"


def resident_bytes(store: LogitStore) -> int:
    """What one decoded view takes."""
    return store.manifest.dataset.rows * record_dtype(store.manifest.coding).itemsize


def decode_block(
    store: LogitStore, block: int, view: int, commit: Commit, records: NDArray[Any]
) -> NDArray[Any]:
    """Decode a block into the first of `records`, and give those back."""
    codes = store.read_codes(block, view, commit)
    target = records[: len(codes)]
    target["valid"] = codes.valid
    for name in store.manifest.coding.widths:
        # Column by column: four times as fast as NumPy's assignment of a transposed array.
        for column, values in enumerate(getattr(codes, name).T):
            target[name][:, column] = values
    return target


def decoders(store: LogitStore) -> int:
    """Threads that decode side by side."""
    return max(store.objects.requests, os.cpu_count() or 1)


def require_view(store: LogitStore, view: int) -> None:
    """Raises StoreError where the store has no such view."""
    if not 0 <= view < store.manifest.views.count:
        raise StoreError(
            f"{store.location}: view {view} asked for, expected 0 to "
            f"{store.manifest.views.count - 1}"
        )
