"""The regular files in a tar, one after another: where they stand in it, not what they hold.

Nothing is ever unpacked: links, devices and names that lead out of a folder have nowhere to lead.
"""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedReader

from distill.errors import DataError

BLOCK = tarfile.BLOCKSIZE


@dataclass(frozen=True, slots=True)
class Member:
    """offset: of its bytes in the outermost file."""

    name: str
    offset: int
    size: int


def members(
    file: BufferedReader, path: str, *, start: int = 0, end: int | None = None
) -> Iterator[Member]:
    """The members of the tar that stands from `start` to `end` in `file`; `path` names it.

    Raises:
        DataError: it is not a whole uncompressed tar.
    """
    try:
        file.seek(0, 2)
        end = file.tell() if end is None else min(end, file.tell())
        file.seek(start)
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # millions of them would take gigabytes
                if member.offset >= end:  # of a tar within another: what follows is the other's
                    break
                if member.offset_data + member.size > end:
                    raise DataError(f"{path}: ends inside {member.name!r}; copy the tar again")
                if member.isreg() and not member.issparse():
                    yield Member(member.name, member.offset_data, member.size)
            file.seek(tar.offset)
            if len(file.read(max(0, min(BLOCK, end - tar.offset)))) < BLOCK:
                raise DataError(f"{path}: ends without a tar's end mark; copy the tar again")
    except (tarfile.TarError, EOFError, ValueError, OverflowError, OSError) as error:
        raise DataError(f"{path}: not a whole uncompressed tar ({error}); copy it again") from error
