"""Stores and data wherever they may lie: odd names, file servers, the Hugging Face hub."""

import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from buckets import Unreliable
from small_store import create, make_complete

from distill.data.images import read_bytes
from distill.data.source import open_source
from distill.errors import DataError, DataUnavailableError, StoreError
from distill.storage import web as web_storage
from distill.store.logit_store import LogitStore
from distill.store.places.objects import open_objects
from distill.store.upkeep.verify import verify

SERVER = Path(__file__).parents[1] / "web_server.py"
Command = Callable[..., list[str]]


@pytest.fixture
def web() -> Iterator[Callable[..., str]]:
    """Serves a folder from a process of its own; its address."""
    begun = []

    def serve(folder: Path, *options: object) -> str:
        command = [sys.executable, str(SERVER), str(folder), *map(str, options)]
        begun.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        assert begun[-1].stdout
        port = int(begun[-1].stdout.readline())
        return f"http{'s' if '--cert' in options else ''}://localhost:{port}"

    yield serve
    for process in begun:
        process.kill()
        process.communicate()


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """Of localhost, by nobody: key and certificate in one file."""
    path = tmp_path / "localhost.pem"
    made = subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"),
            *("-keyout", str(path), "-out", str(tmp_path / "cert")),
        ],
        capture_output=True,
        check=False,
    )
    if made.returncode:
        pytest.skip("needs openssl")
    path.write_bytes(path.read_bytes() + (tmp_path / "cert").read_bytes())
    return path


@pytest.mark.parametrize("name", ["a b", "a#b?c%d", "ä/ö", "%41", "a+b=c&d"])
def test_prefixes_of_any_name(bucket: str, tmp_path: Path, name: str) -> None:
    for place in (f"{bucket}/{name}/store", str(tmp_path / name / "store")):
        Path(tmp_path / name).mkdir(parents=True, exist_ok=True)
        made = make_complete(place)
        assert LogitStore.open(place).content_digests() == made.content_digests()
        assert verify(place).ok
    assert {*open_objects(bucket).names()} == {name.split("/")[0]}


def test_addresses_that_are_none(tmp_path: Path) -> None:
    make_complete(tmp_path / "a store")
    assert LogitStore.open(f"file://{tmp_path}/a%20store").require_complete()
    for text, said in (
        ("s3:/bucket/store", "one slash found, expected two"),
        ("hf:/datasets/a/b/c", "one slash found"),
        ("s3://", "not a whole location, expected s3://NAME/PREFIX"),
        ("hf://datasets/a", "expected hf://datasets/OWNER/NAME/FOLDER"),
        ("ftp://host/store", "unknown kind of location"),
    ):
        with pytest.raises(StoreError, match=said):
            LogitStore.open(text)


class Refusing(Unreliable):
    """A service that lacks something: answers with `status` what has `sign` in its head."""

    def __init__(self, upstream: str, sign: bytes, status: str) -> None:
        self.sign, self.status = sign, status
        super().__init__(upstream, slow_down=0, cut=0)

    def serve(self, client: socket.socket) -> None:
        with closing(client), suppress(OSError):
            head = client.recv(65536)
            if self.sign in head.lower():
                self.refused += 1
                answer = f"HTTP/1.1 {self.status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                client.sendall(answer.encode())
                return
            with closing(socket.create_connection(self.upstream)) as server:
                server.sendall(head.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1))
                up = threading.Thread(target=self.pump, args=(client, server, 10**9), daemon=True)
                up.start()
                self.pump(server, client, 10**9)


@pytest.mark.parametrize(
    ("sign", "status", "said"),
    [
        (b"if-none-match", "501 Not Implemented", "writes only where nothing is"),
        (b"list-type=2", "403 Forbidden", "without s3:ListBucket a bucket refuses"),
    ],
)
def test_buckets_that_lack_something_say_so(
    bucket: str, monkeypatch: pytest.MonkeyPatch, sign: bytes, status: str, said: str
) -> None:
    proxy = Refusing(os.environ["AWS_ENDPOINT_URL"], sign, status)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    try:
        with pytest.raises(StoreError, match=said):
            create(f"{bucket}/store")
    finally:
        proxy.close()


