"""S3 buckets, and what speaks their protocol."""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Literal

from distill.errors import DataError, DataUnavailableError, first_line, optional
from distill.storage.place import AbsentError, Entries, RangeFile, require_few, unavailable

S3 = "s3://"
ABSENT = ("404", "NoSuchKey", "NoSuchBucket", "NotFound")
CONNECTIONS = 32
ATTEMPTS = 10


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
        bucket, key = _parts(path)
        with _named(path):
            size = int(_client().head_object(Bucket=bucket, Key=key)["ContentLength"])
        return RangeFile(self, path, size).buffered()

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
        require_few(size, at_most)
        if size == 0:
            return b""
        span = {} if size < 0 else {"Range": f"bytes={offset}-{offset + size - 1}"}
        with _named(path):
            answer = _client().get_object(Bucket=bucket, Key=key, **span)
            require_few(int(answer["ContentLength"]), at_most)
            return bytes(answer["Body"].read())


def _client() -> Any:
    return _client_of(os.getpid())


@lru_cache(maxsize=1)
def _client_of(process: int) -> Any:
    with optional("s3", "s3://…"):
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
    with optional("s3", path):
        from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        if code in ABSENT:
            raise AbsentError(f"cannot be read: {path} is not there") from error
        raise unavailable(path, first_line(error)) from error
    except (BotoCoreError, OSError) as error:
        raise unavailable(path, first_line(error)) from error


def _parts(path: str) -> tuple[str, str]:
    bucket, _, key = path.removeprefix(S3).partition("/")
    if not bucket:
        raise DataError(f"{path}: no bucket found, expected s3://bucket/prefix")
    return bucket, key.rstrip("/")
