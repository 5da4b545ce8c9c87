"""Objects of a store in a bucket: S3 and what speaks its protocol, GCS, Azure."""

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from functools import cached_property
from typing import Any

import obstore
from obstore.exceptions import AlreadyExistsError
from obstore.store import AzureStore, GCSStore, S3Store

from distill.store.places.backend import Span

BUCKETS = {"s3": S3Store, "gs": GCSStore, "az": AzureStore}
RETRIES, RETRY_FOR = 10, timedelta(minutes=3)
CLIENT: Any = {"allow_http": True, "timeout": timedelta(seconds=60)}


# Its threads are gone in a forked child, which would wait for them without end.
_runtime = {"used": False, "lost": False}
os.register_at_fork(after_in_child=lambda: _runtime.update(lost=_runtime["used"]))


def is_lost() -> bool:
    """Whether this process was forked from one that had used a bucket: use another client."""
    return _runtime["lost"]


class BucketBackend:
    """See `distill.store.places.backend.Backend`."""

    requests = 16

    def __init__(self, store: Any) -> None:
        self.store = store

    @classmethod
    def at(cls, scheme: str, rest: str) -> "BucketBackend":
        """s3://rest and the like; credentials, region and endpoint from the environment."""
        _runtime["used"] = True
        bucket, _, prefix = rest.partition("/")
        retry: Any = {"max_retries": RETRIES, "retry_timeout": RETRY_FOR}
        return cls(
            BUCKETS[scheme](
                bucket, prefix=prefix or None, client_options=CLIENT, retry_config=retry
            )
        )

    def make(self) -> None:
        """A bucket must be there already."""

    def exists(self) -> bool:
        """See `Backend`."""
        return bool(self.names(""))

    def get(self, key: str, span: Span | None) -> bytes | None:
        """See `Backend`."""
        try:
            if span is not None:
                return bytes(obstore.get_range(self.store, key, start=span[0], length=span[1]))
            return bytes(obstore.get(self.store, key).bytes())
        except FileNotFoundError:
            return None

    def put(self, contents: Iterable[tuple[str, bytes]]) -> None:
        """See `Backend`."""
        some = list(contents)
        if len(some) < 2:
            for item in some:
                self._put(*item)
        else:
            list(self._threads.map(lambda item: self._put(*item), some))

    def _put(self, key: str, content: bytes) -> None:
        obstore.put(self.store, key, content, use_multipart=False)

    def put_new(self, key: str, content: bytes) -> bool:
        """See `Backend`."""
        try:
            obstore.put(self.store, key, content, mode="create", use_multipart=False)
        except AlreadyExistsError:
            return False
        return True

    def delete(self, keys: Sequence[str]) -> None:
        """See `Backend`."""
        for start in range(0, len(keys), 1000):
            with suppress(FileNotFoundError):
                obstore.delete(self.store, list(keys[start : start + 1000]))

    def names(self, folder: str) -> list[str]:
        """See `Backend`."""
        listing = obstore.list_with_delimiter(self.store, folder or None)
        below = [*listing["common_prefixes"], *(o["path"] for o in listing["objects"])]
        return sorted(path.rpartition("/")[2] for path in below)

    def keys(self, folder: str) -> list[tuple[str, int]]:
        """See `Backend`."""
        batches = obstore.list(self.store, folder or None)
        return sorted((o["path"], o["size"]) for batch in batches for o in batch)

    def tidy(self) -> None:
        """An upload that breaks off leaves nothing."""

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.requests, thread_name_prefix="store-requests")
