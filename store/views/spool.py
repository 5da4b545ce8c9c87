"""The spool: rows of a store that wait for the rest of their block.

A store commits whole blocks in all views; a live server learns one row in one view at a time. The
spool is one sparse file beside the cache, a record for each row of each view, and each record with
its own checksum: a row is there or it is not, whenever the process was killed. Blocks that are
committed are decoded into it when they are first asked for, so reading is one look-up.

It is read, not mapped: a hole in a mapping needs room, and where a small disk in memory has none,
the process dies. What has no room is not kept, and whoever asked is answered all the same.
"""

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
DECODED_BLOCKS = 2  # of those that had no room


class Spool:
    """One process at a time; any of its threads. away: why the store could not be read last time.

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
        self.away: StoreError | None = None
        self._decoded: dict[int, NDArray[Any]] = {}  # blocks that had no room
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
            os.truncate(self._file, self.most_bytes)
        except (OSError, InUseError) as error:
            self._held.close()
            os.close(self._file)
            if isinstance(error, InUseError):
                raise
            raise _unusable(folder, error) from error

    @property
    def most_bytes(self) -> int:
        """What it takes of the disk where it holds every row."""
        return self._shape[0] * self._shape[1] * self._dtype.itemsize

    @property
    def free_bytes(self) -> int:
        """Room on its disk, for what it does not hold yet."""
        disk, file = os.fstatvfs(self._file), os.fstat(self._file)
        return disk.f_bavail * disk.f_frsize + 512 * file.st_blocks

    def read(self, rows: NDArray[np.int64], views: NDArray[np.int64]) -> tuple[Codes, NDArray[Any]]:
        """The codes of each row in its view, and [n] whether they are there.

        Raises:
            CorruptStoreError: a committed block is damaged.
        """
        blocks, size = rows // self.manifest.block_rows, self._dtype.itemsize
        with self._lock:
            roomless = {}
            for block in np.unique(blocks).tolist():
                self._look_through(block)
                if (decoded := self._take_in(block)) is not None:
                    roomless[block] = decoded
            starts = self._place(views, rows).tolist()
            content = b"".join(os.pread(self._file, size, start) for start in starts)
            records = np.frombuffer(bytearray(content), self._dtype)
            for block, decoded in roomless.items():
                asked = np.flatnonzero(blocks == block)
                records[asked] = decoded[views[asked], rows[asked] % self.manifest.block_rows]
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
                if not self._read(view, row, 1)["crc"][0]:
                    self._put(view, row, records[i : i + 1])
                    self._missing[block] -= 1
                    complete += [block] if not self._missing[block] else []
        return complete

    def forget(self, rows: Sequence[int]) -> None:
        """Those rows are to be computed again, in all views."""
        with self._lock:
            for row in rows:
                for view in range(self._shape[0]):
                    if self._read(view, row, 1)["crc"][0]:
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
            records = [self._read(view, rows.start, len(rows)) for view in range(self._shape[0])]
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
        rows, missing = self.manifest.rows_of_block(block), 0
        for view in range(self._shape[0]):
            records = self._read(view, rows.start, len(rows))
            for place in np.flatnonzero(records["crc"]):
                if records["crc"][place] != _crc(records[place]):
                    self._overwrite(view, rows[place], np.zeros(1, self._dtype))
                    records["crc"][place] = 0
            missing += int((records["crc"] == 0).sum())
        self._missing[block] = missing

    def _take_in(self, block: int) -> NDArray[Any] | None:
        """Decode a block that is committed, by whomever, unless all of it is here.

        Its records, [views, rows], where they have no room here.
        """
        if not self._missing[block]:
            return None
        if block in self._decoded:
            return self._decoded[block]
        try:
            records = self._decode(block)
            self.away = None
        except CorruptStoreError:
            raise
        except StoreError as error:  # its rows may be had otherwise
            self.away = error
            return None
        if records is None:
            return None
        try:
            for view, of_view in enumerate(records):
                self._overwrite(view, block * self.manifest.block_rows, of_view)
        except StoreError:
            self._decoded[block] = records
            if len(self._decoded) > DECODED_BLOCKS:
                del self._decoded[next(iter(self._decoded))]
            return records
        self._missing[block] = 0
        return None

    def _decode(self, block: int) -> NDArray[Any] | None:
        """A block's records, [views, rows]; None where it is not committed."""
        if block not in self._committed and time.monotonic() - self._looked_at > LOOK_AGAIN_S:
            self._looked_at = time.monotonic()
            self._committed = self.store.block_commits()
        if not (commit := self._committed.get(block)):
            return None
        rows = self.manifest.rows_of_block(block)
        records = np.zeros((self._shape[0], len(rows)), self._dtype)
        buffer = np.empty(len(rows), record_dtype(self.manifest.coding))
        for view, of_view in enumerate(records):
            of_view["record"] = decode_block(self.store, block, view, commit, buffer)
            of_view["crc"] = [_crc(record) for record in of_view]
        return records

    def _place(self, view: Any, row: Any) -> Any:
        """Where records begin in the file; numbers or arrays of them."""
        return (view * self._shape[1] + row) * self._dtype.itemsize

    def _read(self, view: int, row: int, count: int) -> NDArray[Any]:
        """`count` records from a row on."""
        size = self._dtype.itemsize
        content = os.pread(self._file, count * size, self._place(view, row))
        return np.frombuffer(bytearray(content), self._dtype)

    def _put(self, view: int, row: int, records: NDArray[Any]) -> None:
        records["crc"] = [_crc(record) for record in records]
        self._overwrite(view, row, records)

    def _overwrite(self, view: int, row: int, records: NDArray[Any]) -> None:
        start = self._place(view, row)
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
