"""The server process: listens at once, is ready after warm-up, and ends without losing a request.

On SIGTERM or SIGINT it is no longer ready, but goes on listening: admitted requests are answered,
what was computed is written through, and the exit code is 0. A second signal does not wait for
answers. uvicorn alone would close the listener first, and answer plain text at its deadline.
"""

import asyncio
import gc
import ipaddress
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from distill.errors import ConfigError
from distill.journal import Event, Journal, without_secrets
from teacher_server.inspector.pages.site import Student
from teacher_server.live.app import make_app
from teacher_server.live.front import etag
from teacher_server.live.keys import ApiKeys
from teacher_server.live.service import Service

POLL_S = 0.02
IDLE_CONNECTIONS_S = 75  # kept open, as nginx does; clients keep theirs for a minute
MAX_CONNECTIONS = 4096
MAX_HTTP_HEAD_BYTES = 2**16
HEAD_S = 20.0  # for the head of a request
STALLED_S = 60.0  # for a client to read what is written to it
CLOSING_S = 2.0  # of the deadline, kept for flushing and closing
SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True, kw_only=True)
class Address:
    """host, port: 0 takes a free one. certificate, private_key: for TLS, PEM files."""

    host: str = "127.0.0.1"
    port: int = 8000
    certificate: Path | None = None
    private_key: Path | None = None

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.private_key is None):
            raise ConfigError(
                "one of --tls-certificate and --tls-key found, expected both or none of them"
            )

    def bound(self) -> socket.socket:
        """A socket that listens here.

        Raises:
            ConfigError: it cannot.
        """
        try:
            family, _, _, _, address = socket.getaddrinfo(
                self.host, self.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            listener = socket.socket(family)
        except OSError as error:
            raise self._not_to_be_had(error) from error
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except OSError as error:
            listener.close()
            raise self._not_to_be_had(error) from error
        return listener

    def _not_to_be_had(self, error: OSError) -> ConfigError:
        return ConfigError(
            f"{self.host}:{self.port}: cannot listen there ({error.strerror}), expected a free "
            "port of this machine; pass another --host or --port"
        )

    def require_safe(self, keys: ApiKeys | None) -> None:
        """Raises ConfigError where others could ask without a key."""
        if not keys and not self._is_loopback():
            raise ConfigError(
                f"--host {self.host} found without keys, expected 127.0.0.1, ::1 or localhost; "
                "make a key with `distill api-key NAME --file FILE` and pass --api-key-file FILE"
            )

    def _is_loopback(self) -> bool:
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


def run(server: uvicorn.Server, service: Service, listener: socket.socket, drain_s: float) -> None:
    """Serve until a signal comes; at most `drain_s` seconds from there to the end.

    Raises:
        TeacherError: a device cannot run the teacher.
    """
    with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
        ended = runner.run(_serve(server, service, listener, drain_s))
    if not ended:  # Python would wait for a thread that hangs; all that matters is on the disk
        sys.stderr.flush()
        os._exit(0)


def make_server(
    service: Service, keys: ApiKeys | None, address: Address, student: Student | None = None
) -> uvicorn.Server:
    """uvicorn, set up for the service; leaves signals alone.

    Raises:
        ConfigError: the certificate and its key are none.
    """
    app = make_app(service, keys, student)
    return _Server(configured(app, address, [("etag", etag(service))]))


def configured(
    app: ASGIApp, address: Address, headers: Sequence[tuple[str, str]] = ()
) -> uvicorn.Config:
    """How uvicorn serves, whatever it serves. headers: of every reply.

    Raises:
        ConfigError: the certificate and its key are none.
    """
    config = uvicorn.Config(
        app,
        headers=list(headers),
        http=_Protocol,
        loop="uvloop",
        lifespan="off",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=IDLE_CONNECTIONS_S,
        timeout_graceful_shutdown=1,
        ssl_certfile=address.certificate,
        ssl_keyfile=address.private_key,
    )
    try:
        config.load()
    except OSError as error:  # of TLS files
        raise ConfigError(
            f"{address.certificate}: not a certificate and its key ({error.strerror}), expected "
            "PEM files"
        ) from error
    return config


async def _serve(
    server: uvicorn.Server,
    service: Service,
    listener: socket.socket,
    drain_s: float,
) -> bool:
    """Whether all threads came to their end."""
    loop, journal, signals = asyncio.get_running_loop(), service.journal, _Signals()
    for number in SIGNALS:
        loop.add_signal_handler(number, signals.count)
    serving = loop.create_task(server.serve([listener]))
    own = ThreadPoolExecutor(2, thread_name_prefix="life")  # the loop would wait for its own
    warming: asyncio.Future[None] = loop.run_in_executor(own, service.start)
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
        ended = await loop.run_in_executor(own, service.close, CLOSING_S / 2)
        server.should_exit = True
        await serving
        own.shutdown(wait=False)
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
        service.journal.event("ended before its requests", in_flight=in_flight)
        for task in list(server.server_state.tasks):
            task.cancel()
        await asyncio.sleep(POLL_S)


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are taken above."""
        yield


class _Protocol(HttpToolsProtocol):
    """uvicorn's, but its errors are JSON, and nobody holds a connection without saying anything.

    A client is hung up on that sends no head in time, or too long a one, or reads no reply.
    """

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._timers: dict[str, Any] = {}
        self._head_bytes, self._in_head = 0, True
        self._hang_up_after("head", HEAD_S)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        for name in ("head", "reply"):
            self._in_time(name)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._in_head and self._head_bytes > MAX_HTTP_HEAD_BYTES:
            self.send_400_response(f"head of more than {MAX_HTTP_HEAD_BYTES} bytes, expected less")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True
        self._hang_up_after("head", HEAD_S)

    def on_headers_complete(self) -> None:
        self._head_bytes, self._in_head = 0, False
        self._in_time("head")
        if self.parser.should_upgrade():
            raise ValueError("Upgrade found, expected plain HTTP/1.1")  # to the parser: 400
        super().on_headers_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._hang_up_after("reply", STALLED_S)

    def resume_writing(self) -> None:
        self._in_time("reply")
        super().resume_writing()

    def _hang_up_after(self, name: str, seconds: float) -> None:
        self._in_time(name)
        self._timers[name] = self.loop.call_later(seconds, self.transport.abort)

    def _in_time(self, name: str) -> None:
        if timer := self._timers.pop(name, None):
            timer.cancel()

    def send_400_response(self, msg: str) -> None:
        body = json.dumps({"error": f"{msg} (expected a request in HTTP/1.1)"}).encode()
        fields = {
            **{name.decode(): value.decode() for name, value in self.config.encoded_headers},
            "content-type": "application/json",
            "content-length": str(len(body)),
            "connection": "close",
        }
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        self.transport.write(f"HTTP/1.1 400 Bad Request\r\n{lines}\r\n".encode() + body)
        self.transport.close()


def json_log() -> Journal:
    """A journal that writes JSON lines to standard error, uvicorn's warnings among them."""
    before: list[Any] = [
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.add_log_level,
    ]
    structlog.configure(
        processors=[
            *before,
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(default=str),
        ],
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    log = structlog.get_logger()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=before,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                structlog.processors.JSONRenderer(default=str),
            ],
        )
    )
    own = logging.getLogger("uvicorn.error")
    own.handlers, own.propagate = [handler], False
    own.setLevel(logging.WARNING)

    def write(event: Event) -> None:
        fields = {name: _clean(value) for name, value in event.items() if name != "time"}
        log.info(fields.pop("event"), **fields)

    return Journal(write, lambda text: log.warning(without_secrets(text)))


def _clean(value: Any) -> Any:
    return without_secrets(value) if isinstance(value, str) else value
