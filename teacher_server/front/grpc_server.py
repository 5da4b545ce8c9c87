"""The Open Inference Protocol over gRPC: the same service, queue and admission as over HTTP.

What is streamed is left out. Statuses are those of HTTP by their gRPC names, and `etag`, `if-match`
and `x-request-id` are metadata.

gRPC limits the length of a message, and neither how long it may take nor how many come at once. So
every method is one with a stream of requests, to which nobody but the method itself says when its
message is wanted: not before the key is known, few at a time, and within a limit of time. What
anybody may ask needs no message.
"""

import asyncio
import json
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from typing import Any, TypeVar

import grpc
import numpy as np

from distill.errors import ConfigError
from distill.teacher_server.front.app import require_ready
from distill.teacher_server.front.description import (
    MODEL,
    SERVER_METADATA,
    VERSION,
    model_config,
    model_metadata,
    model_statistics,
    require_known,
    timing_headers,
)
from distill.teacher_server.front.request_state import (
    RequestState,
    etag,
    expects_another,
    request_id_of,
)
from distill.teacher_server.http.connection import HEAD_S, IDLE_S, STALLED_S, most_connections
from distill.teacher_server.http.keys import ApiKeys
from distill.teacher_server.http.listener import Address, Certificate
from distill.teacher_server.serve.queue import InferResult
from distill.teacher_server.serve.service import Service
from distill.wire.framing import (
    BYTES,
    DTYPES,
    MAX_DIMENSIONS,
    MAX_ID,
    MAX_PARTS,
    RequestHead,
    Tensor,
    datatype,
    each_input,
    from_raw,
    parse_head,
    raw_bytes,
)
from distill.wire.messages import SERVICE, message, request_from
from distill.wire.refusal import CLIENT_GONE, Refused, malformed, too_late, too_slow

Made = TypeVar("Made")
CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    404: grpc.StatusCode.NOT_FOUND,
    408: grpc.StatusCode.ABORTED,
    412: grpc.StatusCode.FAILED_PRECONDITION,
    413: grpc.StatusCode.OUT_OF_RANGE,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
CONTENTS = {
    "BOOL": "bool_contents",
    **{f"INT{bits}": "int_contents" for bits in (8, 16, 32)},
    "INT64": "int64_contents",
    **{f"UINT{bits}": "uint_contents" for bits in (8, 16, 32)},
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    BYTES: "bytes_contents",
}
FRAMING_BYTES = 2**16  # of a message, around its tensors
LARGE_BYTES = 2**16  # of a message that is parsed beside the event loop

MAX_CONNECTIONS, MAX_STREAMS = 512, 64  # streams of each
MAX_AGE_S = 300.0  # of a connection; clients make another
RECEIVE_S, HURRIED_S = 20.0, 5.0  # for a message; where others wait


def make_grpc_server(
    service: Service,
    keys: ApiKeys | None,
    address: Address,
    certificate: Callable[[], Certificate | None] = lambda: None,
) -> "tuple[grpc.aio.Server, int]":
    """A server that is bound to its port and waits to be started in a running loop, and that port.

    certificate: that of now, where there is one.

    Raises:
        ConfigError: the address is taken.
    """
    options = service.options
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", options.max_body_bytes + FRAMING_BYTES),
            ("grpc.max_send_message_length", -1),
            # A stream whose client does not read keeps its reply, until its connection is too old.
            ("grpc.max_concurrent_streams", MAX_STREAMS),
            (
                "grpc.max_allowed_incoming_connections",
                min(MAX_CONNECTIONS, most_connections() // 4),
            ),
            ("grpc.server_handshake_timeout_ms", int(1000 * HEAD_S)),
            ("grpc.max_connection_idle_ms", int(1000 * IDLE_S)),
            ("grpc.max_connection_age_ms", int(1000 * MAX_AGE_S)),
            ("grpc.max_connection_age_grace_ms", int(1000 * options.deadline_s)),
            ("grpc.so_reuseport", 0),
            ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ],
    )
    server.add_generic_rpc_handlers((_Methods(service, keys),))
    place = f"{f'[{address.host}]' if ':' in address.host else address.host}:{address.port}"
    try:
        if certificate():
            port = server.add_secure_port(place, _credentials(certificate))
        else:
            port = server.add_insecure_port(place)
    except (RuntimeError, OSError) as error:
        raise ConfigError(
            f"{place}: gRPC cannot listen there, expected a free port; pass another --grpc-port"
        ) from error
    return server, port


