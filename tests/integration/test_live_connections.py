"""Connections of a live server: none is held open for nothing, and none is misread."""

import json
import resource
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distill.hierarchy.semantic import SemanticHierarchy
from distill.teacher_server.http import connection, handshakes, listener
from distill.teacher_server.http.keys import ApiKeys, new_key
from distill.teacher_server.http.listener import Address
from distill.teacher_server.serve.admission import Budgets
from tests.live import INFER, Live, body_of, echo_teacher, images, live, wait_until

ABOUT = b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n"
UPGRADE = b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAEA\r\n"
INFER_IN_CHUNKS = f"POST {INFER} HTTP/1.1\r\nTransfer-Encoding: chunked\r\n".encode()
CHUNKED = b"POST /v2 HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time limits of tests."""
    monkeypatch.setattr(connection, "HEAD_S", 0.6)
    monkeypatch.setattr(connection, "IDLE_S", 1.2)
    monkeypatch.setattr(connection, "LINGER_S", 0.6)
    monkeypatch.setattr(connection, "STALLED_S", 0.6)


@pytest.fixture
def server(hierarchy: SemanticHierarchy, tmp_path: Path) -> Iterator[Live]:
    """With keys that nobody here has."""
    new_key("ann", tmp_path / "keys")
    with live(echo_teacher(hierarchy), keys=ApiKeys.read(tmp_path / "keys")) as server:
        yield server


@pytest.fixture
def open_server(hierarchy: SemanticHierarchy) -> Iterator[Live]:
    with live(echo_teacher(hierarchy)) as server:
        yield server


def connect(server: Live) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=5)


def replies(line: socket.socket, count: int) -> list[tuple[int, bytes]]:
    """Statuses and bodies; fewer where the server hangs up."""
    found: list[tuple[int, bytes]] = []
    read = b""
    while len(found) < count:
        head, end, rest = read.partition(b"\r\n\r\n")
        length = 0
        for field in head.lower().split(b"\r\n"):
            if field.startswith(b"content-length:"):
                length = int(field.partition(b":")[2])
        if end and len(rest) >= length:
            found.append((int(head[9:12]), rest[:length]))
            read = rest[length:]
            continue
        with suppress(ConnectionResetError):
            if part := line.recv(65536):
                read += part
                continue
        break
    return found


def seconds_until_hung_up(line: socket.socket) -> float:
    began = time.monotonic()
    with suppress(ConnectionResetError):
        while line.recv(65536):
            pass
    return time.monotonic() - began


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize(
    ("first", "then"),
    [
        (b"", b""),
        (b"\r\n", b"\r\n"),
        (b"GET /v2 HTT", b"P"),
        (ABOUT + b"X-A: b\r\n", b"X-B: c\r\n"),
        (ABOUT + b"\r\n", b""),
        (ABOUT + b"\r\n", b"\r\n"),
        (ABOUT + b"\r\n", b"GET /v2 HT"),
        (b"POST /v2 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n", b"x"),
        (CHUNKED + b"\r\n0\r\n", b"a: b\r\n"),
        (CHUNKED + b"\r\n1;", b"a=b"),
        (b"GARBAGE\r\n\r\n", b""),
        (ABOUT.replace(b"Host", b"Hose") + b"\r\n", b"x"),
    ],
    ids=str,
)
def test_every_connection_ends(server: Live, first: bytes, then: bytes) -> None:
    with closing(connect(server)) as line:
        line.sendall(first)
        for _ in range(3):  # whatever a client says again does not count as new
            time.sleep(0.15)
            with suppress(OSError):
                line.sendall(then)
        assert seconds_until_hung_up(line) < 3


