"""A load generator for `benchmarks/serving.py`: HTTP/1.1 over asyncio, in a process of its own.

    python benchmarks/load.py REQUEST.json

Closed loop: each of some clients asks again when it has its answer. Open loop: requests begin at
random moments at a fixed mean rate, whatever the server does, as those of independent clients do.
The file says which; the result is one JSON line: per request its status, seconds and moment.
"""

import asyncio
import json
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STATUS = slice(9, 12)


@dataclass
class Line:
    """A connection that is kept."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def ask(self, request: bytes) -> int:
        """The status of the reply, once all of it is there."""
        self.writer.write(request)
        await self.writer.drain()
        head = await self.reader.readuntil(b"\r\n\r\n")
        lengths = [
            int(line.partition(b":")[2])
            for line in head.split(b"\r\n")
            if line.lower().startswith(b"content-length")
        ]
        if lengths:
            await self.reader.readexactly(lengths[0])
        else:
            await self.reader.readuntil(b"\r\n0\r\n\r\n")  # the last chunk
        return int(head[STATUS])


async def connect(port: int) -> Line:
    """To this machine."""
    return Line(*await asyncio.open_connection("127.0.0.1", port, limit=2**24))


async def closed(port: int, request: bytes, clients: int, seconds: float) -> list[list[float]]:
    """Every client asks again at once."""
    found: list[list[float]] = []

    async def client() -> None:
        line = await connect(port)
        ends = time.monotonic() + seconds
        while (began := time.monotonic()) < ends:
            status = await line.ask(request)
            found.append([status, time.monotonic() - began, began])
        line.writer.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    return found


async def opened(port: int, request: bytes, rate: float, seconds: float) -> list[list[float]]:
    """Poisson arrivals; each on a connection that is free, or on a new one."""
    found: list[list[float]] = []
    free: list[Line] = []
    tasks: set[asyncio.Task[None]] = set()
    choose = random.Random(0)

    async def one(began: float) -> None:
        try:
            line = free.pop() if free else await connect(port)
            status = await line.ask(request)
            free.append(line)
        except (OSError, asyncio.IncompleteReadError):
            status = 0
        found.append([status, time.monotonic() - began, began])

    began = start = time.monotonic()
    while began < start + seconds:
        await asyncio.sleep(max(0.0, began - time.monotonic()))
        task = asyncio.create_task(one(max(began, time.monotonic() - 0.001)))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        began += choose.expovariate(rate)
    await asyncio.gather(*tasks)
    for line in free:
        line.writer.close()
    return found


def main() -> None:
    """Reads what to do, prints what was seen."""
    asked: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
    request = Path(asked["request"]).read_bytes()
    if asked["rate"]:
        job = opened(asked["port"], request, asked["rate"], asked["seconds"])
    else:
        job = closed(asked["port"], request, asked["clients"], asked["seconds"])
    print(json.dumps(asyncio.run(job)))


if __name__ == "__main__":
    main()
