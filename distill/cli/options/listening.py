"""Where a server listens, and who may ask it: options that several commands share."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from distill.cli.options.group import gathered

if TYPE_CHECKING:
    import socket

    from teacher_server.http.keys import ApiKeys
    from teacher_server.http.listener import Address


@dataclass(frozen=True, kw_only=True)
class Listening:
    """What was chosen."""

    host: str
    port: int
    api_key_file: Path | None
    tls_certificate: Path | None
    tls_key: Path | None

    def bound(self) -> "tuple[Address, ApiKeys | None, socket.socket]":
        """The address, who may ask there, and a socket that is bound to it.

        Raises:
            ConfigError: it cannot be had, or would be open to others without a key.
        """
        from teacher_server.http.keys import ApiKeys
        from teacher_server.http.listener import Address

        address = Address(
            host=self.host,
            port=self.port,
            certificate=self.tls_certificate,
            private_key=self.tls_key,
        )
        keys = ApiKeys.read(self.api_key_file) if self.api_key_file else None
        address.require_safe(keys)
        return address, keys, address.bound()


def listening(port: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The options, with that port by default; the command gets them as `listening`."""
    return gathered(
        "listening",
        (
            click.option("--host", default="127.0.0.1", show_default=True),
            click.option("--port", type=click.IntRange(0, 65535), default=port, show_default=True),
            click.option(
                "--api-key-file",
                type=click.Path(path_type=Path),
                help="Who may ask; without it the server is open to this machine alone.",
            ),
            click.option("--tls-certificate", type=click.Path(path_type=Path), help="PEM."),
            click.option("--tls-key", type=click.Path(path_type=Path), help="PEM."),
        ),
        Listening,
    )
