"""Objects of a store by key, in a folder or in an S3-compatible bucket.

Owns places, retries and what their failures mean to the user. One write is one whole object: it is
there or it is not, on a disk (written aside, renamed) as in a bucket.
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import obstore
import zarr
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from obstore.store import LocalStore, from_url
from zarr.storage import MemoryStore, ObjectStore

from distill.errors import StoreError, first_line

URL_SCHEMES = ("s3://", "gs://", "az://")
PARALLEL_REQUESTS = 16
RETRIES = 10
REFUSED = ("Permission denied", "403 Forbidden", "401 Unauthorized")
RETRY_FOR = timedelta(minutes=3)


@dataclass(frozen=True, eq=False)
class Objects:
    """The objects below one place."""

    location: str

    @property
    def is_local(self) -> bool:
        """Whether the place is a folder of this machine."""
        return not self.location.startswith(URL_SCHEMES)

    @property
    def path(self) -> Path:
        """The folder, of a local place."""
        return Path(self.location)

    @cached_property
    def _store(self) -> Any:
        with self._named("be opened"):
            if self.is_local:
                return LocalStore(self.path.absolute(), automatic_cleanup=True)
            return from_url(
                self.location,
                client_options={"allow_http": True, "timeout": timedelta(seconds=60)},
                retry_config={"max_retries": RETRIES, "retry_timeout": RETRY_FOR},
            )

    def zarr(self, folder: str) -> ObjectStore[Any]:
        """The place below, for Zarr to read an array."""
        return ObjectStore(Objects(f"{self.location}/{folder}")._store)

    def make_place(self) -> None:
        """A folder where there is none; a bucket must be there already."""
        if self.is_local:
            with self._named("be made"):
                self.path.mkdir(parents=True, exist_ok=True)

    def write_array(self, folder: str, **array: Any) -> None:
        """What `zarr.create_array` makes, put there object by object over whatever is there.

        Zarr itself would first remove what it writes over: another process may be reading it.
        """
        made: dict[str, Any] = {}
        zarr.create_array(MemoryStore(made), **array)
        self.write_all((f"{folder}/{key}", made[key].to_bytes()) for key in sorted(made))

    def exists(self) -> bool:
        """Whether anything is there."""
        if not self.is_local:
            return bool(self.names())
        with self._named("be listed"):
            return self.path.is_dir() and next(self.path.iterdir(), None) is not None

    def read(self, key: str) -> bytes | None:
        """The whole object; None where there is none.

        Raises:
            StoreError: the place cannot be read.
        """
        with self._named("be read"):
            try:
                if self.is_local:  # 15 µs; through obstore 90
                    return (self.path / key).read_bytes()
                return bytes(obstore.get(self._store, key).bytes())
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                return None

    def read_all(self, keys: Sequence[str]) -> list[bytes | None]:
        """`read` of each; requests to a bucket run side by side."""
        if self.is_local or len(keys) < 2:
            return [self.read(key) for key in keys]
        return list(self._requests.map(self.read, keys))

    def write(self, key: str, content: bytes) -> None:
        """Put the object there, over another if there is one.

        Raises:
            StoreError: disk full, no permission, or the network does not come back.
        """
        with self._named("be written"):
            obstore.put(self._store, key, content, use_multipart=False)

    def write_all(self, contents: Iterable[tuple[str, bytes]]) -> None:
        """`write` of each; requests to a bucket run side by side."""
        if self.is_local:
            for key, content in contents:
                self.write(key, content)
        else:
            list(self._requests.map(lambda item: self.write(*item), contents))

    def write_new(self, key: str, content: bytes) -> bool:
        """`write`, but False where an object is there already, which stays."""
        with self._named("be written"):
            try:
                obstore.put(self._store, key, content, mode="create", use_multipart=False)
            except AlreadyExistsError:
                return False
            return True

    def delete(self, keys: Sequence[str]) -> None:
        """Remove those that are there."""
        with self._named("be written"):
            for start in range(0, len(keys), 1000):
                some = list(keys[start : start + 1000])
                try:
                    obstore.delete(self._store, some)
                except FileNotFoundError:  # on a disk; the others may not have been reached
                    for key in some:
                        with suppress(FileNotFoundError):
                            obstore.delete(self._store, key)

    def names(self, folder: str = "") -> list[str]:
        """Names directly below `folder`, of objects and of folders."""
        with self._named("be listed"):
            listing = obstore.list_with_delimiter(self._store, folder or None)
        below = [*listing["common_prefixes"], *(o["path"] for o in listing["objects"])]
        return sorted(path.rpartition("/")[2] for path in below)

    def keys(self, folder: str = "") -> list[str]:
        """Every key below `folder`."""
        with self._named("be listed"):
            return [o["path"] for batch in obstore.list(self._store, folder or None) for o in batch]

    def bytes_total(self) -> int:
        """Total size of all objects."""
        with self._named("be listed"):
            return sum(o["size"] for batch in obstore.list(self._store) for o in batch)

    @cached_property
    def _requests(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(PARALLEL_REQUESTS, thread_name_prefix="store-requests")

    @contextmanager
    def _named(self, name: str) -> Iterator[None]:
        """The failure of a place as one line that says what to do."""
        try:
            yield
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise
        except (BaseError, OSError, ValueError) as error:
            cause = _cause(error)
            raise StoreError(
                f"{self.location}: cannot {name}: {cause}; committed blocks are safe: "
                f"{self._advice(error, cause)}, then run the same command again"
            ) from error

    def _advice(self, error: BaseException, cause: str) -> str:
        # obstore has classes for these, but a list that is refused is a generic error.
        refused = (PermissionDeniedError, UnauthenticatedError, PermissionError)
        if isinstance(error, refused) or any(text in cause for text in REFUSED):
            return "fix " + (
                "the permission" if self.is_local else "the credentials (AWS_* variables)"
            )
        if "404 Not Found" in cause or "NoSuchBucket" in cause:
            return "make the bucket or correct its name"
        return "check " + ("the disk" if self.is_local else "the endpoint and the network")


def open_objects(location: "str | Path | Objects") -> Objects:
    """A folder, or s3://bucket/prefix (gs:// and az:// alike) with credentials in the environment.

    Raises:
        StoreError: the URL is of an unknown kind.
    """
    if isinstance(location, Objects):
        return location
    text = str(location)
    if not text or "\0" in text:
        raise StoreError(f"{text!r} found as the place of a store, expected a folder or a URL")
    if "://" in text and not text.startswith(URL_SCHEMES):
        raise StoreError(
            f"{text}: unknown kind of location, expected a folder or one of {' '.join(URL_SCHEMES)}"
        )
    return Objects(text.rstrip("/") if text.startswith(URL_SCHEMES) else text)


def _cause(error: BaseException) -> str:
    """The first line without the library's own account of itself."""
    line = first_line(error)
    return line.split(" error: ", 1)[1] if " error: " in line else line
