"""The options that choose where a server listens and which keys it accepts."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from distill.cli.options.command import FILE, option
from distill.cli.options.group import option_group

if TYPE_CHECKING:
    import socket

    from distill.teacher_server.http.keys import ApiKeys
    from distill.teacher_server.http.listener import Address


@dataclass(frozen=True, kw_only=True)
class Listening:
    """The chosen address."""

    host: str
    port: int
    api_key_file: Path | None
    tls_certificate: Path | None
    tls_key: Path | None

    def bound(self) -> "tuple[Address, ApiKeys | None, socket.socket]":
        """The address, its API keys, and a socket that is bound to it.

        Raises:
            ConfigError: it cannot be had, or would be open to others without a key.
        """
        from distill.teacher_server.http.keys import ApiKeys
        from distill.teacher_server.http.listener import Address

        address = Address(
            host=self.host,
            port=self.port,
            certificate=self.tls_certificate,
            private_key=self.tls_key,
        )
        keys = ApiKeys.read(self.api_key_file) if self.api_key_file else None
        address.require_safe(keys)
        return address, keys, address.bound()

    def announce_pages(self, listener: "socket.socket") -> None:
        """Let browsers in, and say where the pages are."""
        listener.listen()  # from here on nobody is turned away
        scheme, port = "https" if self.tls_certificate else "http", listener.getsockname()[1]
        click.echo(f"pages: {scheme}://{self.host}:{port}/ (Ctrl-C ends them)", err=True)


def listen_options(
    port: int, *, setting: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The options, with that port by default; the command gets a `Listening` as `listen`."""
    return option_group(
        "listen",
        (
            option("--host", default="127.0.0.1", help="Address to listen on.", setting=setting),
            option(
                "--port",
                type=click.IntRange(0, 65535),
                default=port,
                help="Port; 0 takes a free one.",
                setting=setting,
            ),
            option(
                "--api-key-file",
                type=FILE,
                help="Accepted API keys; without it, only this machine may connect.",
                setting=setting,
            ),
            option("--tls-certificate", type=FILE, help="TLS certificate, PEM.", setting=setting),
            option("--tls-key", type=FILE, help="TLS private key, PEM.", setting=setting),
        ),
        Listening,
    )