def _credentials(certificate: Callable[[], Certificate | None]) -> Any:
    """Show the certificate of now, which is asked for with each connection."""

    def configured() -> Any:
        now = certificate()
        assert now
        return grpc.ssl_server_certificate_configuration([(now.private_key, now.chain)])

    return grpc.dynamic_ssl_server_credentials(configured(), configured)


class _Inbox:
    """Messages that are being received: few at a time, as each may be the longest.

    One client leaves room for one of another, and what takes long is cut off where others wait.
    """

    def __init__(self, at_once: int) -> None:
        self._room = asyncio.Semaphore(at_once)
        self._of_client = defaultdict[str, asyncio.Semaphore](
            lambda: asyncio.Semaphore(at_once - 1)
        )
        self._inside = 0
        self._since: dict[asyncio.Timeout, float] = {}  # of those that are being received

    async def receive(self, client: str, context: Any) -> bytes:
        """The first message.

        Raises:
            Refused: 400, there is none; 408, it took too long.
        """
        place = self._of_client[client]
        if place.locked() or self._room.locked():
            for limit, began in self._since.items():
                if not limit.expired():
                    limit.reschedule(began + HURRIED_S)
        self._inside += 1
        try:
            async with place, self._room:
                return await self._first(context)
        except TimeoutError:
            raise too_slow() from None
        finally:
            self._inside -= 1

    async def _first(self, context: Any) -> bytes:
        others_wait = self._inside > len(self._since) + 1
        async with asyncio.timeout(HURRIED_S if others_wait else RECEIVE_S) as limit:
            self._since[limit] = asyncio.get_running_loop().time()
            try:
                request = await context.read()
            finally:
                del self._since[limit]
        if request is grpc.aio.EOF:
            raise malformed("no message found, expected one")
        return bytes(request)


