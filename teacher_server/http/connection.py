"""A client's connection: uvicorn's protocol, with a limit on all that a client may hold open.

uvicorn limits how long a connection is idle, and nothing else. Here

- every state has a time limit: before a head, in it, between requests, in a body that nobody reads
  any more, and while a reply is not read;
- heads, trailers and the framing of chunks are bounded, and trailers are dropped (RFC 9110, 6.5.1);
- a request that comes before its predecessor is answered waits unread;
- where there are too many connections, the one that has waited longest makes room.

`benchmarks/http_engines.py` compares it with other engines.
"""

import asyncio
import json
import re
import resource
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

IDLE_S = 75.0  # as nginx; clients keep theirs for a minute
HEAD_S = 20.0  # for the head of a request
STALLED_S = 60.0  # for a client to read what is written to it
LINGER_S = 10.0  # for the rest of a body whose request is answered, and for closing
HALF_CLOSED_S = 1.0  # for the answer to a client that may only have ended its own side

MAX_CONNECTIONS = 4096
MAX_HEAD_BYTES = 2**16  # also of trailers
FRAMING = 6  # bytes of chunk headers that a byte of a body may bring
PIECE = 2**16
METHOD = re.compile(rb"[A-Z]{1,24}( |\Z)")
BARE_LF = re.compile(rb"(?<!\r)\n")
UPGRADE = re.compile(rb"\r\nupgrade[ \t]*:[^\r\n]*", re.IGNORECASE)
END_OF_HEAD = b"\r\n\r\n"


def most_connections() -> int:
    """Half of the file numbers, whose soft limit is raised for it; the rest is for files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * MAX_CONNECTIONS
    if 0 <= soft < wanted:  # negative where there is no limit
        soft = wanted if hard < 0 else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return MAX_CONNECTIONS if soft < 0 else min(MAX_CONNECTIONS, soft // 2)


class Connections:
    """Those of one server; and how to hang up on those that wait for their client, the
    longest-waiting first.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._open: set[object] = set()
        self._waiting: OrderedDict[object, Callable[[], object]] = OrderedDict()

    def opened(self, connection: object, hang_up: Callable[[], object]) -> None:
        """One more, which waits; where there are too many, another makes room."""
        self._open.add(connection)
        self.waits(connection, hang_up)
        if len(self._open) > self.most:
            self.make_room()

    def closed(self, connection: object) -> None:
        """One less."""
        self._open.discard(connection)
        self._waiting.pop(connection, None)

    def waits(self, connection: object, hang_up: Callable[[], object]) -> None:
        """It waits for its client, from now on where it did not before."""
        self._waiting.setdefault(connection, hang_up)

    def waits_not(self, connection: object) -> None:
        """It is being answered."""
        self._waiting.pop(connection, None)

    def make_room(self) -> None:
        """Hang up on the one that has waited longest."""
        if self._waiting:
            self._waiting.popitem(last=False)[1]()


class Malformed(Exception):
    """What a client sent is answered 400."""


