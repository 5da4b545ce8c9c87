"""A folder of memory-mapped files that processes share: built once, bounded, safe to kill.

A file is written under another name, flushed, ended with a trailer that says what it is, and
renamed; whatever else lies there is not trusted. Of several processes one builds, the others wait.
A file in use is never removed: its users hold a lock on it that the kernel drops when they die.
"""

import fcntl
import hashlib
import mmap
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from distill.errors import StoreError
from distill.progress import note

# put(first row, rows): what `fill` writes with, from any thread and in any order.
Put = Callable[[int, NDArray[Any]], None]

TRAILER_BYTES = 32
LOOK_EVERY_S, SAY_EVERY_LOOKS = 0.05, 200
SUFFIX, BUILDING, LOCK = ".rows", ".building", ".lock"


@dataclass(frozen=True)
class Cache:
    """limit_bytes: of all files together; None is what the disk has."""

    folder: Path
    limit_bytes: int | None = None

    def open(
        self, name: str, dtype: np.dtype[Any], rows: int, fill: Callable[[Put], None]
    ) -> NDArray[Any]:
        """[rows] of `dtype`, read-only and memory-mapped; `fill` writes it where it is not there.

        Raises:
            StoreError: the folder cannot be used, or the file does not fit.
        """
        path, size = self.folder / (name + SUFFIX), rows * dtype.itemsize
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            while True:
                with self._locked(name):
                    if not _is_whole(path, size):
                        self._build(path, dtype, rows, fill)
                    # Another process may remove it to make room, until it is in use here.
                    with suppress(FileNotFoundError), path.open("rb") as file:
                        fcntl.flock(file, fcntl.LOCK_SH)
                        os.utime(path)  # the least recently opened go first
                        return _mapped(file, dtype, rows)
        except OSError as error:
            raise StoreError(
                f"{self.folder}: the cache cannot be used ({error.strerror or error}); it needs "
                f"{size} bytes for {name}: free them or pass another --cache"
            ) from error

    def forget(self, name: str) -> None:
        """Remove a file; whoever has it open keeps it."""
        (self.folder / (name + SUFFIX)).unlink(missing_ok=True)

    def room(self) -> int:
        """Bytes for files beside those that are in use now."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            kept = sum(map(_size, self.folder.glob("*" + BUILDING)))
            removable = 0
            for path in self.folder.glob("*" + SUFFIX):
                if _in_use(path):
                    kept += _size(path)
                else:
                    removable += _size(path)
            free = shutil.disk_usage(self.folder).free + removable
        except OSError as error:
            raise StoreError(
                f"{self.folder}: the cache cannot be used ({error.strerror or error}); pass "
                "another --cache"
            ) from error
        return free if self.limit_bytes is None else min(free, self.limit_bytes - kept)

    def _make_room(self, size: int) -> None:
        """Remove what is not in use, the least recently opened first, until `size` fits."""
        room = self.room()
        if size > room:
            raise OSError(f"{max(0, room)} bytes are available")
        files = sorted(self.folder.glob("*" + SUFFIX), key=_opened)
        used = sum(map(_size, [*files, *self.folder.glob("*" + BUILDING)]))
        for path in files:
            free = shutil.disk_usage(self.folder).free
            fits = self.limit_bytes is None or used + size <= self.limit_bytes
            if fits and free >= size:
                return
            if not _in_use(path):
                used -= _size(path)
                path.unlink(missing_ok=True)

    def _build(
        self, path: Path, dtype: np.dtype[Any], rows: int, fill: Callable[[Put], None]
    ) -> None:
        building = path.with_name(path.name + BUILDING)
        building.unlink(missing_ok=True)  # of one that died
        size = rows * dtype.itemsize
        try:
            with self._locked("room"):  # what is promised to one is not promised to another
                self._make_room(size + TRAILER_BYTES)
                file = building.open("wb", buffering=0)
                os.posix_fallocate(file.fileno(), 0, size + TRAILER_BYTES)  # a full disk shows here

            def put(first: int, values: NDArray[Any]) -> None:
                # Written, not mapped: a page fault a page would cost as much as decoding.
                content = np.ascontiguousarray(values, dtype).view(np.uint8).data.cast("B")
                offset = first * dtype.itemsize
                while content:
                    written = os.pwrite(file.fileno(), content, offset)
                    content, offset = content[written:], offset + written

            with file:
                fill(put)
                os.pwrite(file.fileno(), _trailer(path.name, size), size)
                os.fsync(file.fileno())
            building.replace(path)
        finally:
            building.unlink(missing_ok=True)

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        """Held by one process at a time; the kernel lets go of it when that process dies."""
        with (self.folder / (name + LOCK)).open("w") as file:
            for looks in count(1):
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    time.sleep(LOOK_EVERY_S)
                    if looks % SAY_EVERY_LOOKS == 0:
                        note(f"{self.folder}: waiting for another process, which makes {name}")
            yield


def _mapped(file: IO[bytes], dtype: np.dtype[Any], rows: int) -> NDArray[Any]:
    """A mapping duplicates the descriptor, so the file stays locked as long as the array lives."""
    mapping = mmap.mmap(file.fileno(), rows * dtype.itemsize, access=mmap.ACCESS_READ)
    return np.frombuffer(mapping, dtype, rows)


def _size(path: Path) -> int:
    with suppress(FileNotFoundError):
        return path.stat().st_size
    return 0


def _opened(path: Path) -> float:
    with suppress(FileNotFoundError):
        return path.stat().st_mtime
    return 0.0


def _is_whole(path: Path, size: int) -> bool:
    with suppress(OSError), path.open("rb") as file:
        if os.fstat(file.fileno()).st_size == size + TRAILER_BYTES:
            file.seek(size)
            return file.read(TRAILER_BYTES) == _trailer(path.name, size)
    return False


def _trailer(name: str, size: int) -> bytes:
    return hashlib.sha256(f"distill cache 1 {name} {size}".encode()).digest()


def _in_use(path: Path) -> bool:
    with suppress(FileNotFoundError), path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
