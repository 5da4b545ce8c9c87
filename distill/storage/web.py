"""Files on the web: behind any HTTP server, and in repositories of the Hugging Face hub.

Public, or with the token in HF_TOKEN for the hub; read by ranges, never written.
"""

import io
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Any, Literal
from urllib.parse import quote

import urllib3
from huggingface_hub import HfFileSystem
from huggingface_hub.errors import HfHubHTTPError
from urllib3.exceptions import HTTPError

from distill.errors import ConfigError, DataError, first_line
from distill.storage.place import (
    AbsentError,
    Entries,
    RangeFile,
    WholeOnlyError,
    require_few,
    unavailable,
)

HTTP = ("https://", "http://")
HF = "hf://"
CA_FILE = "DISTILL_CA_FILE"
GONE = (401, 403, 404, 410)
TIMEOUT_S, RETRIES, PAUSE_S = 60.0, 6, 0.25


class Web:
    """Files by their address. Nothing can be listed: name a tar, a pattern of tars, or a table."""

    def kind(self, path: str) -> Literal["file", "folder"] | None:
        """See `Place`."""
        response = _request("HEAD", path, {})
        return None if response.status in GONE else "file"

    def entries(self, folder: str, *, links: bool = True) -> Entries:
        """See `Place`."""
        raise DataError(
            f"{folder}: what a web server has cannot be listed, expected the address of a .tar, a "
            "pattern of them as https://host/train-{0000..0127}.tar, or a .csv or .parquet table"
        )

    def open(self, path: str) -> io.BufferedReader:
        """See `Place`."""
        response = _request("HEAD", path, {})
        size = response.headers.get("content-length", "")
        if response.status in GONE:
            raise _absent(path, response.status)
        if not size.isdecimal():
            raise DataError(f"cannot be read: the server does not say how large {path} is")
        return RangeFile(self, path, int(size)).buffered()

    def modified_ns(self, path: str) -> int:
        """See `Place`. As the server says."""
        response = _request("HEAD", path, {})
        said = response.headers.get("last-modified")
        if response.status in GONE or not said:
            return 0
        with suppress(ValueError, TypeError):
            return int(parsedate_to_datetime(said).timestamp()) * 10**9
        return 0

    def read(self, path: str, offset: int, size: int, *, at_most: int) -> bytes:
        """See `Place`."""
        require_few(size, at_most)
        if size == 0:
            return b""
        span = "" if size < 0 else f"bytes {offset}-{offset + size - 1}"
        headers = {"Range": span.replace(" ", "=")} if span else {}
        for attempt in range(RETRIES + 1):
            response = _request("GET", path, headers)
            if response.status in GONE:
                response.release_conn()
                raise _absent(path, response.status)
            if span and response.status != 206:
                response.close()
                raise WholeOnlyError(
                    f"cannot be read: {path} is sent as a whole only, expected a server that "
                    "answers Range requests; copy the file to a disk"
                )
            try:
                content = _body(response, at_most)
            except (HTTPError, OSError) as error:  # the rest of it may come the next time
                if attempt == RETRIES:
                    raise unavailable(path, first_line(error)) from error
                time.sleep(PAUSE_S * 2**attempt)
                continue
            told = str(response.headers.get("content-range", span))
            if span and (len(content) != size or not told.startswith(span)):
                raise unavailable(
                    path, f"{len(content)} bytes as {told!r} came for {size} of {span!r}"
                )
            return content
        raise AssertionError("the last attempt returns or raises")


