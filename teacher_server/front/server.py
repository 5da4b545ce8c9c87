"""The server process: listens at once, is ready after warm-up, and ends without losing a request.

On SIGTERM or SIGINT it is no longer ready, but goes on listening: admitted requests are answered,
what was computed is written through, and the exit code is 0. A second signal does not wait for
answers. uvicorn alone would close the listener first, and answer plain text at its deadline.
"""

import asyncio
import gc
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from distill.errors import ConfigError
from distill.teacher_server.front.app import make_app
from distill.teacher_server.front.grpc_server import make_grpc_server
from distill.teacher_server.http.keys import ApiKeys
from distill.teacher_server.http.listener import Address, HttpServer
from distill.teacher_server.pages.site import Student
from distill.teacher_server.serve.service import Service

POLL_S = 0.02
CLOSING_S = 2.0  # of the deadline, kept for flushing and closing
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run(
    server: "TeacherServer",
    service: Service,
    listener: socket.socket,
    drain_s: float,
    grpc_address: Address | None = None,
) -> None:
    """Serve until a signal comes; at most `drain_s` seconds from there to the end.

    grpc_address: where gRPC is spoken as well.

    Raises:
        TeacherError: a device cannot run the teacher.
        ConfigError: the address for gRPC is taken.
    """
    with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
        ended = runner.run(_serve(server, service, listener, drain_s, grpc_address))
    if not ended:  # Python would wait for a thread that hangs; all that matters is on the disk
        sys.stderr.flush()
        for process in multiprocessing.active_children():  # one that is stopped ends no other way
            process.kill()
        os._exit(0)


def make_server(
    service: Service,
    keys: ApiKeys | None,
    address: Address,
    student: Student | None = None,
    root_path: str = "",
) -> "TeacherServer":
    """uvicorn, set up for the service; leaves signals alone.

    Raises:
        ConfigError: the certificate and its key are none.
    """
    app = make_app(service, keys, student, root_path)
    return TeacherServer(app, address, keys)


async def _serve(
    server: "TeacherServer",
    service: Service,
    listener: socket.socket,
    drain_s: float,
    grpc_address: Address | None,
) -> bool:
    """Whether all threads came to their end."""
    loop, journal, signals = asyncio.get_running_loop(), service.journal, _Signals()
    for number in SIGNALS:
        loop.add_signal_handler(number, signals.count)
    if server.may_reload:
        loop.add_signal_handler(signal.SIGHUP, server.reload, service)
    beside = None
    if grpc_address:
        beside, grpc_port = make_grpc_server(
            service, server.keys, grpc_address, lambda: server.certificate
        )
        await beside.start()
        journal.event("listening", protocol="gRPC", host=grpc_address.host, port=grpc_port)
    serving = loop.create_task(server.serve([listener]))
    threads = ThreadPoolExecutor(2, thread_name_prefix="life")  # the loop would wait for its own
    warming: asyncio.Future[None] = loop.run_in_executor(threads, service.start)
    looking = loop.create_task(_look_after(service))
    ending = loop.create_task(signals.first.wait())
    try:
        host, port = listener.getsockname()[:2]
        journal.event("listening", host=host, port=port)
        waits: set[asyncio.Future[Any]] = {warming, ending, serving}
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        if warming.done():
            warming.result()  # raises what went wrong
            # All that is there by now stays: looking through it again took 200 ms at a time.
            gc.collect()
            gc.freeze()
            journal.event("ready", host=host, port=port)
            await asyncio.wait({ending, serving}, return_when=asyncio.FIRST_COMPLETED)
        journal.event("draining", in_flight=dict(service.admission.in_flight))
        service.draining = True
        await _drained(server, service, signals, drain_s - CLOSING_S)
    finally:
        ending.cancel()
        looking.cancel()
        ended = await loop.run_in_executor(threads, service.close, CLOSING_S / 2)
        if beside:
            await beside.stop(POLL_S)
        server.should_exit = True
        await serving
        threads.shutdown(wait=False)
        gc.unfreeze()
        journal.event("ended", in_flight=dict(service.admission.in_flight), in_time=ended)
    return ended


class _Signals:
    """The first asks for an end, the second for one at once."""

    def __init__(self) -> None:
        self.first, self.second = asyncio.Event(), asyncio.Event()

    def count(self) -> None:
        (self.second if self.first.is_set() else self.first).set()


async def _look_after(service: Service) -> None:
    while True:
        service.look_after()
        await asyncio.sleep(1.0)


async def _drained(
    server: uvicorn.Server, service: Service, signals: _Signals, within_s: float
) -> None:
    """Wait until nothing is in flight; at the deadline what is left is told 503."""
    ends = time.monotonic() + within_s
    while not service.admission.idle and time.monotonic() < ends and not signals.second.is_set():
        await asyncio.sleep(POLL_S)
    if not service.admission.idle:
        in_flight = dict(service.admission.in_flight)
        service.journal.event("ended before its requests", level="warning", in_flight=in_flight)
        for task in list(server.server_state.tasks):
            task.cancel()
        await asyncio.sleep(POLL_S)


class TeacherServer(HttpServer):
    """Keys and certificate may be replaced while it serves."""

    def __init__(self, app: ASGIApp, address: Address, keys: ApiKeys | None) -> None:
        super().__init__(app, address)
        self.keys = keys

    @property
    def may_reload(self) -> bool:
        """Whether there are files to be read anew; without any, SIGHUP ends the server."""
        return bool(self.keys or self.address.certificate)

    def reload(self, service: Service) -> None:
        """Read keys and certificate anew; where one of them is wrong, the old ones go on."""
        try:
            keys = ApiKeys.read(self.keys.path) if self.keys else None
            certificate = self.address.read_certificate()
        except ConfigError as error:
            service.journal.event("not reloaded", level="error", text=str(error))
            return
        self.certificate = certificate
        if self.keys and keys:
            self.keys.digests = keys.digests
            service.admission.fair = len(keys.digests) > 1
        service.journal.event("reloaded", keys=sorted(keys.digests) if keys else [])

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are taken above."""
        yield
