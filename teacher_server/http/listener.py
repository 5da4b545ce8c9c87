"""Where a server listens, and how uvicorn serves there."""

import asyncio
import ipaddress
import socket
import ssl
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

from distill.errors import ConfigError
from distill.teacher_server.http.connection import (
    Connection,
    Connections,
    most_connections,
)
from distill.teacher_server.http.handshakes import Handshakes
from distill.teacher_server.http.keys import ApiKeys


@dataclass(frozen=True, eq=False)
class Certificate:
    """private_key, chain: PEM, as they were read. context: that shows it."""

    private_key: bytes
    chain: bytes
    context: ssl.SSLContext


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

    def read_certificate(self) -> "Certificate | None":
        """As its files are now; None without one.

        Raises:
            ConfigError: they are no certificate and its key, or the key asks for a password.
        """
        if self.certificate is None or self.private_key is None:
            return None
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        try:
            pair = self.private_key.read_bytes(), self.certificate.read_bytes()
            # Whatever the password is, nobody could be asked for it.
            context.load_cert_chain(self.certificate, self.private_key, password=lambda: b"")
        except OSError as error:
            raise ConfigError(
                f"{self.certificate}: not a certificate and its key ({error.strerror}), expected "
                "PEM files, without a password"
            ) from error
        return Certificate(*pair, context)

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
        """Raises ConfigError where others could ask without a key, or the certificate is none."""
        self.read_certificate()
        if not keys and not self._is_loopback():
            raise ConfigError(
                f"--host {self.host} found without keys, expected 127.0.0.1, ::1 or localhost; "
                "make a key with `distill api-key NAME --file FILE` and pass --api-key-file FILE"
            )

    @property
    def warning(self) -> str:
        """What everybody on the way could read; empty where nobody can."""
        if self.certificate or self._is_loopback():
            return ""
        return (
            f"--host {self.host} without TLS: keys and images go unencrypted; pass "
            "--tls-certificate and --tls-key, or let a proxy on this machine encrypt"
        )

    def _is_loopback(self) -> bool:
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


class HttpServer(uvicorn.Server):
    """How uvicorn serves, whatever it serves. certificate: may be replaced while it does.

    Raises:
        ConfigError: the certificate and its key are none.
    """

    def __init__(self, app: ASGIApp, address: Address) -> None:
        self.address, self.certificate = address, address.read_certificate()
        self._connections = Connections(most_connections())
        super().__init__(
            uvicorn.Config(
                app,
                http=partial(Connection, others=self._connections),  # type: ignore[arg-type]
                loop="uvloop",
                lifespan="off",
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=1,
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """See `uvicorn.Server`."""
        await super().startup([] if self.certificate else sockets)
        self._accepting = [
            asyncio.get_running_loop().create_task(self._handshakes().accept(each))
            for each in (sockets or []) * bool(self.certificate)
        ]

    def _handshakes(self) -> Handshakes:
        make = partial(
            Connection,
            others=self._connections,
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
        )
        return Handshakes(make, self._connections, self._context)

    def _context(self) -> ssl.SSLContext:
        assert self.certificate
        return self.certificate.context

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """See `uvicorn.Server`."""
        for each in self._accepting:
            each.cancel()
        await super().shutdown(sockets)