class Hub:
    """Repositories of the Hugging Face hub: hf://datasets/OWNER/NAME[@REVISION]/PATH."""

    def kind(self, path: str) -> Literal["file", "folder"] | None:
        """See `Place`."""
        try:
            with _named(path):
                found = _hub().info(path)["type"]
        except AbsentError:
            return None
        return "folder" if found == "directory" else "file"

    def entries(self, folder: str, *, links: bool = True) -> Entries:
        """See `Place`. There are no links."""
        folders: list[str] = []
        files: list[str] = []
        with _named(folder):
            for entry in _hub().ls(folder, detail=True):
                name = entry["name"].rpartition("/")[2]
                (folders if entry["type"] == "directory" else files).append(name)
        return Entries(sorted(folders), sorted(files))

    def open(self, path: str) -> io.BufferedReader:
        """See `Place`."""
        with _named(path):
            size = int(_hub().info(path)["size"])
        return RangeFile(self, path, size).buffered()

    def modified_ns(self, path: str) -> int:
        """See `Place`. The time of the last commit to it."""
        try:
            with _named(path):
                commit = _hub().info(path, expand_info=True).get("last_commit")
        except AbsentError:
            return 0
        return int(commit.date.timestamp() * 10**9) if commit else 0

    def read(self, path: str, offset: int, size: int, *, at_most: int) -> bytes:
        """See `Place`."""
        require_few(size, at_most)
        with _named(path):
            if size < 0:
                require_few(int(_hub().info(path)["size"]), at_most)
                return bytes(_hub().cat_file(path))
            return bytes(_hub().cat_file(path, offset, offset + size)) if size else b""


def _body(response: Any, at_most: int) -> bytes:
    """What an answer holds, as it was sent: nothing may grow by unpacking it."""
    try:
        length = response.headers.get("content-length", "")
        require_few(int(length) if length.isdecimal() else 0, at_most)
        content = bytes(response.read(at_most + 1, decode_content=False))
        if response.headers.get("content-encoding", "identity") != "identity":
            raise DataError("cannot be read: the server packs it, which nobody asked for")
        require_few(len(content), at_most)
        if length.isdecimal() and len(content) != int(length):
            raise HTTPError(f"{len(content)} of {length} bytes came")
        return content
    finally:
        response.close()


def trusted_authorities() -> str | None:
    """File of certificates to trust beside OpenSSL's own and those of SSL_CERT_FILE.

    Raises:
        ConfigError: there is no such file.
    """
    authorities = os.environ.get(CA_FILE)
    if authorities and not os.path.isfile(authorities):  # noqa: PTH113
        raise ConfigError(f"{CA_FILE}: no file {authorities}, expected certificates as PEM")
    return authorities


def _request(method: str, path: str, headers: dict[str, str]) -> Any:
    try:
        response = _pool(os.getpid()).request(
            method,
            quote(path, safe=":/?#[]@!$&'()*+,;=%~"),
            headers={"Accept-Encoding": "identity", **headers},
            preload_content=method == "HEAD",
        )
    except HTTPError as error:
        raise unavailable(path, first_line(error)) from error
    if response.status >= 400 and response.status not in GONE:
        response.release_conn()
        raise unavailable(path, f"HTTP {response.status}")
    return response


@lru_cache(maxsize=1)
def _pool(process: int) -> urllib3.PoolManager:
    """Connections of one process: loaders fork, and connections must not be shared."""
    retries = urllib3.Retry(RETRIES, backoff_factor=0.5, status_forcelist=(429, 500, 502, 503, 504))
    retries.raise_on_status = False
    return urllib3.PoolManager(
        maxsize=32, timeout=TIMEOUT_S, retries=retries, ca_certs=trusted_authorities()
    )


def _hub() -> Any:
    return _hub_of(os.getpid())


@lru_cache(maxsize=1)
def _hub_of(process: int) -> Any:
    return HfFileSystem(endpoint=os.environ.get("HF_ENDPOINT"), skip_instance_cache=True)


@contextmanager
def _named(path: str) -> Iterator[None]:
    """Failures of the hub in our words."""
    try:
        yield
    except FileNotFoundError as error:
        raise _absent(path, 404) from error
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        if status in GONE:
            raise _absent(path, status) from error
        raise unavailable(path, first_line(error)) from error
    except DataError:
        raise
    except Exception as error:  # the hub's client raises whatever the network does
        raise unavailable(path, first_line(error)) from error


def _absent(path: str, status: int) -> AbsentError:
    more = "; for the hub's private repositories set HF_TOKEN" if status in (401, 403) else ""
    return AbsentError(f"cannot be read: {path} is not there (HTTP {status}){more}")
