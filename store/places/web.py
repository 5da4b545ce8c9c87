"""Objects of a finished store that are only read, by key: on the web, or by a forked process."""

from collections.abc import Iterable, Sequence

import urllib3
from urllib3.exceptions import HTTPError

from distill.errors import StoreError
from distill.storage.bucket import S3
from distill.storage.locations import place_of
from distill.storage.place import AbsentError, WholeOnlyError
from distill.storage.web import trusted_authorities
from distill.store.places.backend import Span

MOST_BYTES = 2**31  # of one object, which may be anybody's
PROBE_S = 10.0


def is_store(url: str) -> bool:
    """Whether a store lies at that address, rather than a server that answers there."""
    try:
        with urllib3.PoolManager(ca_certs=trusted_authorities()) as pool:
            response = pool.request(
                "GET", f"{url.rstrip('/')}/zarr.json", timeout=PROBE_S, retries=False
            )
            return response.status == 200 and b'"zarr_format"' in response.data
    except HTTPError:
        return False


class ReadOnlyBackend:
    """See `distill.store.places.backend.Backend`. url: http(s)://, hf:// or s3://, as data has
    them. Nothing can be listed or written.
    """

    requests = 16

    def __init__(self, url: str) -> None:
        self.url, self.place = url, place_of(url)

    def exists(self) -> bool:
        """Nobody can say; whoever asks reads what must be there."""
        return True

    def get(self, key: str, span: Span | None) -> bytes | None:
        """See `Backend`. Where a server sends whole files only, the part of one."""
        offset, size = span or (0, -1)
        path = f"{self.url}/{key}"
        try:
            return self.place.read(path, offset, size, at_most=MOST_BYTES)
        except WholeOnlyError:
            return self.place.read(path, 0, -1, at_most=MOST_BYTES)[offset : offset + size]
        except AbsentError:
            return None

    def make(self) -> None:
        """Nothing can be made."""
        self._refuse()

    def put(self, contents: Iterable[tuple[str, bytes]]) -> None:
        """Nothing can be written."""
        self._refuse()

    def put_new(self, key: str, content: bytes) -> bool:
        """Nothing can be written."""
        self._refuse()
        return False

    def delete(self, keys: Sequence[str]) -> None:
        """Nothing can be removed."""
        self._refuse()

    def names(self, folder: str) -> list[str]:
        """Nothing can be listed."""
        self._refuse()
        return []

    def keys(self, folder: str) -> list[tuple[str, int]]:
        """Nothing can be listed."""
        self._refuse()
        return []

    def tidy(self) -> None:
        """Nothing can be removed."""

    def _refuse(self) -> None:
        if self.url.startswith(S3):
            raise StoreError(
                f"{self.url}: a forked process only reads it, expected one that is spawned; pass "
                "multiprocessing_context='forkserver' to whatever makes processes"
            )
        raise StoreError(
            f"{self.url}: is on the web, where a finished store is read; expected a folder or a "
            "bucket for anything else"
        )