@pytest.mark.usefixtures("hurried")
def test_a_drip_of_anything_does_not_keep_it_open(server: Live) -> None:
    drips = [
        (b"", b"\r\n"),
        (b"GET /v2 HTTP/1.1\r\n", b"a: b\r\n"),
        (b"POST /v2 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n", b"x"),
        (CHUNKED + b"\r\n0\r\n", b"a: b\r\n"),
        (CHUNKED + b"\r\n", b"1\r\nx\r\n"),
    ]
    for first, drip in drips:
        with closing(connect(server)) as line:
            line.sendall(first)
            began = time.monotonic()
            with suppress(ConnectionError):
                while time.monotonic() - began < 5:
                    line.sendall(drip)
                    time.sleep(0.05)
            assert time.monotonic() - began < 4


@pytest.mark.usefixtures("hurried")
def test_a_reply_that_nobody_reads_does_not_keep_it_open(open_server: Live) -> None:
    with socket.socket() as line:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        line.connect(("127.0.0.1", open_server.port))
        line.settimeout(5)
        with suppress(OSError):
            for _ in range(300):
                line.sendall(ABOUT.replace(b"/v2", b"/v2/models/teacher/hierarchy") + b"\r\n")
        wait_until(lambda: open_server.service.admission.idle)
        time.sleep(1.5)
        assert seconds_until_hung_up(line) < 3


