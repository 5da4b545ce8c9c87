"""The regular files in a tar, one after another: where they stand in it, not what they hold.

Nothing is ever unpacked: links, devices and names that lead out of a folder have nowhere to lead.
"""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedReader

from distill.data.formats.skipped import SECOND_ARCHIVE, SPECIAL_MEMBER, Skipped
from distill.errors import DataError, DataUnavailableError
from distill.storage.locations import place_of
from distill.storage.place import unavailable

BLOCK = tarfile.BLOCKSIZE
SCAN_BYTES = 2**20
MAX_HEADER_BYTES = 2**20  # of long names and PAX records, which are read whole


@dataclass(frozen=True, slots=True)
class TarMember:
    """offset: of its bytes in the outermost file."""

    name: str
    offset: int
    size: int


def open_tar(path: str) -> BufferedReader:
    """A tar, to list its members.

    Raises:
        DataError: it cannot be read.
        DataUnavailableError: not now.
    """
    try:
        return place_of(path).open(path)
    except DataUnavailableError:
        raise
    except DataError as error:
        raise DataError(f"{path}: {error}; expected a readable tar") from error


def members(
    file: BufferedReader,
    path: str,
    skipped: Skipped | None = None,
    *,
    start: int = 0,
    end: int | None = None,
) -> Iterator[TarMember]:
    """The members of the tar that stands from `start` to `end` in `file`; `path` names it.

    skipped: counts what is no regular file, and an archive after the end of the first.

    Raises:
        DataError: it is not a complete uncompressed tar.
        DataUnavailableError: it cannot be read now.
    """
    try:
        file.seek(0, 2)
        end = file.tell() if end is None else min(end, file.tell())
        file.seek(start)
        with tarfile.open(fileobj=file, mode="r:", tarinfo=_Header) as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # millions of them would take gigabytes
                if member.offset >= end:  # of a tar within another: what follows is the other's
                    break
                if member.offset_data + member.size > end:
                    raise DataError(f"{path}: ends inside {member.name!r}; copy the tar again")
                if member.size < 0 or tar.offset <= member.offset:
                    raise DataError(
                        f"{path}: {member.name!r} has size {member.size}; copy it again"
                    )
                if member.isreg() and not member.issparse():
                    yield TarMember(member.name, member.offset_data, member.size)
                elif skipped is not None and not member.isdir():
                    skipped.add(SPECIAL_MEMBER, member.name)
            file.seek(tar.offset)
            # tarfile takes a damaged header for the end.
            if file.read(max(0, min(BLOCK, end - tar.offset))) != bytes(BLOCK):
                raise DataError(
                    f"{path}: damaged at byte {tar.offset - start}, or without a tar's end mark; "
                    "copy the tar again"
                )
            if skipped is not None and _goes_on(file, end):
                skipped.add(SECOND_ARCHIVE, path.rpartition("/")[2])
    except OSError as error:
        raise unavailable(path, str(error.strerror or error)) from error
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        raise DataError(
            f"{path}: not a complete uncompressed tar ({error}); copy it again"
        ) from error


def _goes_on(file: BufferedReader, end: int) -> bool:
    """Whether anything but zeros follows, as after `cat a.tar b.tar`."""
    while (left := end - file.tell()) > 0:
        part = file.read(min(left, SCAN_BYTES))
        if not part:
            return False
        if part.strip(b"\0"):
            return True
    return False


class _Header(tarfile.TarInfo):
    """One that does not read gigabytes because a header says so."""

    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        extended = self.type in (*tarfile.GNU_TYPES, tarfile.XHDTYPE, tarfile.XGLTYPE)
        if extended and not self.issparse() and not 0 <= self.size <= MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {self.size} bytes")
        return super()._proc_member(tar)  # type: ignore[misc,no-any-return]
