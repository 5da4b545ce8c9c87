"""A plain file server: python tests/web_server.py FOLDER [--ranges] [--cert PEM].

With --hub it also speaks as much of the Hugging Face hub's protocol as reading a repository takes,
FOLDER being the repository datasets/team/set at its only revision. Prints its port.
"""

import argparse
import http.server
import json
import ssl
import sys
from functools import partial
from pathlib import Path
from urllib.parse import parse_qs, unquote


class Files(http.server.SimpleHTTPRequestHandler):
    """ranges: whether it answers them, as most servers do and Python's own does not."""

    ranges = hub = False
    lie = ""

    def do_GET(self) -> None:
        path = unquote(self.path.partition("?")[0])
        if self.hub and path.startswith("/api/"):
            self.answer_api(path)
            return
        if self.hub:
            self.path = path.replace("/datasets/team/set/resolve/main/", "/")
        span = self.headers.get("Range")
        file = Path(self.translate_path(self.path))
        if not (self.ranges and span and file.is_file()):
            super().do_GET()
            return
        start, _, stop = span.removeprefix("bytes=").partition("-")
        content = file.read_bytes()
        end = int(stop) + 1 if stop else len(content)
        first = 0 if self.lie == "elsewhere" else int(start)
        part = content[first : first + end - int(start) - (3 if self.lie == "short" else 0)]
        start = str(first)
        self.send_response(206)
        self.send_header("Content-Length", str(len(part)))
        total = len(content)
        self.send_header("Content-Range", f"bytes {start}-{int(start) + len(part) - 1}/{total}")
        self.send_header("ETag", f'"{total}"')
        self.end_headers()
        self.wfile.write(part)

    def do_HEAD(self) -> None:
        if self.hub:
            self.path = unquote(self.path).replace("/datasets/team/set/resolve/main/", "/")
        super().do_HEAD()

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        paths = parse_qs(self.rfile.read(length).decode())["paths"]
        found = [
            self.entry(Path(self.directory, p)) for p in paths if Path(self.directory, p).exists()
        ]
        self.send_json(found)

    def answer_api(self, path: str) -> None:
        if "/tree/main" in path:
            folder = Path(self.directory, path.partition("/tree/main")[2].lstrip("/"))
            self.send_json(
                [self.entry(p) for p in sorted(folder.iterdir())] if folder.is_dir() else None
            )
        else:
            self.send_json({"id": "team/set", "sha": "c" * 40, "siblings": [], "private": False})

    def entry(self, path: Path) -> dict[str, object]:
        name = path.relative_to(self.directory).as_posix()
        if path.is_dir():
            return {"type": "directory", "oid": "d" * 40, "size": 0, "path": name}
        return {"type": "file", "oid": "f" * 40, "size": path.stat().st_size, "path": name}

    def send_json(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(404 if value is None else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--ranges", action="store_true")
    parser.add_argument("--hub", action="store_true")
    parser.add_argument("--cert")
    parser.add_argument("--lie", default="")
    options = parser.parse_args()
    Files.ranges, Files.hub = options.ranges or options.hub, options.hub
    Files.lie = options.lie
    handler = partial(Files, directory=options.folder)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    if options.cert:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(options.cert)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    print(server.server_port, flush=True)
    sys.stdout.close()
    server.serve_forever()


if __name__ == "__main__":
    main()
