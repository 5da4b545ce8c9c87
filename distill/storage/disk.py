"""Folders of this machine."""

import errno
import io
import os
import stat
from typing import Literal

from distill.errors import DataError
from distill.storage.place import AbsentError, Entries, require_few, unavailable

# Errors that belong to one file and stay with it; any other is trouble that passes.
DAMAGE = {
    *(errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENXIO),
    *(errno.ENAMETOOLONG, errno.EINVAL, errno.ENOTSUP),
}


class Disk:
    """Folders of this machine."""

    def kind(self, path: str) -> Literal["file", "folder"] | None:
        """See `Place`. What is neither, as a pipe, counts as a file."""
        if os.path.isdir(path):  # noqa: PTH112
            return "folder"
        return "file" if os.path.exists(path) else None  # noqa: PTH110

    def entries(self, folder: str, *, links: bool = True) -> Entries:
        """See `Place`."""
        folders, files, left_out = [], [], []
        try:
            for entry in os.scandir(folder):
                if not _is_folder(entry):
                    files.append(entry.name)
                elif links or not entry.is_symlink():
                    folders.append(entry.name)
                else:
                    left_out.append(entry.name)
        except OSError as error:
            raise DataError(
                f"{error.filename or folder}: cannot be listed ({error.strerror}), expected "
                "readable folders and images; give this user the right to read them"
            ) from error
        return Entries(sorted(folders), sorted(files), sorted(left_out))

    def open(self, path: str) -> io.BufferedReader:
        """See `Place`."""
        try:
            # Of a pipe that somebody named .jpg, opening would wait for ever.
            number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except (OSError, ValueError) as error:
            raise _unreadable(path, error) from error
        if not stat.S_ISREG(os.fstat(number).st_mode):
            os.close(number)
            raise DataError("cannot be read: not a regular file")
        return open(number, "rb")

    def modified_ns(self, path: str) -> int:
        """See `Place`."""
        try:
            return os.stat(path).st_mtime_ns  # noqa: PTH116
        except OSError:
            return 0

    def read(self, path: str, offset: int, size: int, *, at_most: int) -> bytes:
        """See `Place`."""
        with self.open(path) as file:
            try:
                wanted = os.fstat(file.fileno()).st_size if size < 0 else size
                require_few(wanted, at_most)
                file.seek(offset)
                return file.read(wanted)
            except OSError as error:
                raise _unreadable(path, error) from error


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _unreadable(path: str, error: OSError | ValueError) -> DataError:
    if isinstance(error, ValueError):  # a NUL in the name
        return DataError(f"cannot be read: {error}")
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return AbsentError(f"cannot be read: {error.strerror}")
    if error.errno in DAMAGE:
        return DataError(f"cannot be read: {error.strerror}")
    return unavailable(path, str(error.strerror))


def is_gone(folder: str) -> bool:
    """Whether nothing is there any more, as where a disk was unmounted."""
    try:
        with os.scandir(folder or ".") as entries:
            return next(entries, None) is None
    except OSError:
        return True
