"""The service on the web: routes, headers and errors of the Open Inference Protocol."""

import asyncio
import json
import time
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import ExitStack
from importlib.metadata import version
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, FastAPI, Path, Query
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope, Send

from distill.errors import DISTRIBUTION
from distill.teacher_server.front.body import announced_bytes, read_request
from distill.teacher_server.front.description import (
    MODEL,
    SERVER_METADATA,
    VERSION,
    model_config,
    model_metadata,
    model_statistics,
    named,
    require_known,
    timing_headers,
)
from distill.teacher_server.front.middleware import PROBES, STATE, Middleware
from distill.teacher_server.front.pages import site_of
from distill.teacher_server.http.access import FOR_PROGRAMS
from distill.teacher_server.http.keys import ApiKeys
from distill.teacher_server.pages.frame import add_pages, error_page, wants_page
from distill.teacher_server.pages.routes import pages_of
from distill.teacher_server.pages.site import Student
from distill.teacher_server.serve.queue import InferResult
from distill.teacher_server.serve.service import DEFAULT_OUTPUTS, Service
from distill.wire.framing import (
    HEAD_LENGTH,
    RequestHead,
    encode_body,
    raw_outputs,
)
from distill.wire.refusal import CLIENT_GONE, Refused, too_large, too_late, unavailable

ModelName = Annotated[str, Path(max_length=100)]
Top = Annotated[int, Query(ge=1, le=100, description="Classes per hierarchy.")]
ModelVersion = Annotated[str, Path(max_length=100)]


class ErrorBody(BaseModel):
    """Every status but 200."""

    error: str


class Described(BaseModel):
    """A tensor in the metadata or in a reply."""

    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, Any] | None = None
    data: list[Any] | None = None


class ServerMetadata(BaseModel):
    """`GET /v2`."""

    name: str
    version: str
    extensions: list[str]


class ModelMetadata(BaseModel):
    """`GET /v2/models/{model}`. parameters: the teacher, its hierarchy, the encoding, the views."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[Described]
    outputs: list[Described]
    parameters: dict[str, Any]


class InferReply(BaseModel):
    """A reply. parameters: `bad`, why elements have no answer, by their index."""

    model_name: str
    model_version: str
    id: str | None = None
    parameters: dict[str, Any] | None = None
    outputs: list[Described]


class Live(BaseModel):
    """`GET /v2/health/live`."""

    live: bool


class Ready(BaseModel):
    """`GET /v2/health/ready`."""

    ready: bool


class ModelReady(Ready):
    """`GET /v2/models/{model}/ready`."""

    name: str


class NamedClass(BaseModel):
    """A class of an answer for people."""

    synset: str
    name: str
    prob: float


class NamedAnswer(BaseModel):
    """One hierarchy's likeliest classes. confidence: the probability mass it has of all."""

    hierarchy: int
    confidence: float
    classes: list[NamedClass]


