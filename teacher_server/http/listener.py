"""Where a server listens, and uvicorn with limits on what a client may hold open."""

import ipaddress
import json
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from distill.errors import ConfigError
from distill.teacher_server.http.keys import ApiKeys

IDLE_CONNECTIONS_S = 75  # kept open, as nginx does; clients keep theirs for a minute
MAX_CONNECTIONS = 4096
MAX_HTTP_HEAD_BYTES = 2**16
HEAD_S = 20.0  # for the head of a request
STALLED_S = 60.0  # for a client to read what is written to it


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
