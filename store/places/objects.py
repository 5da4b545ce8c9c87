"""Objects of a store by key, in a folder, in a bucket, or read from the web.

Owns how places are written down, and what their failures mean to the user. One write is one whole
object: it is there or it is not.
"""

import itertools
import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import zarr
from numpy.typing import NDArray
from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError
from zarr.core.buffer.cpu import Buffer
from zarr.storage import MemoryStore

from distill.errors import StoreError, StoreUnavailableError, first_line
from distill.per_process import per_process
from distill.store.places import bucket
from distill.store.places.backend import Backend, Span
from distill.store.places.bucket import BUCKETS, BucketBackend
from distill.store.places.disk import FolderBackend
from distill.store.places.web import ReadOnlyBackend

WEB = ("http", "https", "hf")
SCHEMES = (*BUCKETS, *WEB)
REFUSED = ("Permission denied", "403 Forbidden", "401 Unauthorized")
MOST_CHUNK_VALUES = 2**26
MOST_CHUNKS = 2**20  # of one array, whose metadata may be anybody's


@dataclass(frozen=True, eq=False)
class Objects:
    """The objects below one place."""

    location: str

    @property
    def is_local(self) -> bool:
        """Whether the place is a folder of this machine."""
        return "://" not in self.location

    @property
    def requests(self) -> int:
        """How many should run side by side."""
        return self._backend.requests

    @per_process
    def _backend(self) -> Backend:
        if self.is_local:
            return FolderBackend(Path(self.location))
        scheme, _, rest = self.location.partition("://")
        with self._named("be opened"):
            if scheme in WEB:
                return ReadOnlyBackend(self.location)
            if bucket.is_lost():
                return self._backend_of_a_fork(scheme)
            return BucketBackend.at(scheme, rest)

    def make_place(self) -> None:
        """A folder where there is none; a bucket must be there already."""
        with self._named("be made"):
            self._backend.make()

    def exists(self) -> bool:
        """Whether anything is there."""
        with self._named("be listed"):
            return self._backend.exists()

    def read(self, key: str, span: Span | None = None) -> bytes | None:
        """The object, or that much of it; None where there is none.

        Raises:
            StoreError: the place cannot be read.
        """
        with self._named("be read"):
            return self._backend.get(key, span)

    def read_all(
        self, keys: Sequence[str], spans: Sequence[Span] | None = None
    ) -> list[bytes | None]:
        """`read` of each; where requests take long they run side by side."""
        parts: Sequence[Span | None] = spans or [None] * len(keys)
        if self.requests == 1 or len(keys) < 2:
            return [self.read(*each) for each in zip(keys, parts, strict=True)]
        return list(self._threads.map(self.read, keys, parts))

    def read_written(
        self, keys: Sequence[str], spans: Sequence[Span] | None = None
    ) -> list[bytes | None]:
        """`read_all` of objects that were there once.

        Raises:
            StoreError: nothing at all is there any more, as when its disk is away.
        """
        contents = self.read_all(keys, spans)
        if None in contents and not self.exists():
            raise StoreError(
                f"{self.location}: the store is gone, expected it where it was; mount its disk, or "
                "move it back"
            )
        return contents

    def read_array(self, folder: str, most: int) -> NDArray[Any]:
        """A whole Zarr array of at most so many values, whose chunks are objects of their own.

        Raises:
            ValueError: it is not there, not whole, or larger.
        """
        document = self.read(f"{folder}/zarr.json")
        if document is None:
            raise ValueError("its zarr.json is missing")
        metadata = json.loads(document)
        shape, chunks = metadata["shape"], metadata["chunk_grid"]["configuration"]["chunk_shape"]
        sizes = [*shape, *chunks]
        if not (sizes and all(type(n) is int and 0 < n < 2**62 for n in sizes)):
            raise ValueError(f"its shape {shape} is not one that distill writes")
        counts = [-(-n // size) for n, size in zip(shape, chunks, strict=True)]
        if math.prod(shape) > most or math.prod(counts) > MOST_CHUNKS:
            raise ValueError(f"its shape {shape} is not one that distill writes")
        if math.prod(chunks) > most + MOST_CHUNK_VALUES:
            raise ValueError(f"its chunks {chunks} are not such that distill writes")
        grid = [range(count) for count in counts]
        separator = metadata["chunk_key_encoding"]["configuration"]["separator"]
        keys = [separator.join(["c", *map(str, place)]) for place in itertools.product(*grid)]
        contents = self.read_all([f"{folder}/{key}" for key in keys])
        made: dict[str, Any] = {"zarr.json": Buffer.from_bytes(document)}
        if b"" in contents:
            raise ValueError("a chunk is empty")  # one of zeros alone is not written at all
        made |= {k: Buffer.from_bytes(c) for k, c in zip(keys, contents, strict=True) if c}
        return np.asarray(zarr.open_array(MemoryStore(made), mode="r")[...])

    def write(self, key: str, content: bytes) -> None:
        """Put the object there, over another if there is one.

        Raises:
            StoreError: disk full, no permission, or the network does not come back.
        """
        self.write_all([(key, content)])

    def write_all(self, contents: Iterable[tuple[str, bytes]]) -> None:
        """`write` of each; all are there when it returns."""
        with self._named("be written"):
            self._backend.put(contents)

    def write_new(self, key: str, content: bytes) -> bool:
        """`write`, but False where an object is there already, which stays."""
        with self._named("be written"):
            return self._backend.put_new(key, content)

    def write_array(self, folder: str, **array: Any) -> None:
        """What `zarr.create_array` makes, put there object by object over whatever is there.

        Zarr itself would first remove what it writes over: another process may be reading it.
        """
        made: dict[str, Any] = {}
        zarr.create_array(MemoryStore(made), **array)
        self.write_all((f"{folder}/{key}", made[key].to_bytes()) for key in sorted(made))

    def delete(self, keys: Sequence[str]) -> None:
        """Remove those that are there."""
        with self._named("be written"):
            self._backend.delete(keys)

    def names(self, folder: str = "") -> list[str]:
        """Names directly below `folder`, of objects and of folders."""
        with self._named("be listed"):
            return self._backend.names(folder)

    def keys(self, folder: str = "") -> list[str]:
        """Every key below `folder`."""
        with self._named("be listed"):
            return [key for key, _ in self._backend.keys(folder)]

    def bytes_total(self) -> int:
        """Total size of all objects."""
        with self._named("be listed"):
            return sum(size for _, size in self._backend.keys(""))

    def tidy(self) -> None:
        """Remove what killed writers left."""
        with self._named("be written"):
            self._backend.tidy()

    def _backend_of_a_fork(self, scheme: str) -> Backend:
        if scheme != "s3":
            raise StoreError(
                f"{self.location}: cannot be read by a process that was forked from one that had "
                "read it, expected s3://; use processes that are spawned (multiprocessing_context="
                "'forkserver' of a DataLoader)"
            )
        return ReadOnlyBackend(self.location)

    @per_process
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.requests, thread_name_prefix="store-requests")

    @contextmanager
    def _named(self, name: str) -> Iterator[None]:
        """The failure of a place as one line that says what to do."""
        try:
            yield
        except (BaseError, OSError, ValueError) as error:
            cause = _cause(error)
            advice = self._advice(error, cause)
            passing = advice is None and not self.is_local
            advice = (
                advice or f"check the {'disk' if self.is_local else 'endpoint and the network'}"
            )
            raise (StoreUnavailableError if passing else StoreError)(
                f"{self.location}: cannot {name}: {cause}; committed blocks are safe: "
                f"{advice}, then run the same command again"
            ) from error

    def _advice(self, error: BaseException, cause: str) -> str | None:
        """What to do, where more is known than that it failed."""
        # obstore has classes for these, but a list that is refused is a generic error.
        refused = (PermissionDeniedError, UnauthenticatedError, PermissionError)
        if isinstance(error, refused) or any(text in cause for text in REFUSED):
            if self.is_local:
                return "fix the permission"
            if self.location.startswith(WEB):
                return "pass the key that the place wants (HF_TOKEN for the hub)"
            return (
                "fix the credentials (AWS_* variables), which need the rights to list, get, put "
                "and delete: without s3:ListBucket a bucket refuses to say that something is absent"
            )
        if "404 Not Found" in cause or "NoSuchBucket" in cause:
            return "make the bucket or correct its name"
        if any(text in cause for text in ("501 Not Implemented", "NotImplemented")):
            return (
                "use a service that writes only where nothing is (If-None-Match), which keeps two "
                "writers apart; or precompute on a disk, and copy the finished store"
            )
        return None


def open_objects(location: "str | Path | Objects") -> Objects:
    """A folder, a bucket as s3://bucket/prefix (gs:// and az:// alike) with credentials in the
    environment, or a finished store on the web, https://… or hf://datasets/OWNER/NAME/FOLDER.

    Raises:
        StoreError: the URL is of an unknown kind.
    """
    if isinstance(location, Objects):
        return location
    text = str(location)
    if not text or "\0" in text:
        raise StoreError(f"{text!r} found as the place of a store, expected a folder or a URL")
    if text.startswith("file://"):
        return Objects(unquote(text.removeprefix("file://").removeprefix("localhost")))
    scheme, _, rest = text.partition("://")
    if not rest and scheme == text:
        # A path made one slash of two: s3:/bucket would be a folder.
        if re.match(rf"({'|'.join((*SCHEMES, 'file'))}):", text):
            raise StoreError(f"{text}: one slash found, expected two, as in s3://bucket/prefix")
        return Objects(text)
    if scheme not in SCHEMES:
        raise StoreError(
            f"{text}: unknown kind of location, expected a folder or one of "
            f"{' '.join(f'{each}://' for each in SCHEMES)}"
        )
    rest = rest.rstrip("/")
    if not rest or (scheme == "hf" and len(rest.split("/")) < 3):
        raise StoreError(
            f"{text}: not a whole location, expected {scheme}://"
            + ("datasets/OWNER/NAME/FOLDER" if scheme == "hf" else "NAME/PREFIX")
        )
    return Objects(f"{scheme}://{rest}")


def _cause(error: BaseException) -> str:
    """The first line without the library's own account of itself."""
    line = first_line(error)
    own = isinstance(error, BaseError) and " error: " in line
    return line.split(" error: ", 1)[1] if own else line