@pytest.mark.parametrize("options", [(), ("--ranges",)])
def test_a_store_of_a_file_server(
    web: Callable[..., str], tmp_path: Path, options: tuple[str, ...]
) -> None:
    made = make_complete(tmp_path / "public" / "store")
    address = web(tmp_path / "public", *options)
    assert verify(f"{address}/store").ok
    found = LogitStore.open(f"{address}/store/")
    assert found.content_digests() == made.content_digests()
    assert (found.labels == made.labels).all()
    with pytest.raises(StoreError, match=r"no zarr\.json found|not there"):
        LogitStore.open(f"{address}/nothing")
    with pytest.raises(StoreError, match="is on the web, where a finished store is read"):
        create(f"{address}/new")


@pytest.mark.slow
def test_a_student_learns_from_a_store_behind_https(
    web: Callable[..., str],
    certificate: Path,
    store: Path,
    figures: Path,
    tmp_path: Path,
) -> None:
    """Two processes: the file server, and a student that trusts its certificate."""
    address = web(store.parent, "--cert", certificate)
    students = []
    for place in (str(store), f"{address}/{store.name}"):
        out = tmp_path / f"run{len(students)}"
        words = ["pretrain", "--student", "test_resnet", "--init", "random", "--data", figures]
        words += ["--epochs", 2, "--batch-size", 32, "--image-size", 32, "--targets", place]
        words += ["--out", out, "--cache", tmp_path / out.name, "--device", "cpu", "--workers", 0]
        ran = subprocess.run(
            [sys.executable, "-m", "distill.cli.main", *map(str, words)],
            env={
                **os.environ,
                "SSL_CERT_FILE": str(tmp_path / "cert"),
                "OMP_NUM_THREADS": "1",
            },
            capture_output=True,
            text=True,
            timeout=180,
        )
        assert ran.returncode == 0, ran.stderr
        students.append((out / "student.safetensors").read_bytes())
    assert students[0] == students[1]


def test_stores_and_data_of_the_hub(
    web: Callable[..., str],
    figures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As its protocol is spoken by a server of the tests; the hub itself was not asked."""
    repository = tmp_path / "repository"
    made = make_complete(repository / "stores" / "small")
    shutil.copytree(figures, repository / "figures")
    monkeypatch.setenv("HF_ENDPOINT", web(repository, "--hub"))
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    found = LogitStore.open("hf://datasets/team/set/stores/small")
    assert found.content_digests() == made.content_digests()
    local, remote = open_source(figures), open_source("hf://datasets/team/set/figures")
    assert (local.ids == remote.ids).all()
    assert read_bytes(remote.samples[3]) == read_bytes(local.samples[3])
    with pytest.raises(DataError, match="no such file or folder"):
        open_source("hf://datasets/team/set/nothing")


@pytest.mark.parametrize("lie", ["short", "elsewhere"])
def test_another_part_than_was_asked_for_is_trouble_and_no_bad_image(
    web: Callable[..., str], figures: Path, lie: str
) -> None:
    sample = open_source(figures).samples[5]
    address = web(figures, "--ranges", "--lie", lie)
    other = replace(sample, place=f"{address}/train-000000.tar")
    with pytest.raises(DataUnavailableError, match=r"bytes as 'bytes .* came for"):
        read_bytes(other)


def test_data_of_a_file_server(
    web: Callable[..., str], figures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = web(figures, "--ranges")
    local = open_source(figures)
    for place in (f"{address}/train-000000.tar", f"{address}/train-{{000000..000000}}.tar"):
        remote = open_source(place)
        assert (local.ids == remote.ids).all()
        assert read_bytes(remote.samples[5]) == read_bytes(local.samples[5])
    with pytest.raises(DataError, match="no such file"):
        open_source(f"{address}/nothing.tar")
    with pytest.raises(DataError, match=r"unknown file format|cannot be listed"):
        open_source(f"{address}/")
    whole_only = web(figures)
    with pytest.raises(DataError, match="expected a server that answers Range requests"):
        open_source(f"{whole_only}/train-000000.tar")
    monkeypatch.setattr("distill.storage.web.RETRIES", 0)
    web_storage._pool.cache_clear()
    with pytest.raises(DataUnavailableError, match="cannot be read now"):
        open_source("http://127.0.0.1:1/train.tar")
    web_storage._pool.cache_clear()
