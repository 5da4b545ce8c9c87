"""HTTP engines under the same load and the same hostile connections.

    python benchmarks/http_engines.py --out benchmarks/results/http_engines.md

Each engine serves one ASGI application that reads the body and answers 3,000 bytes, or 401 at once
for another path. Measured are the median and the 99th percentile of one client's requests, of one
uint8 image of 224² pixels and of 64, and the requests per second of four clients. The hostile
connections are held until the engine hangs up, for 100 seconds at most. Engines that are not
installed are left out: `pip install hypercorn granian`.
"""

import argparse
import multiprocessing
import os
import select
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

IMAGE = 224 * 224 * 3
HOLD_S = 100.0
ANSWER = b"x" * 3000

REFUSED = b"GET /refused HTTP/1.1\r\nHost: localhost\r\n"
CHUNKED = b"POST /refused HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"
# What is sent at once, and what a second later.
HELD = {
    "silent": (b"", b""),
    "part of a head": (b"GET /refused HTT", b""),
    "refused, idle": (REFUSED + b"\r\n", b""),
    "refused, one byte of 100": (
        b"POST /refused HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n",
        b"x",
    ),
    "refused, one CRLF": (REFUSED + b"\r\n", b"\r\n"),
    "trailers without end": (CHUNKED, b"a: b\r\n"),
}
ASKED = {
    "no Host": b"GET / HTTP/1.1\r\n\r\n",
    "two Hosts": b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "Upgrade: h2c with a body": (
        b"POST / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, HTTP2-Settings\r\n"
        b"Upgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA\r\n"
        b"Content-Length: 3\r\n\r\nabc"
    ),
}
WANTED = {"no Host": b"400", "two Hosts": b"400", "Upgrade: h2c with a body": b"200"}


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Read the body, and answer; `/refused` is refused unread."""
    if scope["type"] != "http":
        return
    refused = scope["path"] == "/refused"
    more = not refused
    while more:
        message = await receive()
        more = message.get("more_body", False)
    body = b"{}" if refused else ANSWER
    headers = [(b"content-length", str(len(body)).encode())]
    status = 401 if refused else 200
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def serve_uvicorn(port: int, http: Any) -> None:
    """uvicorn with one of its parsers."""
    import uvicorn

    uvicorn.run(
        application,
        port=port,
        http=http,
        loop="uvloop",
        lifespan="off",
        log_level="critical",
        access_log=False,
        timeout_keep_alive=75,
    )


def serve_ours(port: int) -> None:
    """uvicorn as `distill serve` sets it up."""

    from distill.teacher_server.http.listener import Address, HttpServer

    HttpServer(application, Address(port=port)).run([Address(port=port).bound()])


def serve_hypercorn(port: int) -> None:
    """With uvloop, and its time limits."""
    import uvloop
    from hypercorn.asyncio import serve
    from hypercorn.config import Config

    config = Config()
    config.bind = [f"127.0.0.1:{port}"]
    config.keep_alive_timeout, config.read_timeout = 75, 20
    config.loglevel, config.keep_alive_max_requests = "CRITICAL", 10**9
    uvloop.run(serve(application, config))


def serve_granian(port: int) -> None:
    """One worker, and its time limit."""
    from granian import Granian
    from granian.constants import Interfaces, Loops
    from granian.http import HTTP1Settings

    Granian(
        f"{__file__.removesuffix('.py').rsplit('/', 1)[1]}:application",
        port=port,
        interface=Interfaces.ASGI,
        loop=Loops.uvloop,
        http1_settings=HTTP1Settings(header_read_timeout=20_000),
        log_enabled=False,
        working_dir=Path(__file__).parent,
    ).serve()


ENGINES: dict[str, tuple[str, Callable[[int], None]]] = {
    "distill serve": ("distill", serve_ours),
    "uvicorn, httptools": ("uvicorn", lambda port: serve_uvicorn(port, "httptools")),
    "uvicorn, h11": ("uvicorn", lambda port: serve_uvicorn(port, "h11")),
    "hypercorn": ("hypercorn", serve_hypercorn),
    "granian": ("granian", serve_granian),
}


def ask(connection: socket.socket, body: bytes) -> float:
    """Seconds that one request takes."""
    head = f"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    started = time.perf_counter()
    connection.sendall(head)
    connection.sendall(body)
    reply = b""
    while not reply.endswith(ANSWER):
        part = connection.recv(65536)
        if not part:
            raise ConnectionError("hung up")
        reply += part
    return time.perf_counter() - started


def connect(port: int) -> socket.socket:
    """A connection without delay, as soon as something listens."""
    ends = time.monotonic() + 20
    while True:
        try:
            connection = socket.create_connection(("127.0.0.1", port), timeout=20)
        except OSError:
            if time.monotonic() > ends:
                raise
            time.sleep(0.05)
        else:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return connection


def latencies(port: int, images: int, seconds: float) -> tuple[float, float]:
    """Median and 99th percentile in ms."""
    body = os.urandom(images * IMAGE)
    with connect(port) as connection:
        for _ in range(20):
            ask(connection, body)
        taken, ends = [], time.monotonic() + seconds
        while time.monotonic() < ends:
            taken.append(1000 * ask(connection, body))
    return statistics.median(taken), statistics.quantiles(taken, n=100)[98]


def _count(port: int, seconds: float, counts: Any) -> None:
    body = os.urandom(IMAGE)
    with connect(port) as connection:
        count, ends = 0, time.monotonic() + seconds
        while time.monotonic() < ends:
            ask(connection, body)
            count += 1
    counts.put(count)


def throughput(port: int, seconds: float) -> float:
    """Requests per second of four clients, of one image each."""
    counts: Any = multiprocessing.Queue()
    clients = [
        multiprocessing.Process(target=_count, args=(port, seconds, counts)) for _ in range(4)
    ]
    for client in clients:
        client.start()
    total = sum(counts.get() for _ in clients)
    for client in clients:
        client.join()
    return total / seconds


def held(port: int) -> dict[str, str]:
    """Seconds until each hostile connection is hung up on."""
    began = time.monotonic()
    connections = {}
    for name, (first, _) in HELD.items():
        connections[name] = connect(port)
        connections[name].sendall(first)
    time.sleep(1)
    for name, (_, second) in HELD.items():
        with suppress(OSError):
            connections[name].sendall(second)
    result: dict[str, str] = {}
    while connections and time.monotonic() - began < HOLD_S:
        readable, _, _ = select.select(list(connections.values()), [], [], 1)
        for name, connection in list(connections.items()):
            if connection in readable:
                try:
                    gone = not connection.recv(65536)
                except OSError:
                    gone = True
                if gone:
                    result[name] = f"{time.monotonic() - began:.0f} s"
                    del connections[name]
    return result | dict.fromkeys(connections, "never")


def asked(port: int) -> dict[str, str]:
    """What each odd request is answered."""
    result = {}
    for name, request in ASKED.items():
        with connect(port) as connection:
            connection.settimeout(5)
            connection.sendall(request)
            try:
                status = connection.recv(65536)[9:12]
            except OSError:
                status = b""
        text = status.decode() or "nothing"
        result[name] = (
            text if status == WANTED[name] else f"{text} instead of {WANTED[name].decode()}"
        )
    with connect(port) as connection:
        connection.settimeout(5)
        connection.sendall(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\nabc")
        connection.shutdown(socket.SHUT_WR)
        try:
            reply = connection.recv(65536)
        except OSError:
            reply = b""
    result["half-closed"] = "answered" if reply else "not answered"
    return result


def memory_mib(pid: int) -> int:
    """Of a process and its children."""
    listed = subprocess.run(
        ["ps", "-o", "rss=", "--pid", str(pid), "--ppid", str(pid)],
        capture_output=True,
        text=True,
        check=True,
    )
    return sum(map(int, listed.stdout.split())) // 1024


def swollen(port: int, pid: int) -> dict[str, str]:
    """MiB that 64 MiB of trailers, and 32 connections with 14,000 requests each, add at most."""
    result = {}
    trailers = b"".join(b"a%d: b\r\n" % i for i in range(10_000))
    before = memory_mib(pid)
    with connect(port) as connection, suppress(OSError):
        connection.settimeout(5)
        connection.sendall(CHUNKED)
        for _ in range(2**26 // len(trailers)):
            connection.sendall(trailers)
        time.sleep(0.5)
    result["64 MiB of trailers"] = f"{max(0, memory_mib(pid) - before)} MiB"
    pipelined = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 14_000
    connections = [connect(port) for _ in range(32)]
    for connection in connections:
        connection.setblocking(False)
        with suppress(OSError):
            connection.send(pipelined)
    peak, ends = 0, time.monotonic() + 10
    while time.monotonic() < ends:
        peak = max(peak, memory_mib(pid))
        time.sleep(0.1)
    for connection in connections:
        connection.close()
    result["32 × 14,000 pipelined"] = f"{max(0, peak - before)} MiB"
    return result


@contextmanager
def running(engine: str, port: int) -> Iterator[int]:
    """The process of an engine."""
    process = subprocess.Popen([sys.executable, __file__, "--serve", engine, "--port", str(port)])
    try:
        connect(port).close()
        yield process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
        process.kill()


def measured(port: int, pid: int, seconds: float) -> dict[str, str]:
    """One engine's column, but for what is held."""
    column = {}
    for images, name in ((1, "1 image"), (64, "64 images")):
        median, p99 = latencies(port, images, seconds)
        column[f"{name}: median, p99 (ms)"] = f"{median:.2f}, {p99:.2f}"
    column["4 clients: requests/s"] = f"{throughput(port, seconds):,.0f}"
    return column | asked(port) | swollen(port, pid)


