"""Where a server listens, and how uvicorn serves there."""

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
from distill.teacher_server.http.keys import ApiKeys


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

    def tls(self) -> ssl.SSLContext | None:
        """With the certificate as its files are now; None without one.

        Raises:
            ConfigError: they are no certificate and its key.
        """
        if self.certificate is None:
            return None
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        try:
            context.load_cert_chain(self.certificate, self.private_key)
        except OSError as error:
            raise ConfigError(
                f"{self.certificate}: not a certificate and its key ({error.strerror}), expected "
                "PEM files"
            ) from error
        return context

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
        self.tls()
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


def configured(app: ASGIApp, address: Address) -> uvicorn.Config:
    """How uvicorn serves, whatever it serves.

    Raises:
        ConfigError: the certificate and its key are none.
    """
    config = uvicorn.Config(
        app,
        http=partial(Connection, others=Connections(most_connections())),  # type: ignore[arg-type]
        loop="uvloop",
        lifespan="off",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=1,
    )
    config.load()
    config.ssl = address.tls()
    return config
