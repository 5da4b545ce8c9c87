"""What a client waits for, and what is of no use to wait for: each said in one line."""

import http.server
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from distill.errors import ConfigError, TeacherRequestError, TeacherUnavailableError
from distill.wire.client import TeacherClient


class Stranger(http.server.BaseHTTPRequestHandler):
    """Answers 404 to all."""

    def do_GET(self) -> None:
        self.send_response(404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


class Quiet(http.server.ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """A client that hangs up in a handshake is what is tested."""


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    if not shutil.which("openssl"):
        pytest.skip("needs openssl")
    words = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"]
    words += ["-keyout", tmp_path / "key.pem", "-out", tmp_path / "cert.pem"]
    words += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run([*map(str, words)], check=True, capture_output=True)
    return tmp_path / "cert.pem"


@pytest.fixture
def tls_port(certificate: Path) -> Iterator[int]:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, certificate.with_name("key.pem"))
    with Quiet(("127.0.0.1", 0), Stranger) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def refused(url: str) -> str:
    """The message of an error that comes at once, not after the deadline."""
    began = time.monotonic()
    with pytest.raises(TeacherRequestError) as error:
        TeacherClient(url, deadline_s=60)
    assert time.monotonic() - began < 5
    return str(error.value)


def test_what_no_waiting_mends_is_said_at_once(tls_port: int) -> None:
    assert "expected the name of a host" in refused("http://nobody.invalid:80")
    unknown = refused(f"https://localhost:{tls_port}")
    assert "certificate that is trusted; name its authority in DISTILL_CA_FILE" in unknown
    plain = refused(f"http://localhost:{tls_port}")
    assert "expected plain HTTP, but the port speaks TLS; pass https://" in plain
    with Quiet(("127.0.0.1", 0), Stranger) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert "404" in refused(f"http://127.0.0.1:{server.server_port}")
        wrong = refused(f"https://127.0.0.1:{server.server_port}")
        assert "expected a port that speaks TLS" in wrong
        server.shutdown()


@pytest.mark.parametrize("name", ["DISTILL_CA_FILE", "SSL_CERT_FILE"])
def test_an_authority_of_ones_own_is_trusted(
    name: str, tls_port: int, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, str(certificate))
    assert "404" in refused(f"https://localhost:{tls_port}")
    monkeypatch.setenv("DISTILL_CA_FILE", "/nowhere.pem")
    with pytest.raises(ConfigError, match=r"no file /nowhere\.pem"):
        TeacherClient(f"https://localhost:{tls_port}")


def test_a_wait_says_what_it_waits_for_and_ends_when_it_is_told() -> None:
    lines: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    url, began = f"http://127.0.0.1:{port}", time.monotonic()
    with pytest.raises(TeacherUnavailableError, match="Connection refused"):
        TeacherClient(url, deadline_s=60, say=lines.append, give_up=lambda: bool(lines))
    assert time.monotonic() - began < 10
    assert lines[0].startswith(f"waiting for {url} for ")