def main() -> None:
    """Serve one engine, or measure all of them."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--out", type=Path)
    arguments.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    arguments.add_argument("--quick", action="store_true", help="without held connections")
    arguments.add_argument("--only", nargs="*", default=list(ENGINES))
    arguments.add_argument("--serve", help=argparse.SUPPRESS)
    arguments.add_argument("--port", type=int, default=8790, help="the first one")
    options = arguments.parse_args()
    if options.serve:
        ENGINES[options.serve][1](options.port)
        return
    ports = {
        name: options.port + i
        for i, (name, (package, _)) in enumerate(ENGINES.items())
        if name in options.only and find_spec(package)
    }
    columns: dict[str, dict[str, str]] = {}
    with ExitStack() as stack:
        for name, port in ports.items():
            pid = stack.enter_context(running(name, port))
            columns[name] = measured(port, pid, options.seconds)
        if not options.quick:
            with ThreadPoolExecutor(len(ports)) as threads:
                for name, closed in zip(ports, threads.map(held, ports.values()), strict=True):
                    columns[name] |= {f"held: {each}": closed[each] for each in HELD}
    lines = ["| | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    for row in next(iter(columns.values())):
        lines.append(f"| {row} | " + " | ".join(each[row] for each in columns.values()) + " |")
    table = "\n".join(lines)
    print(table)
    if options.out:
        how = f"`python benchmarks/http_engines.py --seconds {options.seconds:g}`"
        options.out.write_text(f"# HTTP engines\n\n{how}, on {os.cpu_count()} cores.\n\n{table}\n")


if __name__ == "__main__":
    main()
