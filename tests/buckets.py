"""A real S3 server process, buckets in it, and a proxy before it that throttles and hangs up."""

import os
import random
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import boto3


def free_port() -> int:
    with closing(socket.socket()) as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def s3_server(log: Path | None = None) -> Iterator[str]:
    """moto's server process; its URL. log: of its requests."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    words = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with (log or Path(os.devnull)).open("w") as said:
        process = subprocess.Popen(words, stdout=said, stderr=said)
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(url, timeout=1).close()
                break
            except OSError:
                time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait()


def make_bucket(server: str, name: str) -> str:
    """An empty bucket; s3://… of it."""
    with closing(boto3.client("s3", endpoint_url=server, region_name="us-east-1")) as client:
        client.create_bucket(Bucket=name)
    return f"s3://{name}"


class Unreliable:
    """A TCP proxy: some connections are answered 503 Slow Down, some are cut in the middle."""

    def __init__(self, upstream: str, *, slow_down: float, cut: float) -> None:
        host, port = upstream.removeprefix("http://").split(":")
        self.upstream, self.slow_down, self.cut = (host, int(port)), slow_down, cut
        self.refused = self.hung_up = 0
        self.chance = random.Random(1)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.serve, args=(client,), daemon=True).start()

    def serve(self, client: socket.socket) -> None:
        fate = self.chance.random()
        with closing(client):
            try:
                if fate < self.slow_down:
                    self.refused += 1
                    client.recv(65536)
                    client.sendall(
                        b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                    )
                    return
                with closing(socket.create_connection(self.upstream)) as server:
                    allowed = 2000 if fate < self.slow_down + self.cut else 10**9
                    up = threading.Thread(target=self.pump, args=(client, server, 10**9))
                    up.daemon = True
                    up.start()
                    if self.pump(server, client, allowed) >= allowed:
                        self.hung_up += 1
            except OSError:
                pass

    def pump(self, source: socket.socket, target: socket.socket, allowed: int) -> int:
        passed = 0
        try:
            while passed < allowed and (content := source.recv(4096)):
                target.sendall(content)
                passed += len(content)
        except OSError:
            pass
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        return passed

    def close(self) -> None:
        self.listener.close()
