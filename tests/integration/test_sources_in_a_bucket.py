"""Images in a bucket: a real S3 server process, and a proxy that throttles and hangs up."""

import os
from contextlib import closing
from pathlib import Path

import boto3
import pytest
from buckets import Unreliable
from small_images import CIRCLE, SQUARE, jpeg, write_folder, write_tar

from distill.data.formats import tars
from distill.data.images import read_bytes
from distill.data.loader import in_batches, load_views
from distill.data.source import has_split, open_source
from distill.data.view_policy import ViewPolicy
from distill.errors import DataError, DataUnavailableError
from distill.files import write_csv


def upload(folder: Path, location: str) -> None:
    bucket, _, prefix = location.removeprefix("s3://").partition("/")
    with closing(boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])) as client:
        for path in folder.rglob("*"):
            if path.is_file():
                key = f"{prefix}/{path.relative_to(folder)}".lstrip("/")
                client.upload_file(str(path), bucket, key)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_folder(tmp_path / "data" / "train")
    write_folder(tmp_path / "data" / "val", images=1)
    members = {f"{SQUARE}_{i}.jpg": jpeg(i, 8 + i) for i in range(20)}
    write_tar(tmp_path / "data" / "tars" / "train-0.tar", members)
    write_tar(tmp_path / "data" / "tars" / "val-0.tar", {"v.jpg": jpeg(), "v.wnid": b"n1"})
    return tmp_path / "data"


def test_folders_and_tars_in_a_bucket_are_those_on_disk(data: Path, bucket: str) -> None:
    upload(data, f"{bucket}/some/data")
    for below, split in (("", "train"), ("", "val"), ("/train", "train"), ("/tars", "val")):
        local, remote = (open_source(f"{at}{below}", split) for at in (data, f"{bucket}/some/data"))
        assert (remote.ids == local.ids).all()
        assert [s.label for s in remote.samples] == [s.label for s in local.samples]
        assert [*map(read_bytes, remote.samples)] == [*map(read_bytes, local.samples)]
    assert has_split(f"{bucket}/some/data", "val")
    assert not has_split(f"{bucket}/some/data/train", "val")


@pytest.mark.parametrize("workers", [0, 2])
def test_views_of_images_in_a_bucket(data: Path, bucket: str, workers: int) -> None:
    """Also from processes that were forked after this one asked the bucket."""
    upload(data / "tars", bucket)
    pixels = []
    for location in (str(data / "tars"), bucket):
        source = open_source(location)
        requests = in_batches(range(20), (0,), 8)
        loaded = load_views(source, ViewPolicy(name="plain"), [(8, 8)], requests, workers=workers)
        pixels.append([batch.pixels[0].numpy().tobytes() for batch in loaded])
    assert pixels[0] == pixels[1]


def test_a_tar_in_a_bucket_is_fetched_once(
    data: Path, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(data / "tars", bucket)
    first = open_source(bucket, indexes=tmp_path / "indexes")
    monkeypatch.setattr(tars, "list_tar", lambda *_: pytest.fail("fetched again"))
    assert list(open_source(bucket, indexes=tmp_path / "indexes").samples) == list(first.samples)


def test_a_table_may_name_objects(data: Path, bucket: str, tmp_path: Path) -> None:
    upload(data, bucket)
    names = [f"{bucket}/train/{wnid}/{wnid}_1.JPEG" for wnid in (SQUARE, CIRCLE)]
    write_csv(
        tmp_path / "t.csv", ["path", "wnid"], [[n, w] for n, w in zip(names, "ab", strict=True)]
    )
    source = open_source(tmp_path / "t.csv")
    assert [read_bytes(sample) for sample in source.samples] == [jpeg(1)] * 2
    upload(tmp_path, bucket)
    assert len(open_source(f"{bucket}/t.csv")) == 2


def test_throttling_and_cut_connections_are_got_over(
    data: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(data, bucket)
    proxy = Unreliable(os.environ["AWS_ENDPOINT_URL"], slow_down=0.2, cut=0.1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    from distill.storage import bucket as storage

    storage._client_of.cache_clear()
    try:
        source = open_source(f"{bucket}/tars")
        assert {read_bytes(s) for s in source.samples} == {jpeg(i, 8 + i) for i in range(20)}
        assert proxy.refused
    finally:
        proxy.close()
        storage._client_of.cache_clear()


def test_what_is_not_there_and_what_does_not_answer_differ(
    data: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        open_source(f"{bucket}/nothing")
    with pytest.raises(DataError, match=r"no such file|is not there"):
        open_source("s3://no-such-bucket/data")
    with pytest.raises(DataError, match="expected s3://bucket/prefix"):
        open_source("s3://")
    with pytest.raises(DataError, match="unknown kind of location"):
        open_source("gs://bucket/data")
    upload(data, bucket)
    source = open_source(f"{bucket}/train")
    with closing(boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])) as client:
        client.delete_object(
            Bucket=bucket.removeprefix("s3://"), Key=f"train/{SQUARE}/{SQUARE}_0.JPEG"
        )
    (gone,) = (s for s in source.samples if s.key.endswith(f"{SQUARE}_0"))
    with pytest.raises(DataError, match="cannot be read: "):
        read_bytes(gone)
    from distill.storage import bucket as storage

    storage._client_of.cache_clear()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setattr(storage, "ATTEMPTS", 1)
    try:
        with pytest.raises(DataUnavailableError, match="cannot be read now"):
            read_bytes(source.samples[0])
    finally:
        storage._client_of.cache_clear()