_REFUSED = {
    "description": "Bad Request",
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorBody"}}},
}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Describe error responses in the OpenAPI document."""
    return {status: {"model": ErrorBody} for status in (*statuses, 500)}


INFER_STATUSES = (400, 401, 403, 404, 405, 408, 412, 413, 415, 429, 503, 504)
INFER_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": {"$ref": "#/components/schemas/RequestHead"}},
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    },
}
CLASSIFY: dict[str, Any] = {
    "responses": errors(*INFER_STATUSES),
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "content": {"image/jpeg": {"schema": {"type": "string", "format": "binary"}}},
        }
    },
}
INFER_OK: dict[str, Any] = {
    "headers": {
        "x-queue-ms": {
            "schema": {"type": "number"},
            "description": "Time until the batch was formed.",
        },
        "x-infer-ms": {
            "schema": {"type": "number"},
            "description": "Forward pass of the batch, copies included.",
        },
        "x-batch-size": {
            "schema": {"type": "integer"},
            "description": "Images in the batch, padding included.",
        },
    },
    "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
}


def make_app(
    service: Service,
    keys: ApiKeys | None = None,
    student: Student | None = None,
    root_path: str = "",
) -> Middleware:
    """keys: None lets everybody in that reaches the socket by a loopback name.

    student: to stand beside the teacher on the pages. root_path: that a proxy puts before every
    path, whether or not it takes it away again.
    """
    api = FastAPI(
        title="distill teacher server",
        version=version(DISTRIBUTION),
        description="Open Inference Protocol v2: soft labels per WordNet hierarchy.",
        docs_url=None,  # its page would load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        servers=[{"url": root_path}] if root_path else None,
        responses=errors(401, 405, 412),
    )
    site = site_of(service, student, root_path)
    service.closers.append(site.close)
    metadata, configuration = model_metadata(service), model_config(service)
    hierarchy = service.hierarchy.to_json()

    @api.get("/v2", response_model=ServerMetadata)
    async def server() -> JSONResponse:
        return JSONResponse(SERVER_METADATA)

    @api.get("/v2/health/live", response_model=Live, responses=errors(503))
    async def live() -> JSONResponse:
        """200 while the process is of use; a supervisor restarts it on 503."""
        if service.is_dead:
            raise unavailable(service.failure())
        return JSONResponse({"live": True})

    @api.get("/v2/health/ready", response_model=Ready, responses=errors(503))
    async def ready() -> JSONResponse:
        """200 while requests are answered."""
        require_ready(service)
        return JSONResponse({"ready": True})

    async def model_ready() -> JSONResponse:
        """200 while requests are answered."""
        require_ready(service)
        return JSONResponse({"name": MODEL, "ready": True})

    for path, probe in (("/v2/health/live", live), ("/v2/health/ready", ready)):
        api.head(path, include_in_schema=False)(probe)

    async def config() -> JSONResponse:
        """The model's configuration, as Triton's tools ask for it."""
        return JSONResponse(configuration)

    @api.get("/v2/models/stats", response_model=dict[str, Any])
    async def statistics() -> JSONResponse:
        """Counts and times since the start, as Triton has them."""
        return JSONResponse(model_statistics(service.metrics))

    @api.post("/classify", response_model=list[NamedAnswer], **CLASSIFY)
    async def classify(request: Request, top: Top = 3) -> Response:
        """The likeliest classes of a JPEG, by name: the body is the file."""
        return await infer_once(service, request, top=top)

    async def model_about() -> JSONResponse:
        """Inputs, outputs, and whose answers these are."""
        return JSONResponse(metadata)

    async def model_hierarchy() -> JSONResponse:
        """The whole hierarchy: classes, names and parents, in the order of the outputs."""
        return JSONResponse(hierarchy)

    async def model_replay() -> JSONResponse:
        """Proofs of the views that this server draws, for a student to draw them again."""
        if not service.samples:
            raise Refused(404, "no samples found here, so no views are drawn", "samples")
        return JSONResponse(await asyncio.to_thread(service.samples.replay))

    async def infer(request: Request) -> Response:
        """Soft labels for images, JPEGs or samples, as JSON or as raw tensors."""
        return await infer_once(service, request)

    for path, known in (
        ("/v2/models/{model}", known_model),
        ("/v2/models/{model}/versions/{version}", known_version),
    ):
        of_model = APIRouter(prefix=path, dependencies=[Depends(known)], responses=errors(404))
        of_model.get("", response_model=ModelMetadata)(model_about)
        of_model.get("/ready", response_model=ModelReady, responses=errors(503))(model_ready)
        of_model.head("/ready", include_in_schema=False)(model_ready)
        of_model.get("/config", response_model=dict[str, Any])(config)
        of_model.get("/stats", response_model=dict[str, Any])(statistics)
        of_model.get("/hierarchy", response_model=dict[str, Any])(model_hierarchy)
        of_model.get("/replay", response_model=dict[str, Any])(model_replay)
        of_model.post(
            "/infer",
            response_model=InferReply,
            responses={200: INFER_OK, **errors(*INFER_STATUSES)},
            openapi_extra=INFER_BODY,
        )(infer)
        api.include_router(of_model)

    @api.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Prometheus' text format."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @api.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> JSONResponse:
        service.metrics.rejected.labels(error.reason).inc()
        wait = {"retry-after": str(error.retry_after_s)} if error.retry_after_s else {}
        return JSONResponse({"error": error.text}, error.status, wait)

    @api.exception_handler(HTTPException)
    async def of_framework(request: Request, error: HTTPException) -> Response:
        text = f"{request.method} {request.url.path[:200]}: {error.detail}"
        if wants_page(request):
            return error_page(site, error.status_code, text)
        return JSONResponse({"error": text}, error.status_code, error.headers)

    @api.exception_handler(Exception)
    async def bug(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"error": "internal server error; see the server's log"}, 500)

    @api.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        text = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        if wants_page(request):
            return error_page(site, 400, text)
        return JSONResponse({"error": text}, 400)

    add_pages(api, site, pages_of(site))
    _describe(api, with_keys=bool(keys))
    return Middleware(api, service, keys, root_path)


async def known_model(model: ModelName) -> None:
    """Raises Refused with 404 for any but the one there is."""
    require_known(model, VERSION)


async def known_version(model: ModelName, version: ModelVersion) -> None:
    """Raises Refused with 404 for any but the one there is."""
    require_known(model, version)


def require_ready(service: Service) -> None:
    """Raises Refused with 503 while requests are not answered."""
    if reason := service.why_not_ready():
        raise unavailable(reason)


async def infer_once(service: Service, request: Request, top: int | None = None) -> Response:
    """One request, from its admission to its reply. top: it is one JPEG, to be answered by name."""
    require_ready(service)
    started, options = time.monotonic(), service.options
    client = request.scope[STATE].client
    gone = False
    try:
        with ExitStack() as held:
            announced = announced_bytes(request.headers) or 0
            if announced > options.max_body_bytes:
                most = options.max_body_bytes
                raise too_large(f"body of {announced} bytes, expected at most {most}; send less")
            permit = held.enter_context(service.admission.admit(client, announced))
            async with asyncio.timeout(options.deadline_s) as limit:
                with permit.receiving(limit):
                    head, tensors = await read_request(
                        request,
                        permit,
                        max_bytes=options.max_body_bytes,
                        count_images=service.count_images,
                        pool=service.decoder.pool,
                        one_jpeg=top is not None,
                    )
            request.scope[STATE].images = permit.held["images"]
            infer_request = service.request_of(
                head,
                tensors,
                client=client,
                started=started,
                useless=lambda: gone,
                outputs=DEFAULT_OUTPUTS if top is None else ("probs", "confidence"),
            )
            infer_result = await _unless_gone(
                request, service.infer(infer_request), infer_request.deadline
            )
            service.metrics.answered(time.monotonic() - started)
            if top is None:
                body, headers = reply(head, infer_result, infer_request.outputs)
            else:
                body, headers = reply_by_name(service, infer_result, top)
            permit.reserve("bytes", len(body))
            return _HeldReply(body, headers, held.pop_all())
    except TimeoutError as error:
        raise too_late(f"no answer within {time.monotonic() - started:.1f} s") from error
    except ClientDisconnect:
        service.metrics.cancelled.inc()
        return Response(status_code=CLIENT_GONE)
    finally:
        gone = True


async def _unless_gone(
    request: Request, answer: Coroutine[Any, Any, InferResult], deadline: float
) -> InferResult:
    """Wait for the answer; give up when the client goes away or the deadline is over."""
    asking = asyncio.ensure_future(answer)
    leaving = asyncio.ensure_future(request.receive())
    try:
        left = max(0.0, deadline - time.monotonic())
        await asyncio.wait({asking, leaving}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        if asking.done():
            return asking.result()
        if leaving.done():
            raise ClientDisconnect
        raise TimeoutError
    finally:
        asking.cancel()
        leaving.cancel()


class _HeldReply(Response):
    """Holds the request's permit until the client has read the reply, but for its last 64 KiB."""

    def __init__(self, body: bytes, headers: Mapping[str, str], held: ExitStack) -> None:
        super().__init__(body, headers=headers)
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        head = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        with self._held:
            await send(head)
            await send({"type": "http.response.body", "body": self.body, "more_body": True})
            # Not before what is written has left uvicorn's buffer.
            await send({"type": "http.response.body", "body": b""})


