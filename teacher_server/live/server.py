"""The server process: listens at once, is ready after warm-up, and ends without losing a request.

On SIGTERM or SIGINT it is no longer ready, but goes on listening: admitted requests are answered,
what was computed is written through, and the exit code is 0. uvicorn alone would close the listener
first.
"""

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from distill.errors import ConfigError
from distill.journal import Event, Journal, without_secrets
from teacher_server.live.app import make_app
from teacher_server.live.keys import ApiKeys
from teacher_server.live.service import Service

POLL_S = 0.02
IDLE_CONNECTIONS_S = 75  # kept open, as nginx does; clients keep theirs for a minute
CLOSING_S = 2.0  # of the deadline, kept for flushing and closing
SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True, kw_only=True)
class Address:
    """host, port: 0 takes a free one. certificate, private_key: for TLS, PEM files."""

    host: str = "127.0.0.1"
    port: int = 8000
    certificate: Path | None = None
    private_key: Path | None = None

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
        if not keys and not (self.host in ("localhost", "::1") or self.host.startswith("127.")):
            raise ConfigError(
                f"--host {self.host} found without keys, expected 127.0.0.1, ::1 or localhost; "
                "make a key with `distill api-key NAME --file FILE` and pass --api-key-file FILE"
            )


def run(server: uvicorn.Server, service: Service, listener: socket.socket, drain_s: float) -> None:
    """Serve until a signal comes; at most `drain_s` seconds from there to the end.

    Raises:
        TeacherError: a device cannot run the teacher.
    """
    with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
        runner.run(_serve(server, service, listener, drain_s))


def make_server(service: Service, keys: ApiKeys | None, address: Address) -> uvicorn.Server:
    """uvicorn, set up for the service; leaves signals alone.

    Raises:
        ConfigError: the certificate and its key are none.
    """
    config = uvicorn.Config(
        make_app(service, keys),
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
    return _Server(config)


async def _serve(
    server: uvicorn.Server,
    service: Service,
    listener: socket.socket,
    drain_s: float,
) -> None:
    journal = service.journal
    loop, told_to_end = asyncio.get_running_loop(), asyncio.Event()
    for number in SIGNALS:
        loop.add_signal_handler(number, told_to_end.set)
    serving = loop.create_task(server.serve([listener]))
    warming = loop.create_task(asyncio.to_thread(service.start))
    ending = loop.create_task(told_to_end.wait())
    try:
        host, port = listener.getsockname()[:2]
        journal.event("listening", host=host, port=port)
        await asyncio.wait({warming, ending, serving}, return_when=asyncio.FIRST_COMPLETED)
        if warming.done():
            warming.result()
            journal.event("ready", host=host, port=port)
            await asyncio.wait({ending, serving}, return_when=asyncio.FIRST_COMPLETED)
        journal.event("draining", in_flight=dict(service.admission.in_flight))
        service.draining = True
        await _drained(service, drain_s - CLOSING_S)
    finally:
        ending.cancel()
        await asyncio.to_thread(service.close, CLOSING_S / 2)
        server.should_exit = True
        await serving
        journal.event("ended", in_flight=dict(service.admission.in_flight))


async def _drained(service: Service, within_s: float) -> None:
    """Wait until nothing is in flight."""
    try:
        async with asyncio.timeout(max(0.0, within_s)):
            while not service.admission.idle:
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        service.journal.event("drain too slow", in_flight=dict(service.admission.in_flight))


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are taken above."""
        yield


class _Protocol(HttpToolsProtocol):
    def send_400_response(self, msg: str) -> None:
        """As every error, JSON."""
        body = b'{"error": "%s"}' % msg.encode("ascii", "replace").replace(b'"', b"'")
        head = (
            b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head % len(body) + body)
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
