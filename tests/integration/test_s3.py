"""The store in a bucket: a real S3 server process, and a proxy that throttles and hangs up."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import zarr
from buckets import Unreliable
from obstore.store import from_url
from small_store import ROWS, create, make_complete, write
from zarr.storage import ObjectStore

from distill.errors import CorruptStoreError, IncompleteStoreError, StoreError
from distill.store.logit_store import LogitStore
from distill.store.places import bucket as places
from distill.store.places.objects import open_objects
from distill.store.upkeep.verify import verify
from distill.store.views.cache import Cache
from distill.store.views.resident import open_resident_view

Command = Callable[..., list[str]]


def test_store_in_a_bucket_is_the_one_on_disk(bucket: str, tmp_path: Path) -> None:
    local = make_complete(tmp_path / "store")
    remote = create(f"{bucket}/some/store")
    write(remote, [2, 0])
    again = create(f"{bucket}/some/store")  # resume
    assert again.pending_blocks() == [1, 3]
    with pytest.raises(IncompleteStoreError):
        again.require_complete()
    write(again, [1, 3])
    again.finish()
    assert LogitStore.open(f"{bucket}/some/store").content_digests() == local.content_digests()
    assert verify(f"{bucket}/some/store").ok
    found = {*map(without_generation, open_objects(f"{bucket}/some/store").keys(""))}
    local_keys = (str(p.relative_to(local.location)) for p in files(local.location))
    assert found == {without_generation(key) for key in local_keys}


def without_generation(key: str) -> str:
    """Compacted commits are named by their content, in which stands the time."""
    return re.sub("commits/g[0-9a-f]+/", "commits/g/", key)


def files(folder: str) -> list[Path]:
    return [path for path in Path(folder).rglob("*") if path.is_file()]


def test_resident_view_from_a_bucket(bucket: str, tmp_path: Path) -> None:
    local = make_complete(tmp_path / "store")
    remote = make_complete(f"{bucket}/store")
    rows = np.arange(ROWS)
    views = [
        open_resident_view(store, 1, Cache(tmp_path / name))
        for name, store in (("a", local), ("b", remote))
    ]
    assert (views[0].gather(rows).prob == views[1].gather(rows).prob).all()
    assert (remote.labels == local.labels).all()
    options = {"allow_http": True}
    place = from_url(f"{bucket}/store/prob", client_options=options)
    array = zarr.open_array(ObjectStore(place), mode="r")
    assert array.shape == (ROWS, 2, 15)


def test_store_in_a_bucket_is_inspected(
    bucket: str,
    tmp_path: Path,
    distill,  # type: ignore[no-untyped-def]
) -> None:
    make_complete(f"{bucket}/store")
    make_complete(tmp_path / "store")
    there = distill("inspect", f"{bucket}/store", "--cache", tmp_path / "cache", "--csv").out
    assert there == distill("inspect", tmp_path / "store", "--csv").out
    assert list((tmp_path / "cache").glob("*-beliefs.rows"))


def test_damage_in_a_bucket_is_found(bucket: str) -> None:
    remote = make_complete(f"{bucket}/store")
    remote.objects.delete(["prob/c.1.0.0"])
    remote.objects.write("sq_norm/c.2.0.0", b"garbage")
    found = verify(f"{bucket}/store")
    assert found.bad_blocks == (1, 2)


def test_throttling_and_dropped_connections_are_waited_out(
    server: str, bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    proxy = Unreliable(server, slow_down=0.15, cut=0.1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    try:
        remote = make_complete(f"{bucket}/store")
        assert verify(f"{bucket}/store").ok
        for round_ in range(20):
            if proxy.refused and proxy.hung_up:
                break
            view = open_resident_view(
                LogitStore.open(remote.location), 0, Cache(tmp_path / str(round_))
            )
            assert len(view.records) == ROWS
    finally:
        proxy.close()
    assert proxy.refused
    assert proxy.hung_up
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    local = make_complete(tmp_path / "local")
    assert LogitStore.open(f"{bucket}/store").content_digests() == local.content_digests()


@pytest.mark.parametrize(
    "action",
    [
        lambda location: LogitStore.open(location),
        lambda location: open_objects(location).write("x", b""),
        lambda location: open_objects(location).read("zarr.json"),
    ],
)
def test_key_without_permission_is_named(
    bucket: str, action: Callable[[str], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    create(f"{bucket}/store")
    forbidding = Forbidding()
    monkeypatch.setenv("AWS_ENDPOINT_URL", forbidding.url)
    try:
        with pytest.raises(StoreError, match=r"fix the credentials \(AWS_\* var") as caught:
            action(f"{bucket}/store")
        assert not isinstance(caught.value, CorruptStoreError)
        assert "\n" not in str(caught.value)
    finally:
        forbidding.close()


class Forbidding(Unreliable):
    """TargetRows 403 to everything."""

    def __init__(self) -> None:
        super().__init__("http://127.0.0.1:1", slow_down=1, cut=0)

    def serve(self, client: socket.socket) -> None:
        with closing(client):
            client.recv(65536)
            body = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
            head = f"HTTP/1.1 403 Forbidden\r\nContent-Length: {len(body)}\r\n"
            client.sendall(head.encode() + b"Connection: close\r\n\r\n" + body)


def test_bucket_that_is_not_there_is_named(bucket: str) -> None:
    with pytest.raises(StoreError, match="make the bucket or correct its name"):
        LogitStore.open("s3://no-such-bucket/store")
    with pytest.raises(StoreError, match="make the bucket"):
        create("s3://no-such-bucket/store")


def test_precompute_and_pretrain_work_on_a_bucket_and_survive_a_kill(
    distill,  # type: ignore[no-untyped-def]
    precompute_command: Command,
    bucket: str,
    figures: Path,
    store: Path,
    tmp_path: Path,
) -> None:
    command = precompute_command(f"{bucket}/store", "--views", 2, "--batch-size", 8)  # type: ignore[arg-type]
    running = subprocess.Popen(
        [sys.executable, "-m", "distill.cli.main", *command], stdout=subprocess.DEVNULL
    )
    objects = open_objects(f"{bucket}/store")
    while sum(key.startswith("commits/0") for key in objects.keys("commits")) < 2:
        time.sleep(0.02)
        assert running.poll() is None
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    assert 0 < len(LogitStore.open(f"{bucket}/store").pending_blocks()) <= 4
    assert distill(*command).code == 0
    info = distill("store", "info", f"{bucket}/store")
    assert "96 images × 2 views, complete" in info.out
    remote, local = LogitStore.open(f"{bucket}/store"), LogitStore.open(store)
    digests = remote.content_digests(), local.content_digests()
    if digests[0] != digests[1]:  # another batch size may round the last bit another way
        ran = distill("store", "diff", store, f"{bucket}/store", "--json")
        assert '"top1_agreement": 1.0' in ran.out
    trained = distill(
        *(
            "pretrain",
            "--student",
            "test_resnet",
            "--init",
            "random",
            "--data",
            figures,
            "--epochs",
            1,
        ),
        *("--batch-size", 32, "--targets", f"{bucket}/store", "--out", tmp_path / "run"),
        *("--cache", tmp_path / "cache", "--device", "cpu", "--workers", 0, "--image-size", 32),
    )
    assert trained.code == 0, trained.err
    assert "views drawn again" in trained.out


def test_a_bucket_that_does_not_answer_may_answer_later(
    distill,  # type: ignore[no-untyped-def]
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Schedulers start what ends with 75 again; 2 is for a person."""
    monkeypatch.setattr(places, "RETRIES", 0)
    monkeypatch.setattr(places, "RETRY_FOR", timedelta(0))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"):
        monkeypatch.setenv(name, "any")
    ran = distill("store", "info", "s3://bucket/store")
    assert ran.code == 75, ran.err
    assert "check the endpoint and the network" in ran.err