def reply(
    head: RequestHead, result: InferResult, outputs: Sequence[str]
) -> tuple[bytes, dict[str, str]]:
    """The answers in the protocol's framing: body and headers."""
    fields: dict[str, Any] = {"model_name": MODEL, "model_version": VERSION}
    if head.id is not None:
        fields["id"] = head.id
    if result.bad:
        fields["parameters"] = {"bad": {str(i): bad.reason for i, bad in result.bad.items()}}
    raw = raw_outputs(head, outputs)
    body, head_bytes = encode_body(fields, "outputs", result.tensors(outputs), raw)
    headers = timing_headers(result.timing)
    if head_bytes is not None:
        headers[HEAD_LENGTH] = str(head_bytes)
    headers["content-type"] = "application/" + ("json" if head_bytes is None else "octet-stream")
    return body, headers


def reply_by_name(service: Service, result: InferResult, top: int) -> tuple[bytes, dict[str, str]]:
    """The answer to one image for people: body and headers."""
    assert result.probs is not None  # asked for
    probs = result.probs[0].astype(np.float32)
    answers = named(service.hierarchy, probs, result.rows.confidence[0], top)
    body = json.dumps(answers, ensure_ascii=False).encode()
    return body, {**timing_headers(result.timing), "content-type": "application/json"}


def _describe(api: FastAPI, *, with_keys: bool) -> None:
    """What FastAPI does not see: the head's model, as the endpoint reads the body by itself; that
    wrong parameters are 400 here; and keys.
    """
    document = api.openapi()
    for route in document["paths"].values():
        for operation in route.values():
            if operation["responses"].pop("422", None):
                operation["responses"].setdefault("400", _REFUSED)
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)
    if with_keys:
        document["components"]["securitySchemes"] = {
            "key": {"type": "http", "scheme": "bearer"},
            "password": {"type": "http", "scheme": "basic"},
        }
        for path, route in document["paths"].items():
            schemes = ["key"] if path.startswith(FOR_PROGRAMS) else ["key", "password"]
            schemes = [] if path in PROBES else schemes
            for operation in route.values():
                operation["security"] = [{scheme: []} for scheme in schemes]
    schema = RequestHead.model_json_schema(ref_template="#/components/schemas/{model}")
    document["components"]["schemas"] |= {**schema.pop("$defs", {}), "RequestHead": schema}
    api.openapi_schema = document
