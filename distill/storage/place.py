"""What every place that holds files offers, and which failures belong to a file and which pass.

Paths are strings with slashes; those of a place elsewhere begin with its scheme, as s3://.
"""

import io
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from distill.errors import DataError, DataUnavailableError

READ_AHEAD_BYTES = 8 * 2**20


class AbsentError(DataError):
    """No such file."""


class WholeOnlyError(DataError):
    """A server sends whole files, and not parts of them."""


@dataclass(frozen=True)
class Entries:
    """Names directly in a folder, sorted by code point. links: to folders, if not among those."""

    folders: list[str]
    files: list[str]
    links: list[str] = field(default_factory=list)


@runtime_checkable
class Place(Protocol):
    """One kind of place. Every method takes whole paths.

    Raises of all: DataError for what belongs to the path, DataUnavailableError for what passes.
    """

    def kind(self, path: str) -> Literal["file", "folder"] | None:
        """What is there."""
        ...

    def entries(self, folder: str, *, links: bool = True) -> Entries:
        """What a folder holds. links: links to folders count as folders, else apart."""
        ...

    def open(self, path: str) -> io.BufferedReader:
        """A file, to read and seek in."""
        ...

    def modified_ns(self, path: str) -> int:
        """When a file was written; 0 where there is none."""
        ...

    def read(self, path: str, offset: int, size: int, *, at_most: int) -> bytes:
        """`size` bytes; all where it is negative. DataError if that is more than `at_most`."""
        ...


class RangeFile(io.RawIOBase):
    """One file of a place elsewhere, of which ranges are read. size: in bytes."""

    mode = "rb"

    def __init__(self, place: Place, path: str, size: int) -> None:
        self.place, self.path, self.size, self.at = place, path, size, 0

    def buffered(self) -> io.BufferedReader:
        """Read ahead, for whoever reads on and on."""
        return io.BufferedReader(self, READ_AHEAD_BYTES)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.at, io.SEEK_END: self.size}[whence]
        return self.at

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), self.size - self.at)
        if wanted <= 0:
            return 0
        content = self.place.read(self.path, self.at, wanted, at_most=wanted)
        buffer[: len(content)] = content
        self.at += len(content)
        return len(content)


def require_few(size: int, at_most: int) -> None:
    """Raises DataError where a file is larger than anybody would read."""
    if size > at_most:
        raise DataError(f"too many bytes: {size} found, expected at most {at_most}")


def unavailable(path: str, cause: str) -> DataUnavailableError:
    """What to raise of trouble that passes."""
    return DataUnavailableError(
        f"{path}: cannot be read now ({cause}), expected a disk, a network and a machine in "
        "order; finished work is kept: fix it, then run the same command again"
    )
