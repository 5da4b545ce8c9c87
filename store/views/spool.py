"""The spool: rows of a store that wait for the rest of their block.

A store commits whole blocks in all views; a live server learns one row in one view at a time. The
spool is one sparse file beside the cache, a record for each row of each view, and each record with
its own checksum: a row is there or it is not, whenever the process was killed. Blocks that are
committed are decoded into it when they are first asked for, so reading is one look-up.
"""

import mmap
import os
import threading
import time
import zlib
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.errors import CorruptStoreError, InUseError, StoreError
from distill.files import sole_writer
from distill.store.format.codes import FIELDS, Codes, codes_of, record_dtype
from distill.store.format.commits import Commit
from distill.store.logit_store import LogitStore
from distill.store.views.resident import decode_block

LOOK_AGAIN_S = 10.0  # after which another process may have committed a block


class Spool:
    """One process at a time; any of its threads.

    Raises:
        InUseError: another process has it.
        StoreError: the folder cannot be used.
    """

    def __init__(self, store: LogitStore, folder: Path) -> None:
        self.store, self.manifest = store, store.manifest
        record = record_dtype(store.manifest.coding)
        self._dtype = np.dtype([("crc", np.uint32), ("record", record)])
        self._path = folder / f"{store.manifest.identity[:32]}.spool"
        self._shape = (store.manifest.views.count, store.manifest.dataset.rows)
        self._lock = threading.RLock()
        self._missing: dict[int, int] = {}  # records that each block has not, once looked through
        self._committed: dict[int, Commit] = {}
        self._looked_at = -LOOK_AGAIN_S
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _unusable(folder, error) from error
        self._held = ExitStack()
        try:
            cure = f"give each server a store of its own, not {store.location}"
            lock = f"{self._path.name}.lock"
            self._held.enter_context(sole_writer(folder, name=lock, cure=cure))
            os.truncate(self._file, self._shape[0] * self._shape[1] * self._dtype.itemsize)
            mapping = mmap.mmap(self._file, 0, access=mmap.ACCESS_READ)
        except (OSError, InUseError) as error:
            self._held.close()
            os.close(self._file)
            if isinstance(error, InUseError):
                raise
            raise _unusable(folder, error) from error
        self._records = np.frombuffer(mapping, self._dtype).reshape(self._shape)

    def read(self, rows: NDArray[np.int64], views: NDArray[np.int64]) -> tuple[Codes, NDArray[Any]]:
        """The codes of each row in its view, and [n] whether they are there.

        Raises:
            CorruptStoreError: a committed block is damaged.
        """
        with self._lock:
            for block in np.unique(rows // self.manifest.block_rows):
                self._look_through(int(block))
                self._take_in(int(block))
            records = self._records[views, rows]
        return codes_of(records["record"]), records["crc"] != 0

    def write(self, rows: NDArray[np.int64], views: NDArray[np.int64], codes: Codes) -> list[int]:
        """Keep those rows; the blocks that are whole by it.

        Raises:
            StoreError: the disk is full.
        """
        records = np.zeros(len(rows), self._dtype)
        for name in FIELDS:
            records["record"][name] = getattr(codes, name)
        complete = []
        with self._lock:
            for i, (row, view) in enumerate(zip(rows.tolist(), views.tolist(), strict=True)):
                block = row // self.manifest.block_rows
                self._look_through(block)
                if not self._records[view, row]["crc"]:
                    self._put(view, row, records[i : i + 1])
                    self._missing[block] -= 1
                    complete += [block] if not self._missing[block] else []
        return complete

    def forget(self, rows: Sequence[int]) -> None:
        """Those rows are to be computed again, in all views."""
        with self._lock:
            for row in rows:
                for view in range(self._shape[0]):
                    if self._records[view, row]["crc"]:
                        self._overwrite(view, row, np.zeros(1, self._dtype))
                        self._missing[row // self.manifest.block_rows] += 1

    def complete_blocks(self) -> list[int]:
        """Blocks that are not committed and whose rows are all here: for after a kill."""
        pending = self.store.pending_blocks()
        with self._lock:
            for block in pending:
                self._look_through(block)
            return [block for block in pending if not self._missing[block]]

    def codes(self, block: int) -> list[Codes]:
        """A whole block, view by view.

        Raises:
            CorruptStoreError: a record is torn; it is to be computed again.
        """
        rows = self.manifest.rows_of_block(block)
        with self._lock:
            records = self._records[:, rows.start : rows.stop].copy()
        torn = [place for view in records for place, r in enumerate(view) if r["crc"] != _crc(r)]
        if torn:
            self.forget([rows.start + place for place in torn])
            raise CorruptStoreError(
                f"{self._path}: {len(torn)} records of block {block} are torn, expected whole "
                "ones; they are computed again"
            )
        return [
            Codes(**{name: np.ascontiguousarray(view["record"][name]) for name in FIELDS})
            for view in records
        ]

    def flush(self) -> None:
        """Put it on the disk."""
        os.fsync(self._file)

    def close(self) -> None:
        """Flush, and leave it to others."""
        self.flush()
        self._held.close()
        os.close(self._file)

    def discard(self) -> None:
        """The store has all of it."""
        self._path.unlink(missing_ok=True)

    def _look_through(self, block: int) -> None:
        """Count once what a block has, and drop torn records."""
        if block in self._missing:
            return
        rows = self.manifest.rows_of_block(block)
        here = self._records[:, rows.start : rows.stop]
        for view, place in zip(*np.nonzero(here["crc"]), strict=True):
            record = here[view, place]
            if record["crc"] != _crc(record):
                self._overwrite(int(view), rows.start + int(place), np.zeros(1, self._dtype))
        self._missing[block] = int((here["crc"] == 0).sum())

    def _take_in(self, block: int) -> None:
        """Decode a block that is committed, by whomever, unless all of it is here."""
        if not self._missing[block]:
            return
        if block not in self._committed and time.monotonic() - self._looked_at > LOOK_AGAIN_S:
            self._committed = self.store.block_commits()
            self._looked_at = time.monotonic()
        if not (commit := self._committed.get(block)):
            return
        rows = self.manifest.rows_of_block(block)
        buffer = np.empty(len(rows), record_dtype(self.manifest.coding))
        for view in range(self._shape[0]):
            records = np.zeros(len(rows), self._dtype)
            records["record"] = decode_block(self.store, block, view, commit, buffer)
            self._put(view, rows.start, records)
        self._missing[block] = 0

    def _put(self, view: int, row: int, records: NDArray[Any]) -> None:
        records["crc"] = [_crc(record) for record in records]
        self._overwrite(view, row, records)

    def _overwrite(self, view: int, row: int, records: NDArray[Any]) -> None:
        # Written, not mapped: a full disk is an error here, and a dead process there.
        start = (view * self._shape[1] + row) * self._dtype.itemsize
        content, offset = memoryview(records.tobytes()), start
        try:
            while content:
                written = os.pwrite(self._file, content, offset)
                content, offset = content[written:], offset + written
        except OSError as error:
            with suppress(OSError):  # what was written of it must not pass for a record
                os.pwrite(self._file, bytes(offset - start), start)
            raise _unusable(self._path.parent, error) from error


def _crc(record: Any) -> int:
    """Checksum the record's bytes; never 0, which marks an empty record."""
    return max(1, zlib.crc32(record["record"].tobytes()))


def _unusable(folder: Path, error: OSError) -> StoreError:
    return StoreError(
        f"{folder}: the spool cannot be used ({error.strerror or error}), expected a folder with "
        "room; free some, or pass another --cache"
    )
