"""A folder of memory-mapped files that processes share: built once, bounded, safe to kill.

A file is written under another name, flushed, ended with checksums of its pieces and a trailer
that says what it is, and renamed; whatever else lies there is not trusted. Each process checks a
file when it first opens it, and a damaged one is built again. Of several processes one builds, the
others wait. A file in use is never removed: its users hold a lock on it that the kernel drops when
they die.
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

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from distill.errors import StoreError
from distill.progress import note

# put(first row, rows): what `fill` writes with, from any thread and in any order.
Put = Callable[[int, NDArray[Any]], None]

TRAILER_BYTES = 32
PIECE_BYTES = 2**22  # that have a CRC-32C together
LOOK_EVERY_S, SAY_EVERY_LOOKS = 0.05, 200
CRC = np.dtype("<u4")
SUFFIX, BUILDING, LOCK = ".rows", ".building", ".lock"


@dataclass(frozen=True, kw_only=True)
class CachedFile:
    """opened: when it was last, in seconds since 1970. in_use: by whatever process."""

    name: str
    bytes: int
    opened: float
    in_use: bool


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
                        if path.exists():
                            note(f"{path}: is damaged, or of another version; it is made again")
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

    def files(self) -> list[CachedFile]:
        """What is there, the least recently opened first."""
        paths = sorted(filter(Path.is_file, self.folder.glob("*" + SUFFIX)), key=_opened)
        return [
            CachedFile(name=p.stem, bytes=_size(p), opened=_opened(p), in_use=_in_use(p))
            for p in paths
        ]

    def damaged(self) -> list[str]:
        """Names of files that are not what was written, each of which is removed."""
        wrong = []
        for file in self.files():
            path = self.folder / (file.name + SUFFIX)
            with self._locked(file.name):
                if path.exists() and not _holds_what_was_written(path):
                    path.unlink()
                    wrong.append(file.name)
        return wrong

    def clear(self) -> int:
        """Remove all that is not in use, and what killed builders left; the bytes that were."""
        freed = 0
        for path in filter(Path.is_file, self.folder.glob("*" + BUILDING)):
            builder = self.folder / (path.name.removesuffix(SUFFIX + BUILDING) + LOCK)
            with suppress(BlockingIOError), builder.open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                freed += _size(path)
                path.unlink(missing_ok=True)
        for file in self.files():
            if not file.in_use:
                self.forget(file.name)
                freed += file.bytes
        return freed

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
            limit = self.limit_bytes
            allowed = "" if limit is None else f" of {limit} allowed by --cache-gib"
            raise OSError(f"{max(0, room)} bytes are available{allowed}")
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
                self._make_room(_size_on_disk(size))
                file = building.open("w+b", buffering=0)
                os.posix_fallocate(file.fileno(), 0, _size_on_disk(size))  # a full disk shows here

            def put(first: int, values: NDArray[Any]) -> None:
                # Written, not mapped: a page fault a page would cost as much as decoding.
                content = np.ascontiguousarray(values, dtype).view(np.uint8).data.cast("B")
                offset = first * dtype.itemsize
                while content:
                    written = os.pwrite(file.fileno(), content, offset)
                    content, offset = content[written:], offset + written

            with file:
                fill(put)
                sums = _checksums(file.fileno(), size)
                os.pwrite(file.fileno(), sums + _trailer(path.name, size, sums), size)
                os.fsync(file.fileno())
                _checked.add((str(path), os.fstat(file.fileno()).st_ino))
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
            try:
                yield
            finally:  # closing would not do: a process forked meanwhile has the file open too
                fcntl.flock(file, fcntl.LOCK_UN)


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


# By this process. A file never changes: another one of its name has another inode.
_checked: set[tuple[str, int]] = set()


def _is_whole(path: Path, size: int) -> bool:
    """Whether it is of that size, and what was written."""
    with suppress(OSError):
        stat = path.stat()
        if stat.st_size == _size_on_disk(size):
            known = (str(path), stat.st_ino)
            if _holds_what_was_written(path, content=known not in _checked):
                _checked.add(known)
                return True
    return False


def _holds_what_was_written(path: Path, *, content: bool = True) -> bool:
    """content: whether to read all of it, or the checksums alone."""
    with path.open("rb") as file:
        on_disk = os.fstat(file.fileno()).st_size
        pieces = max(0, on_disk - TRAILER_BYTES - 1) // (PIECE_BYTES + CRC.itemsize) + 1
        size = on_disk - TRAILER_BYTES - pieces * CRC.itemsize
        if size < 0 or _size_on_disk(size) != on_disk:
            return False
        sums = os.pread(file.fileno(), pieces * CRC.itemsize, size)
        trailer = os.pread(file.fileno(), TRAILER_BYTES, size + len(sums))
        whole = trailer == _trailer(path.name, size, sums)
        return whole and (not content or sums == _checksums(file.fileno(), size))


def _size_on_disk(size: int) -> int:
    return size + -(-size // PIECE_BYTES) * CRC.itemsize + TRAILER_BYTES


def _checksums(file: int, size: int) -> bytes:
    """CRC-32C of each piece."""
    sums = [
        google_crc32c.value(os.pread(file, min(PIECE_BYTES, size - start), start))
        for start in range(0, size, PIECE_BYTES)
    ]
    return np.array(sums, CRC).tobytes()


def _trailer(name: str, size: int, sums: bytes) -> bytes:
    return hashlib.sha256(f"distill cache 2 {name} {size}".encode() + sums).digest()


def _in_use(path: Path) -> bool:
    with suppress(FileNotFoundError), path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
