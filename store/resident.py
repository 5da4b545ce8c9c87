"""Resident views: one view of a store, decoded into a memory-mapped file for random access.

Reading rows at random from Zarr decodes a whole chunk a row. A resident view is built once a
machine, block by block and in parallel, checked against the commits, renamed into place and shared
by every process that maps it. Its name holds the store's identity and content, so a stale one is
never found.
"""

import fcntl
import hashlib
import os
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.answers import Answers
from distill.errors import StoreError
from store.codes import Codes, code_dtypes, dequantise
from store.layout import ANSWER_ARRAYS
from store.logit_store import LogitStore
from store.manifest import Manifest


@dataclass(frozen=True, eq=False)
class ResidentView:
    """One row a record: gathering a batch touches one piece of memory a row."""

    manifest: Manifest
    view: int
    records: NDArray[Any]  # [rows] of `record_dtype`, memory-mapped, read-only

    def gather(self, rows: NDArray[np.int64]) -> Answers:
        """Those rows, in that order."""
        picked = self.records[rows]
        codes = Codes(**{name: picked[name] for name in ANSWER_ARRAYS})
        return dequantise(codes, self.manifest.encoding)


def open_resident_view(
    store: LogitStore, view: int, cache: Path, *, workers: int | None = None
) -> ResidentView:
    """Map the decoded view, building it first where the cache has none.

    workers: threads that decode; None is one a core. Of several processes one builds, the others
    wait.

    Raises:
        IncompleteStoreError: the store has missing blocks.
        CorruptStoreError: a block is not what was committed.
        StoreError: the store has no such view, or the cache cannot be written.
    """
    if not 0 <= view < store.manifest.views.count:
        raise StoreError(
            f"{store.path}: view {view} asked for, expected 0 to {store.manifest.views.count - 1}"
        )
    digests = [block[view] for block in store.require_complete()["content_sha256"]]
    content = hashlib.sha256("".join([store.manifest.identity, *digests]).encode()).hexdigest()
    path = cache / f"{content[:32]}-view{view}.rows"
    record = record_dtype(store.manifest)
    rows = store.manifest.dataset.rows
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _locked(path.with_suffix(".lock")):
            if not path.exists() or path.stat().st_size != rows * record.itemsize:
                _build(store, view, digests, path, workers or os.cpu_count() or 1)
        records = np.memmap(path, dtype=record, mode="r", shape=(rows,))
    except OSError as error:
        raise StoreError(
            f"{cache}: the cache of decoded views cannot be used ({error.strerror or error}); it "
            f"needs {rows * record.itemsize} bytes a view: free them or pass another --cache"
        ) from error
    return ResidentView(store.manifest, view, records)


def record_dtype(manifest: Manifest) -> np.dtype[Any]:
    """The layout of one row."""
    slots, hierarchies = sum(manifest.slots), len(manifest.hierarchy.classes_per_hierarchy)
    widths = {"index": slots, "prob": slots, "confidence": hierarchies, "sq_norm": hierarchies}
    dtypes = code_dtypes(manifest.encoding, manifest.hierarchy.classes_per_hierarchy)
    return np.dtype(
        [(n, dtypes[n], (widths[n],)) if n in widths else (n, dtypes[n]) for n in ANSWER_ARRAYS]
    )


def _build(store: LogitStore, view: int, digests: list[str], path: Path, workers: int) -> None:
    building = path.with_name(f"{path.name}.{uuid.uuid4().hex}.building")
    try:
        records = np.memmap(
            building,
            dtype=record_dtype(store.manifest),
            mode="w+",
            shape=(store.manifest.dataset.rows,),
        )

        def decode(block: int) -> None:
            codes = store.read_codes(block, view, digests[block])
            rows = store.manifest.rows_of_block(block)
            for name in ANSWER_ARRAYS:
                records[name][rows.start : rows.stop] = getattr(codes, name)

        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(decode, range(store.manifest.num_blocks)))
        records.flush()
        del records
        building.replace(path)
    finally:
        building.unlink(missing_ok=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Held by one process at a time; the kernel lets go of it when that process dies."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
