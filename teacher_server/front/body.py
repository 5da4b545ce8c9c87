"""Reading a request's body: its head first, so that a request that is refused is not read whole.

Bytes are counted as they arrive and as they are inflated; nothing is kept beyond the caps.
"""

import asyncio
import zlib
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor

from starlette.datastructures import Headers
from starlette.requests import Request

from distill.teacher_server.serve.admission import Permit
from distill.wire.framing import (
    BYTES,
    HEAD_LENGTH,
    MAX_HEAD_BYTES,
    InputHead,
    RequestHead,
    Tensor,
    parse_head,
    tensors,
)
from distill.wire.refusal import Refused, malformed, too_large

INFLATED_AT_ONCE = 2**20
MAX_JSON_BYTES = 4 * 2**20  # parsing holds up the whole process
LARGE_JSON = 2**16  # is parsed beside the event loop
JSON_SWELLS = 32  # bytes of objects that a byte of JSON may become
GZIP_OR_ZLIB = zlib.MAX_WBITS | 32


def announced_bytes(headers: Headers) -> int | None:
    """Content-Length; None of a body that comes in chunks.

    Raises:
        Refused: it is no number.
    """
    text = headers.get("content-length")
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < 19):
        raise malformed(f"Content-Length: {text[:40]!r} found, expected a number of bytes")
    return int(text)


async def read_request(
    request: Request,
    permit: Permit,
    *,
    max_bytes: int,
    count_images: Callable[[RequestHead], int],
    pool: Executor,
    one_jpeg: bool = False,
) -> tuple[RequestHead, dict[str, Tensor]]:
    """The head and the inputs. permit: holds the announced bytes and one image; the rest is added.

    count_images: how many images a head speaks of; pool: where large JSON is parsed. one_jpeg: the
    body is a file, whatever its headers say.

    Raises:
        Refused: the body is malformed, too large, in an unknown encoding, or over a budget.
        ClientDisconnect: the client went away.
    """
    announced = announced_bytes(request.headers)
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    head_bytes = 0 if one_jpeg else _head_bytes(request.headers)
    if head_bytes is None:
        max_bytes = min(max_bytes, MAX_JSON_BYTES)
    reserved = announced or 0
    body, filled = bytearray(reserved), 0
    head: RequestHead | None = None
    async for chunk in _inflated(request.stream(), encoding):
        filled += len(chunk)
        permit.arrived = filled
        if filled > max_bytes:
            raise too_large(
                f"body of more than {max_bytes} bytes; send less"
                + (", or raw tensors" if head_bytes is None else "")
            )
        if filled > reserved:
            permit.reserve("bytes", filled - reserved)
            reserved = filled
            body[filled - len(chunk) :] = chunk
        else:
            body[filled - len(chunk) : filled] = chunk
        if head is None and head_bytes and filled >= head_bytes:
            head = parse_head(memoryview(body)[:head_bytes])
            permit.reserve("images", count_images(head) - 1)
    with memoryview(body)[:filled].toreadonly() as view:
        if head_bytes == 0:
            return _one_jpeg(memoryview(bytes(view)))
        if head_bytes is None:
            run = asyncio.get_running_loop().run_in_executor
            large = filled > LARGE_JSON
            if large:
                permit.reserve("bytes", (JSON_SWELLS - 1) * filled)
            head = await run(pool, parse_head, bytes(view)) if large else parse_head(view)
            permit.reserve("images", count_images(head) - 1)
            empty = memoryview(b"")
            return head, await run(pool, tensors, head, empty) if large else tensors(head, empty)
    if head is None:
        raise malformed(f"{HEAD_LENGTH}: {head_bytes}, but the body has {filled} bytes")
    return head, tensors(head, memoryview(body)[head_bytes:filled])


def _head_bytes(headers: Headers) -> int | None:
    text = headers.get(HEAD_LENGTH)
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise malformed(f"{HEAD_LENGTH}: {text[:40]!r} found, expected a number of bytes")
    if int(text) > MAX_HEAD_BYTES:
        raise too_large(f"{HEAD_LENGTH}: {text}, expected at most {MAX_HEAD_BYTES}")
    return int(text)


def _one_jpeg(raw: memoryview) -> tuple[RequestHead, dict[str, Tensor]]:
    """A body without a head: one JPEG, as `curl --data-binary @cat.jpg` sends it."""
    head = RequestHead(inputs=[InputHead(name="jpeg", datatype=BYTES, shape=[1], data=[])])
    return head, {"jpeg": [raw]}


async def _inflated(chunks: AsyncIterator[bytes], encoding: str) -> AsyncIterator[bytes]:
    if encoding in ("identity", ""):
        async for chunk in chunks:
            yield chunk
        return
    if encoding not in ("gzip", "deflate"):
        raise Refused(
            415,
            f"Content-Encoding {encoding[:40]!r} found, expected gzip, deflate or none",
            "encoding",
        )
    inflater = zlib.decompressobj(GZIP_OR_ZLIB)
    try:
        async for chunk in chunks:
            while chunk:
                yield inflater.decompress(chunk, INFLATED_AT_ONCE)
                await asyncio.sleep(0)  # a bomb must not hold up the others
                chunk = inflater.unconsumed_tail
                if inflater.eof:
                    chunk = b""
            if inflater.unused_data:
                raise malformed(f"bytes after the end of the {encoding} body, expected none")
    except zlib.error as error:
        raise malformed(f"body is not {encoding} ({error})") from error
    if not inflater.eof:
        raise malformed(f"the {encoding} body ends early")