class Connection(HttpToolsProtocol):
    """others: of the same server. What is no HTTP is answered in JSON."""

    def __init__(self, *args: Any, others: Connections, **options: Any) -> None:
        super().__init__(*args, **options)
        self.others = others
        self._timer: asyncio.TimerHandle | None = None
        self._head: bytearray | None = None  # what came of it; None between requests
        self._in_head = False
        self._complete = True  # the message that came last
        self._left: int | None = 0  # bytes of its body to come; None where it comes in chunks
        self._framing = 0  # bytes of a body in chunks that are none of its content
        self._tail = b""  # the last ones, in which its end may begin
        self._backlog = b""  # read, but not looked at before the reply is sent
        self._half_closed = False

    # -- whose turn it is -------------------------------------------------------------------------

    @property
    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _wait_for_client(self, seconds: float) -> None:
        self._cancel_timer()
        self._timer = self.loop.call_later(seconds, self.transport.abort)
        self.others.waits(self, self.transport.abort)

    def _wait_for_application(self) -> None:
        """It looks after its own time."""
        if self.flow.write_paused:
            self._wait_for_client(STALLED_S)
        else:
            self._cancel_timer()
            self.others.waits_not(self)

    def _cancel_timer(self) -> None:
        if self._timer:
            self._timer.cancel()

    def _go_on(self) -> None:
        """The reply is sent: whatever comes next."""
        if self.transport.is_closing() or not self._complete:
            self._wait_for_client(LINGER_S)
        elif self._backlog:
            backlog, self._backlog = self._backlog, b""
            self.transport.resume_reading()
            self._take(memoryview(backlog))
        elif self._half_closed:
            self.transport.close()
        else:
            self._wait_for_client(IDLE_S)

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.others.opened(self, self.transport.abort)
        self._wait_for_client(HEAD_S)

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_timer()
        self.others.closed(self)
        self._backlog = b""
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._wait_for_client(STALLED_S)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._answering:
            self._wait_for_application()

    def eof_received(self) -> bool:  # type: ignore[override]
        """Whether the connection stays open: for an answer that is on its way.

        A client that has gone altogether looks the same, so it may not take long.
        """
        self._half_closed = self._answering and self._complete and self.scheme == "http"
        if self._half_closed:
            self._wait_for_client(HALF_CLOSED_S)
        return self._half_closed

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._unset_keepalive_if_required()  # the timer is here
        self._go_on()

    # -- what comes in ----------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self._backlog:
            self._backlog += data
            self._read_no_further()
        elif not self.transport.is_closing():
            self._take(memoryview(data))

    def _read_no_further(self) -> None:
        if self.transport.is_reading():
            self.transport.pause_reading()

    def _take(self, data: memoryview) -> None:
        """Look at what came, up to a request that comes too early."""
        try:
            while data:
                if not self._complete:
                    data = self._take_body(data)
                elif self._answering:
                    self._backlog = bytes(data)
                    self._read_no_further()
                    break
                else:
                    data = self._take_head(data)
        except (Malformed, httptools.HttpParserError) as error:
            why = error.__context__ or error  # of a callback
            self.send_400_response(str(why) if isinstance(why, Malformed) else "not HTTP/1.1")

    def _take_head(self, data: memoryview) -> memoryview:
        if self._head is None:
            self._wait_for_client(HEAD_S)
            self._head = bytearray()
        head, before = self._head, len(self._head)  # of which nothing is looked at twice
        looked_at = data[:PIECE]
        head += looked_at if head else bytes(looked_at).lstrip(b"\r\n")
        end = head.find(END_OF_HEAD, max(0, before - len(END_OF_HEAD)))
        known = len(head) if end < 0 else end
        if known > MAX_HEAD_BYTES:
            raise Malformed(f"head of more than {MAX_HEAD_BYTES} bytes found, expected less")
        if (head and not METHOD.match(head)) or BARE_LF.search(head, before, known):
            raise Malformed("not HTTP/1.1")
        if end < 0:
            return data[len(looked_at) :]
        end += len(END_OF_HEAD)
        self._head, self._in_head, self._complete = None, True, False
        self.parser.feed_data(UPGRADE.sub(b"", head[:end]))  # an offer that need not be taken
        if self._in_head:
            raise Malformed("not HTTP/1.1")
        return data[len(looked_at) - (len(head) - end) :]

    def _take_body(self, data: memoryview) -> memoryview:
        if self._left is None:
            looked_at = self._tail + bytes(data[:PIECE])
            end = looked_at.find(END_OF_HEAD)
            if end >= 0:  # of the message, unless it is content
                looked_at = looked_at[: end + len(END_OF_HEAD)]
            part = data[: len(looked_at) - len(self._tail)]
            self._tail = looked_at[1 - len(END_OF_HEAD) :]
            self._framing += len(part)
        else:
            part = data[: self._left]
            self._left -= len(part)
        if not part:  # the parser awaits more of it than its length
            raise Malformed("not HTTP/1.1")
        self.parser.feed_data(part)
        if self._framing > MAX_HEAD_BYTES:
            raise Malformed(f"{self._framing} bytes around chunks found, expected less")
        return data[len(part) :]

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        count = Counter(name for name, _ in self.headers)
        if count[b"host"] > 1 or (not count[b"host"] and self.parser.get_http_version() == "1.1"):
            raise Malformed(f"{count[b'host']} Host headers found, expected one")
        coding = [
            value.strip().lower() for name, value in self.headers if name == b"transfer-encoding"
        ]
        if coding not in ([], [b"chunked"]) or self.parser.get_http_version() not in ("1.0", "1.1"):
            raise Malformed("not HTTP/1.1 with a body as it is, or in chunks")
        if self.parser.should_upgrade():
            raise Malformed("CONNECT found, expected a request of this server")
        lengths = [int(value) for name, value in self.headers if name == b"content-length"]
        self._left = None if coding else sum(lengths)
        self._framing, self._tail = 0, b""
        super().on_headers_complete()
        self._wait_for_application()

    def on_body(self, body: bytes) -> None:
        if self._left is None:
            self._framing -= (1 + FRAMING) * len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._complete = True
        if not self._answering:  # the rest of a body that was not read
            self._wait_for_client(IDLE_S)

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
        self._wait_for_client(LINGER_S)
