"""Places that hold files: folders of this machine, and S3 buckets.

Owns listing, opening and reading ranges, and which failures belong to one file and which pass.
Paths are strings with slashes, those of a bucket begin with s3://.
"""

import errno
import io
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal, Protocol, runtime_checkable

from distill.errors import DataError, DataUnavailableError, first_line

S3 = "s3://"
# Errors that belong to one file and stay with it; any other is trouble that passes.
DAMAGE = {
    *(errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENXIO),
    *(errno.ENAMETOOLONG, errno.EINVAL, errno.ENOTSUP),
}
ABSENT = ("404", "NoSuchKey", "NoSuchBucket", "NotFound")
READ_AHEAD_BYTES = 8 * 2**20
CONNECTIONS = 32
ATTEMPTS = 10


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


def place_of(path: str) -> Place:
    """The kind of place that a path is in.

    Raises:
        DataError: it is a URL of another kind.
    """
    if path.startswith(S3):
        return Bucket()
    if "://" in path:
        raise DataError(f"{path}: unknown kind of location, expected a folder, a file or s3://…")
    return Disk()


def walk(
    folder: str, *, enters: Callable[[str], bool] = lambda name: True
) -> Iterator[tuple[str, Entries]]:
    """Each folder from `folder` on down, relative to it ("" is itself), and its entries; sorted.

    Folders directly in it may be links, those further down are not followed: they may lead back up.
    enters: whether a folder of that name is gone into.
    """
    place, waiting = place_of(folder), [""]
    while waiting:
        inside = waiting.pop()
        entries = place.entries(f"{folder}/{inside}" if inside else folder, links=not inside)
        yield inside, entries
        below = [name for name in reversed(entries.folders) if enters(name)]
        waiting += [f"{inside}/{name}".lstrip("/") for name in below]


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
                _require_few(wanted, at_most)
                file.seek(offset)
                return file.read(wanted)
            except OSError as error:
                raise _unreadable(path, error) from error


class Bucket:
    """S3 and what speaks its protocol; credentials, region and endpoint from the environment.

    A client belongs to one process: loaders fork, and connections must not be shared.
    """

    def kind(self, path: str) -> Literal["file", "folder"] | None:
        """See `Place`. A prefix that something is below counts as a folder."""
        bucket, key = _parts(path)
        with _named(path):
            if key:
                response = _client().list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1)
                if any(item["Key"] == key for item in response.get("Contents", ())):
                    return "file"
            prefix = f"{key}/" if key else ""
            below = _client().list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=1)
        return "folder" if below.get("KeyCount") else None

    def entries(self, folder: str, *, links: bool = True) -> Entries:
        """See `Place`. There are no links."""
        bucket, key = _parts(folder)
        prefix = f"{key}/" if key else ""
        folders: list[str] = []
        files: list[str] = []
        with _named(folder):
            pages = _client().get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=bucket, Prefix=prefix, Delimiter="/"):
                below = (item["Prefix"] for item in page.get("CommonPrefixes", ()))
                folders += [name[len(prefix) : -1] for name in below]
                names = (item["Key"] for item in page.get("Contents", ()))
                files += [name[len(prefix) :] for name in names if name != prefix]
        return Entries(sorted(folders), sorted(files))

    def open(self, path: str) -> io.BufferedReader:
        """See `Place`."""
        return io.BufferedReader(_Object(path), READ_AHEAD_BYTES)

    def modified_ns(self, path: str) -> int:
        """See `Place`."""
        bucket, key = _parts(path)
        try:
            with _named(path):
                written = _client().head_object(Bucket=bucket, Key=key)["LastModified"]
        except DataUnavailableError:
            raise
        except DataError:
            return 0
        return int(written.timestamp() * 10**9)

    def read(self, path: str, offset: int, size: int, *, at_most: int) -> bytes:
        """See `Place`."""
        bucket, key = _parts(path)
        _require_few(size, at_most)
        if size == 0:
            return b""
        span = {} if size < 0 else {"Range": f"bytes={offset}-{offset + size - 1}"}
        with _named(path):
            answer = _client().get_object(Bucket=bucket, Key=key, **span)
            _require_few(int(answer["ContentLength"]), at_most)
            return bytes(answer["Body"].read())


class _Object(io.RawIOBase):
    """One object of a bucket as a file."""

    mode = "rb"

    def __init__(self, path: str) -> None:
        self.path, self.at = path, 0
        bucket, key = _parts(path)
        with _named(path):
            self.size = int(_client().head_object(Bucket=bucket, Key=key)["ContentLength"])

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
        content = Bucket().read(self.path, self.at, wanted, at_most=wanted)
        buffer[: len(content)] = content
        self.at += len(content)
        return len(content)


def _client() -> Any:
    return _client_of(os.getpid())


@lru_cache(maxsize=1)
def _client_of(process: int) -> Any:
    import boto3
    from botocore.config import Config

    config = Config(
        retries={"max_attempts": ATTEMPTS, "mode": "adaptive"}, max_pool_connections=CONNECTIONS
    )
    # boto3 reads the older AWS_DEFAULT_REGION alone; stores take AWS_REGION.
    return boto3.client("s3", config=config, region_name=os.environ.get("AWS_REGION"))


@contextmanager
def _named(path: str) -> Iterator[None]:
    """Failures of a bucket in our words."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        if code in ABSENT:
            raise DataError(f"cannot be read: {path} is not there") from error
        raise unavailable(path, first_line(error)) from error
    except (BotoCoreError, OSError) as error:
        raise unavailable(path, first_line(error)) from error


def _parts(path: str) -> tuple[str, str]:
    bucket, _, key = path.removeprefix(S3).partition("/")
    if not bucket:
        raise DataError(f"{path}: no bucket found, expected s3://bucket/prefix")
    return bucket, key.rstrip("/")


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _require_few(size: int, at_most: int) -> None:
    if size > at_most:
        raise DataError(f"too many bytes: {size} found, expected at most {at_most}")


def _unreadable(path: str, error: OSError | ValueError) -> DataError:
    if isinstance(error, ValueError):  # a NUL in the name
        return DataError(f"cannot be read: {error}")
    if error.errno in DAMAGE:
        return DataError(f"cannot be read: {error.strerror}")
    return unavailable(path, str(error.strerror))


def unavailable(path: str, cause: str) -> DataUnavailableError:
    """What to raise of trouble that passes."""
    return DataUnavailableError(
        f"{path}: cannot be read now ({cause}), expected a disk, a network and a machine in "
        "order; finished work is kept: fix it, then run the same command again"
    )
