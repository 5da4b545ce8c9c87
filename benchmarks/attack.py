"""Hostile connections for `make soak`: each kind over and over, until the time is up.

    python benchmarks/attack.py PORT SECONDS [CONNECTIONS [GRPC_PORT]]

Prints how many connections of each kind there were.
"""

import asyncio
import itertools
import json
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress

INFER = "POST /v2/models/teacher/infer HTTP/1.1\r\nHost: localhost\r\n"
CHUNKED = f"{INFER}Transfer-Encoding: chunked\r\n\r\n".encode()
HELD_S = 8.0
PAUSE_S = 0.2  # this machine has other things to do

Line = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def drip(line: Line, first: bytes, drop: bytes) -> None:
    """Say a little more again and again."""
    line[1].write(first)
    for _ in range(int(HELD_S / PAUSE_S)):
        await line[1].drain()
        await asyncio.sleep(PAUSE_S)
        line[1].write(drop)


async def flood(line: Line, first: bytes, block: bytes) -> None:
    """As much as the server takes, 16 MiB at most."""
    line[1].write(first)
    for _ in range(2**24 // len(block)):
        line[1].write(block)
        await line[1].drain()


async def ask_without_reading(line: Line) -> None:
    """Many replies, none of which is read."""
    request = b"GET /v2/models/teacher/hierarchy HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with suppress(asyncio.TimeoutError):
        async with asyncio.timeout(HELD_S):
            await flood(line, b"", request * 100)


async def end_early(line: Line) -> None:
    """Half of a request, and away."""
    line[1].write(f"{INFER}Content-Length: 1000\r\n\r\n{{".encode())
    await line[1].drain()


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Of HTTP/2."""
    return (
        len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload
    )


def call(method: str, stream: int, begun: bytes = b"") -> bytes:
    """A call of gRPC whose message does not end; its headers are HPACK literals."""
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": f"/inference.GRPCInferenceService/{method}",
        ":authority": "localhost",
        "te": "trailers",
        "content-type": "application/grpc",
    }
    block = b"".join(
        b"\0" + b"".join(bytes([len(text)]) + text.encode() for text in pair)
        for pair in fields.items()
    )
    return frame(1, 4, stream, block) + (frame(0, 0, stream, begun) if begun else b"")


async def calls(line: Line, begun: bytes = b"", window: int = 65_535) -> None:
    """As many as the server takes; whatever it says is left unread where the window is 0."""
    settings = (4).to_bytes(2, "big") + window.to_bytes(4, "big")
    line[1].write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, settings))
    streams = itertools.count(1, 2)
    for _ in range(int(HELD_S / PAUSE_S)):
        for method in ("ServerLive", "ServerReady", "ModelReady", "ModelInfer"):
            line[1].write(call(method, next(streams), begun))
        await line[1].drain()
        await asyncio.sleep(PAUSE_S)


KINDS: dict[str, Callable[[Line], Awaitable[None]]] = {
    "silent": lambda line: drip(line, b"", b""),
    "head by the byte": lambda line: drip(line, b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n", b"a"),
    "empty lines": lambda line: drip(line, b"", b"\r\n"),
    "announced, not sent": lambda line: drip(
        line, f"{INFER}Content-Length: {2**25}\r\n\r\n".encode(), b"x"
    ),
    "trailers by the line": lambda line: drip(line, CHUNKED + b"0\r\n", b"a: b\r\n"),
    "trailers without end": lambda line: flood(line, CHUNKED + b"0\r\n", b"a: b\r\n" * 5000),
    "one chunk header without end": lambda line: flood(line, CHUNKED + b"1;", b"x" * 2**15),
    "head without end": lambda line: flood(line, b"GET / HTTP/1.1\r\na: ", b"x" * 2**15),
    "pipeline": lambda line: drip(
        line, b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n\r\n" * 2000, b"GET /v2 HTTP/1.1\r\n"
    ),
    "replies unread": ask_without_reading,
    "half of a request": end_early,
}


BEGUN = b"\0" + (2**25).to_bytes(4, "big") + bytes(1000)  # of a message of 32 MiB
GRPC_KINDS: dict[str, Callable[[Line], Awaitable[None]]] = {
    "gRPC, silent": lambda line: drip(line, b"", b""),
    "gRPC, no messages": calls,
    "gRPC, unended messages": lambda line: calls(line, BEGUN),
    "gRPC, replies unread": lambda line: calls(line, window=0),
}


async def attacker(
    port: int,
    number: int,
    ends: float,
    counts: Counter[str],
    of: dict[str, Callable[[Line], Awaitable[None]]],
) -> None:
    """One kind after the other, beginning with its own."""
    loop, kinds = asyncio.get_running_loop(), list(of.items())
    while loop.time() < ends:
        name, attack = kinds[number % len(kinds)]
        number += 1
        with suppress(OSError, TimeoutError):
            line = await asyncio.open_connection("127.0.0.1", port)
            counts[name] += 1
            with suppress(OSError):
                await attack(line)
            line[1].transport.abort()
        await asyncio.sleep(PAUSE_S)


async def main(port: int, seconds: float, connections: int = 100, grpc_port: int = 0) -> None:
    """All attackers at once."""
    counts: Counter[str] = Counter()
    ends = asyncio.get_running_loop().time() + seconds
    attackers = [attacker(port, i, ends, counts, KINDS) for i in range(connections)]
    if grpc_port:
        many = range(connections // 2)
        attackers += [attacker(grpc_port, i, ends, counts, GRPC_KINDS) for i in many]
    await asyncio.gather(*attackers)
    print(json.dumps(counts))


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), float(sys.argv[2]), *map(int, sys.argv[3:])))