def test_trailers_are_dropped_and_bounded(open_server: Live) -> None:
    body = b'{"inputs": []}'
    chunk = b"%x\r\n%s\r\n0\r\n" % (len(body), body)
    head = (
        b"POST /v2/models/teacher/infer HTTP/1.1\r\nTransfer-Encoding: chunked\r\nHost: %s\r\n\r\n"
    )
    with closing(connect(open_server)) as line:
        line.sendall(head % b"evil.example" + chunk + b"Host: localhost\r\n\r\n")
        line.sendall(head % b"localhost" + chunk + b"Inference-Header-Content-Length: 99\r\n\r\n")
        (first, text), (second, _) = replies(line, 2)
        assert (first, second) == (401, 400)
        assert b"loopback" in text
    for endless in (b"a: b\r\n", b"a", b"a: " + b"b" * 100):
        with closing(connect(open_server)) as line:
            with suppress(OSError):  # reset while we send
                line.sendall(CHUNKED + b"\r\n0\r\n")
                line.sendall(endless * (2**20 // len(endless)))
                line.sendall(b"\r\n")
            assert seconds_until_hung_up(line) < 3


def test_framing_of_chunks_is_bounded(open_server: Live) -> None:
    """But a body in the smallest chunks is none the less a body."""
    raw = json.dumps({"inputs": [{"name": "x", "datatype": "UINT8", "shape": [1], "data": [1]}]})
    head = (
        f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    )
    with closing(connect(open_server)) as line:
        line.sendall(head + b"".join(b"1\r\n%c\r\n" % c for c in raw.encode()) + b"0\r\n\r\n")
        ((status, text),) = replies(line, 1)
        assert (status, b"no such input" in text) == (400, True)
        line.sendall(head)
        with suppress(OSError):
            line.sendall(b"1;" + b"x" * 2**20)
        assert seconds_until_hung_up(line) < 3


@pytest.mark.parametrize("step", [1, 3, 7, 64, 10**6])
def test_where_reads_end_does_not_matter(
    open_server: Live, random: np.random.Generator, step: int
) -> None:
    """Requests of all framings, one after the other, in pieces of any size."""
    body, headers = body_of(images(2, random), ("prob",))
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    post = f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\n{lines}".encode()
    cuts = [body[i : i + 100] for i in range(0, len(body), 100)]
    chunks = b"".join(b"%X;x=y\r\n%s\r\n" % (len(cut), cut) for cut in cuts)
    messages = [
        post + b"Content-Length: %d\r\n\r\n" % len(body) + body,
        b"\r\n\r\n" + ABOUT + b"\r\n",
        post + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n",
        post + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\nA: b\r\nC: d\r\n\r\n",
        ABOUT + b"Content-Length: 3\r\n\r\nabc",
        post
        + b"Upgrade: h2c\r\nConnection: Upgrade\r\nContent-Length: %d\r\n\r\n" % len(body)
        + body,
        ABOUT + b"\r\n",
    ]
    with closing(connect(open_server)) as line, ThreadPoolExecutor(1) as pool:
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sent = b"".join(messages)
        reading = pool.submit(replies, line, len(messages))
        for start in range(0, len(sent), step):
            line.sendall(sent[start : start + step])
        found = reading.result(20)
    assert [status for status, _ in found] == [200] * len(messages)
    assert found[0][1] == found[2][1] == found[3][1] == found[5][1]


def test_pipelined_requests_wait_unread(open_server: Live) -> None:
    """All of them are answered, one after the other, and none is looked at before its turn."""
    count = 3000
    with closing(connect(open_server)) as line, ThreadPoolExecutor(1) as pool:
        sending = pool.submit(line.sendall, (ABOUT + b"\r\n") * count)
        found = replies(line, count)
        sending.result(5)
    assert [status for status, _ in found] == [200] * count
    assert len({text for _, text in found}) == 1


@pytest.mark.parametrize(
    ("request_bytes", "status", "text"),
    [
        (b"GET /v2 HTTP/1.1\r\n\r\n", 400, "0 Host"),
        (b"GET /v2 HTTP/1.1\r\nHost: localhost\r\nhost: evil\r\n\r\n", 400, "2 Host"),
        (b"GET /v2 HTTP/1.0\r\n\r\n", 200, "distill"),
        (b"CONNECT localhost:1 HTTP/1.1\r\nHost: localhost\r\n\r\n", 400, "CONNECT"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "HTTP/1.1"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01", 400, "HTTP/1.1"),
        (b"GET /v2 HTTP/1.1\nHost: localhost\n\n", 400, "HTTP/1.1"),
        (ABOUT + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400, "HTTP/1.1"),
        (ABOUT + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n", 400, "HTTP/1.1"),
        (ABOUT + b"Content-Length: -1\r\n\r\n", 400, "HTTP/1.1"),
        (ABOUT + b"X : y\r\n\r\n", 400, "HTTP/1.1"),
        (ABOUT + b"Upgrade: websocket\r\nConnection: Upgrade\r\n\r\n", 200, "distill"),
        (ABOUT + b"Expect: 100-continue\r\n\r\n", 200, "distill"),
        (b"GET /v2 HTTP/1.1\r\nHost: localhost\r\nA: " + b"b" * 70_000, 400, "65536"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_odd_heads(open_server: Live, request_bytes: bytes, status: int, text: str) -> None:
    with closing(connect(open_server)) as line:
        line.sendall(request_bytes)
        ((found, said),) = replies(line, 1)
        assert (found, text in said.decode()) == (status, True), said
        if status == 400:
            assert set(json.loads(said)) == {"error"}
            assert seconds_until_hung_up(line) < 3


def test_client_that_ends_its_side_is_answered(
    open_server: Live, random: np.random.Generator
) -> None:
    body, headers = body_of(images(2, random), ("prob",))
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    post = f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\n{lines}Content-Length: {len(body)}\r\n\r\n"
    for sent in (post.encode() + body, ABOUT + b"\r\n", (ABOUT + b"\r\n") * 3):
        with closing(connect(open_server)) as line:
            line.sendall(sent)
            line.shutdown(socket.SHUT_WR)
            count = sent.count(b"HTTP/1.1\r\n")
            assert [status for status, _ in replies(line, count)] == [200] * count
            assert seconds_until_hung_up(line) < 1


def test_probes_are_answered_however_many_connections_there_are(
    hierarchy: SemanticHierarchy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "MAX_CONNECTIONS", 40)
    with live(echo_teacher(hierarchy)) as server:
        lines = [connect(server) for _ in range(200)]
        for line in lines[::2]:
            with suppress(OSError):
                line.sendall(ABOUT)
        with closing(connect(server)) as probe:
            probe.sendall(ABOUT.replace(b"/v2", b"/v2/health/live") + b"\r\n")
            assert replies(probe, 1)[0][0] == 200
        for line in lines:
            line.close()


def test_silent_handshakes_make_room(hierarchy: SemanticHierarchy, tmp_path: Path) -> None:
    """With TLS, those that never begin it count like any others, and the longest-waiting goes."""
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost"]
    pair = tmp_path / "tls.pem", tmp_path / "tls.key"
    made = [*command, "-out", str(pair[0]), "-keyout", str(pair[1])]
    subprocess.run(made, check=True, capture_output=True)
    address = Address(certificate=pair[0], private_key=pair[1])
    trusting = ssl.create_default_context(cafile=str(pair[0]))

    def probe(server: Live) -> int:
        with (
            socket.create_connection(("127.0.0.1", server.port), timeout=5) as plain,
            trusting.wrap_socket(plain, server_hostname="localhost") as line,
        ):
            line.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
            return replies(line, 1)[0][0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(listener, "most_connections", lambda: 20)
        patch.setattr(handshakes, "HEAD_S", 2.0)
        with live(echo_teacher(hierarchy), address=address) as server:
            silent = [connect(server) for _ in range(60)]
            for _ in range(3):
                assert probe(server) == 200
            assert seconds_until_hung_up(silent[0]) < 1
            assert 1 < seconds_until_hung_up(silent[-1]) < 4
            begun = [connect(server) for _ in range(10)]
            for line in begun:
                line.sendall(b"\x16\x03\x01\x02\x00\x01")
            assert probe(server) == 200
            assert seconds_until_hung_up(begun[-1]) < 4
            for line in (*silent, *begun):
                line.close()
            assert [probe(server) for _ in range(30)] == [200] * 30


def test_a_reply_holds_its_bytes_until_it_is_read(hierarchy: SemanticHierarchy) -> None:
    """Else whoever reads none of many would take memory that nobody counts."""
    count = 30_000
    bad = b"\x01\x00\x00\x00x" * count
    jpeg = {"name": "jpeg", "datatype": "BYTES", "shape": [count]}
    head = json.dumps(
        {
            "parameters": {"binary_data_output": True},
            "inputs": [{**jpeg, "parameters": {"binary_data_size": len(bad)}}],
            "outputs": [{"name": "probs"}, {"name": "status"}],
        }
    ).encode()
    lengths = f"Inference-Header-Content-Length: {len(head)}\r\nContent-Length: {len(head + bad)}"
    post = f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\n{lengths}\r\n\r\n".encode()
    budgets = Budgets(images=count, bytes=2**28, requests=4)
    with live(echo_teacher(hierarchy), budgets=budgets, max_images_per_request=count) as server:
        admission = server.service.admission
        with socket.socket() as line:
            line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            line.connect(("127.0.0.1", server.port))
            line.settimeout(60)
            line.sendall(post + head + bad)
            assert line.recv(9) == b"HTTP/1.1 "
            time.sleep(0.3)
            assert admission.in_flight["bytes"] > len(head + bad) + 60 * count
            line.settimeout(0.1)
            ends = time.monotonic() + 20
            while not admission.idle and time.monotonic() < ends:
                with suppress(TimeoutError):
                    line.recv(2**20)
            assert admission.idle


def test_file_numbers_bound_the_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {"now": (1024, 4096)}
    monkeypatch.setattr(resource, "getrlimit", lambda which: limits["now"])
    monkeypatch.setattr(resource, "setrlimit", lambda which, both: limits.update(now=both))
    assert connection.most_connections() == 2048
    assert limits["now"] == (4096, 4096)
    limits["now"] = (256, 256)
    assert connection.most_connections() == 128
    limits["now"] = (1024, resource.RLIM_INFINITY)
    assert connection.most_connections() == connection.MAX_CONNECTIONS


def test_announced_bytes_that_do_not_come_make_room_for_others(
    hierarchy: SemanticHierarchy, random: np.random.Generator
) -> None:
    """But as long as nobody needs it, a slow client has its time."""
    budgets = Budgets(images=100, bytes=2**20, requests=100)
    body, headers = body_of(images(1, random), ("prob",))
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    post = f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\n{lines}Content-Length: %d\r\n\r\n"
    with live(echo_teacher(hierarchy), budgets=budgets, max_body_bytes=2**20) as server:
        with closing(connect(server)) as slow, closing(connect(server)) as other:
            slow.sendall((post % 2**20).encode() + b"{")
            wait_until(lambda: not server.service.admission.idle)
            other.sendall((post % len(body)).encode() + body)
            assert replies(other, 1)[0][0] == 429
            time.sleep(1.2)
            assert not server.service.admission.idle
            other.sendall((post % len(body)).encode() + body)
            assert replies(other, 1)[0][0] == 200
            assert replies(slow, 1)[0][0] == 408
        with closing(connect(server)) as slow:
            content = (post % len(body)).encode() + body
            slow.sendall(content[:-1])
            time.sleep(1.5)
            slow.sendall(content[-1:])
            assert replies(slow, 1)[0][0] == 200


def test_many_slow_requests_do_not_hold_all_of_them(
    hierarchy: SemanticHierarchy, random: np.random.Generator
) -> None:
    budgets = Budgets(images=100, bytes=2**20, requests=4)
    begun = f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{{".encode()
    body, headers = body_of(images(1, random), ("prob",))
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    post = f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\n{lines}Content-Length: {len(body)}\r\n\r\n"
    with live(echo_teacher(hierarchy), budgets=budgets) as server:
        slow = [connect(server) for _ in range(4)]
        for line in slow:
            line.sendall(begun)
        wait_until(lambda: server.service.admission.in_flight["requests"] == 4)
        time.sleep(1.2)
        with closing(connect(server)) as line:
            line.sendall(post.encode() + body)
            assert replies(line, 1)[0][0] == 200
        for line in slow:
            line.close()


@pytest.mark.parametrize(
    "fields",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://["},
        {"Sec-Fetch-Site": "cross-site"},
    ],
)
def test_pages_of_other_sites_send_nothing(open_server: Live, fields: dict[str, str]) -> None:
    """A browser sends text/plain anywhere without asking first."""
    more = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    post = f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\n{more}Content-Type: text/plain\r\n"
    with closing(connect(open_server)) as line:
        line.sendall(post.encode() + b"Content-Length: 2\r\n\r\n{}")
        ((status, text),) = replies(line, 1)
    assert (status, b"another site" in text) == (403, True)
    assert not open_server.named("error")


def test_pages_of_this_site_do(open_server: Live) -> None:
    """Names of hosts have no case."""
    post = f"POST {INFER} HTTP/1.1\r\nHost: LocalHost:80\r\nOrigin: http://localhost:80\r\n"
    with closing(connect(open_server)) as line:
        line.sendall(post.encode() + b"Content-Length: 2\r\n\r\n{}")
        assert replies(line, 1)[0][0] == 400  # it is no request, but it was read


def test_a_head_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However small its pieces are: the work per piece does not grow with what came before."""
    searched: list[int] = []

    class Counting:
        def search(self, text: bytearray, start: int, end: int) -> Any:
            searched.append(end - start)
            return connection.re.compile(rb"(?<!\r)\n").search(text, start, end)

    monkeypatch.setattr(connection, "BARE_LF", Counting())
    made: Any = object.__new__(connection.Connection)
    made._head, made._wait_for_client = None, lambda seconds: None
    head = ABOUT + b"X: " + b"y" * 20_000
    for i in range(0, len(head), 10):
        assert not len(made._take_head(memoryview(head[i : i + 10])))
    assert sum(searched) == len(head)
    with pytest.raises(connection.Malformed):
        made._take_head(memoryview(b"\r\nA: b\nC: d"))