class _Methods(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Handlers by method name."""

    def __init__(self, service: Service, keys: ApiKeys | None) -> None:
        self.live, self.keys, self._etag = service, keys, etag(service)
        options = service.options
        self._inbox = _Inbox(max(2, options.budgets.bytes // options.max_body_bytes))
        by_name = {
            "ServerLive": self._for_all("ServerLive", self.server_live),
            "ServerReady": self._for_all("ServerReady", self.server_ready),
            "ModelReady": self._plain("ModelReady", self.model_ready),
            "ServerMetadata": self._plain("ServerMetadata", self.server_metadata),
            "ModelMetadata": self._plain("ModelMetadata", self.model_metadata),
            "ModelConfig": self._plain("ModelConfig", self.model_config),
            "ModelStatistics": self._plain("ModelStatistics", self.model_statistics),
            "ModelInfer": self._handler("ModelInfer", self.model_infer),
        }
        self._handlers = {f"/{SERVICE}/{name}": handler for name, handler in by_name.items()}

    def service(self, handler_call_details: Any) -> Any:
        """See `grpc.GenericRpcHandler`."""
        return self._handlers.get(handler_call_details.method)

    def _for_all(self, name: str, answer: Callable[[], dict[str, Any]]) -> Any:
        make = message(f"{name}Response")

        async def handle(requests: Any, context: Any) -> bytes:
            reply: bytes = make(**answer()).SerializeToString()
            return reply

        return grpc.stream_unary_rpc_method_handler(handle)

    def _plain(self, name: str, answer: Callable[[Any], dict[str, Any]]) -> Any:
        make = message(f"{name}Response")

        async def answered(request: Any, state: RequestState, held: ExitStack) -> Any:
            return make(**answer(request)), {}

        return self._handler(name, answered)

    def _handler(
        self, name: str, answer: Callable[[Any, RequestState, ExitStack], Awaitable[Any]]
    ) -> Any:
        """answer: of a message; what it puts on the stack is held until the reply is sent."""
        kind = message(f"{name}Request")

        async def handle(requests: Any, context: Any) -> None:
            metadata = dict(context.invocation_metadata() or ())
            state = RequestState(request_id_of(metadata.get("x-request-id", "")))
            trailing = (("x-request-id", state.request_id), ("etag", self._etag))
            try:
                self._admit(name, state, metadata)
                raw = await self._inbox.receive(state.client, context)
                state.body_bytes = len(raw)
                request = await self._beside(len(raw), request_from, kind, raw)
                del raw
                with ExitStack() as held:
                    reply, more = await answer(request, state, held)
                    context.set_trailing_metadata((*trailing, *more.items()))
                    state.status = 200
                    async with asyncio.timeout(STALLED_S):
                        await context.write(reply.SerializeToString())
            except Refused as error:
                state.status = error.status
                self.live.metrics.rejected.labels(error.reason).inc()
                wait = error.retry_after_s
                await context.abort(
                    CODES.get(error.status, grpc.StatusCode.INTERNAL),
                    error.text,
                    (("retry-after", str(wait)),) if wait else (),
                )
            except TimeoutError:
                state.status = CLIENT_GONE
                await context.abort(grpc.StatusCode.ABORTED, "nobody read the reply")
            except asyncio.CancelledError:
                state.status = CLIENT_GONE
                self.live.metrics.cancelled.inc()
                raise
            except Exception as error:
                state.status = 500
                state.log_bug(self.live, error)
                text = "internal server error; see the server's log"
                await context.abort(grpc.StatusCode.INTERNAL, text)
            finally:
                state.log(
                    self.live,
                    method="gRPC",
                    route=f"grpc {name}",
                    path=name,
                    address=context.peer(),
                )

        return grpc.stream_stream_rpc_method_handler(handle)

    def _admit(self, name: str, state: RequestState, metadata: dict[str, str]) -> None:
        if self.keys:
            owner = self.keys.owner(metadata.get("authorization", ""))
            if owner is None:
                text = "no valid API key found, expected metadata authorization: Bearer KEY"
                raise Refused(401, text, "key")
            state.client = owner
        wanted = metadata.get("if-match", "")
        if expects_another(wanted, self._etag):
            text = f"teacher {self._etag} found, if-match expects {wanted[:80]}"
            raise Refused(412, text, "changed")
        if name == "ModelInfer":
            require_ready(self.live)
            self.live.admission.require_room()

    # -- methods ----------------------------------------------------------------------------------

    def server_live(self) -> dict[str, Any]:
        return {"live": not self.live.is_dead}

    def server_ready(self) -> dict[str, Any]:
        return {"ready": not self.live.why_not_ready()}

    def model_ready(self, request: Any) -> dict[str, Any]:
        require_known(request.name, request.version)
        return {"ready": not self.live.why_not_ready()}

    def server_metadata(self, request: Any) -> dict[str, Any]:
        return SERVER_METADATA

    def model_metadata(self, request: Any) -> dict[str, Any]:
        require_known(request.name, request.version)
        metadata = model_metadata(self.live)
        del metadata["parameters"]  # the protocol has no room for them here
        return metadata

    def model_config(self, request: Any) -> dict[str, Any]:
        require_known(request.name, request.version)
        return {"config": model_config(self.live)}

    def model_statistics(self, request: Any) -> dict[str, Any]:
        require_known(request.name or MODEL, request.version)
        return model_statistics(self.live.metrics)

    async def model_infer(
        self, request: Any, state: RequestState, held: ExitStack
    ) -> tuple[Any, dict[str, str]]:
        """Soft labels for images, JPEGs or samples."""
        require_known(request.model_name, request.model_version)
        started, gone = time.monotonic(), False
        try:
            permit = held.enter_context(self.live.admission.admit(state.client, state.body_bytes))
            head = head_of(request)
            permit.reserve("images", self.live.count_images(head) - 1)
            state.images = permit.held["images"]
            infer_request = self.live.request_of(
                head,
                await self._beside(state.body_bytes, tensors_of, request, head),
                client=state.client,
                started=started,
                useless=lambda: gone,
            )
            async with asyncio.timeout(infer_request.deadline - started):
                result = await self.live.infer(infer_request)
            self.live.metrics.answered(time.monotonic() - started)
            reply = reply_of(request.id, result, infer_request.outputs)
            permit.reserve("bytes", reply.ByteSize())
            return reply, timing_headers(result.timing)
        except TimeoutError as error:
            raise too_late(f"no answer within {time.monotonic() - started:.1f} s") from error
        finally:
            gone = True

    async def _beside(self, size: int, work: Callable[..., Made], *given: Any) -> Made:
        """Beside the event loop, where the message is large."""
        if size <= LARGE_BYTES:
            return work(*given)
        pool = self.live.decoder.pool
        return await asyncio.get_running_loop().run_in_executor(pool, work, *given)


def head_of(request: Any) -> RequestHead:
    """The head as it would come over HTTP.

    Raises:
        Refused: 400, it has too many inputs or outputs, or parameters of other types.
    """
    for name, parts in (("inputs", request.inputs), ("outputs", request.outputs)):
        if len(parts) > MAX_PARTS:
            raise malformed(f"{len(parts)} {name} found, expected at most {MAX_PARTS}")
    if len(request.id) > MAX_ID:
        raise malformed(f"id of {len(request.id)} characters found, expected at most {MAX_ID}")
    if "expect" in request.parameters and len(request.parameters["expect"].string_param) > MAX_ID:
        raise malformed("a long expect found, expected a digest")
    for given in request.inputs:
        if len(given.shape) > MAX_DIMENSIONS:
            raise malformed(f"a shape of {len(given.shape)} dimensions found, expected a few")
    raw = list(request.raw_input_contents)
    if raw and len(raw) != len(request.inputs):
        raise malformed(
            f"raw_input_contents: {len(raw)} found, expected one for each of the "
            f"{len(request.inputs)} inputs, or none"
        )
    document = {
        "id": request.id or None,
        "parameters": _parameters(request, "timeout", "expect"),
        "inputs": [
            {"name": given.name, "datatype": given.datatype, "shape": list(given.shape)}
            for given in request.inputs
        ],
        "outputs": [
            {
                "name": output.name,
                "parameters": {"binary_data": True, **_parameters(output, "classification")},
            }
            for output in request.outputs
        ],
    }
    return parse_head(json.dumps(document).encode())


def _parameters(given: Any, *names: str) -> dict[str, Any]:
    """Those that are there, None where they hold nothing."""
    there = {name: given.parameters[name] for name in names if name in given.parameters}
    chosen = {name: each.WhichOneof("parameter_choice") for name, each in there.items()}
    return {name: kind and getattr(there[name], kind) for name, kind in chosen.items()}


def tensors_of(request: Any, head: RequestHead) -> dict[str, Tensor]:
    """The inputs by name.

    Raises:
        Refused: names the input that is wrong, and the element.
    """
    tensors: dict[str, Tensor] = {}
    raw = request.raw_input_contents
    for i, (where, given) in enumerate(each_input(head)):
        sent = request.inputs[i]
        content = memoryview(raw[i]) if raw else _content(given.datatype, sent.contents, where)
        tensors[given.name] = from_raw(given, content, where)
    return tensors


def _content(kind: str, contents: Any, where: str) -> memoryview:
    """Numbers of a message as raw bytes."""
    field = CONTENTS.get(kind)
    if field is None:
        raise malformed(f"{where}: {kind[:40]!r} in contents, expected it raw")
    values = getattr(contents, field)
    if kind == BYTES:
        return memoryview(raw_bytes(list(values)))
    dtype = np.dtype(DTYPES[kind])
    if dtype.kind in "iu" and len(values):
        least, most = np.iinfo(dtype).min, np.iinfo(dtype).max
        if min(values) < least or max(values) > most:
            raise malformed(f"{where}: numbers beyond {kind} found")
    return memoryview(np.array(values, dtype).tobytes())


def reply_of(request_id: str, result: InferResult, outputs: Any) -> Any:
    """The answers, all of them raw."""
    arrays = result.tensors(outputs)
    reply = message("ModelInferResponse")(
        model_name=MODEL,
        model_version=VERSION,
        id=request_id,
        outputs=[
            {"name": name, "datatype": datatype(array.dtype), "shape": array.shape}
            for name, array in arrays.items()
        ],
        raw_output_contents=[bytes(raw_bytes(array)) for array in arrays.values()],
    )
    if result.bad:
        reasons = {str(i): bad.reason for i, bad in result.bad.items()}
        reply.parameters["bad"].string_param = json.dumps(reasons, ensure_ascii=False)
    return reply
