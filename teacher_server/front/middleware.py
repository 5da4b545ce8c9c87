"""Middleware of every route: access, teacher identity, errors and the request log.

Plain ASGI, so that nothing that goes wrong behind it can drop a connection: an error is JSON, and
every request but a probe is logged.
"""

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from distill.teacher_server.front.request_state import (
    RequestState,
    etag,
    expects_another,
    request_id_of,
)
from distill.teacher_server.http.access import AccessDenied, authenticate, send_error
from distill.teacher_server.http.keys import ApiKeys
from distill.teacher_server.serve.service import Service
from distill.wire.refusal import CLIENT_GONE, Refused

STATE = "distill"
PROBES = ("/v2/health/live", "/v2/health/ready")


class Middleware:
    """keys: None lets everybody in that names this machine by a loopback name.

    root_path: passed over at the beginning of a path.
    """

    def __init__(
        self, app: ASGIApp, service: Service, keys: ApiKeys | None, root_path: str = ""
    ) -> None:
        self.app, self.service, self.keys = app, service, keys
        self._root = root_path
        self._etag = etag(service)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"]
        if self._root and f"{path}/".startswith(f"{self._root}/"):
            path = path.removeprefix(self._root) or "/"
            scope = {**scope, "path": path}
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        state = scope[STATE] = RequestState(request_id_of(headers.get(b"x-request-id", "")))

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                state.status = message["status"]
                message.setdefault("headers", [])
                message["headers"].append((b"x-request-id", state.request_id.encode()))
                if state.status not in (401, 403):  # who may not ask does not learn whom
                    message["headers"].append((b"etag", self._etag.encode()))
            await send(message)

        try:
            refusal = self._refusal(scope["method"], path, headers, state)
            if refusal:
                await send_error(send_with_id, *refusal)
            elif path in PROBES:
                await self.app(scope, receive, send_with_id)
            else:
                await self._traced(scope, headers, state, receive, send_with_id)
        except asyncio.CancelledError:  # the server's own deadline, at its end
            if not state.status:
                await send_error(
                    send_with_id, 503, "the server is shutting down", {"retry-after": "1"}
                )
        except Exception as error:  # whatever it is, the client gets an answer
            state.log_bug(self.service, error)
            if not state.status:
                await send_error(
                    send_with_id, 500, "internal server error; see the server's log", {}
                )
        finally:
            if path not in PROBES:
                state.status = state.status or CLIENT_GONE
                state.log(
                    self.service,
                    method=scope["method"],
                    route=getattr(scope.get("route"), "path", "none"),
                    path=path,
                    address=(scope.get("client") or ("",))[0],
                )

    async def _traced(
        self,
        scope: Scope,
        headers: dict[bytes, str],
        state: RequestState,
        receive: Receive,
        send: Send,
    ) -> None:
        carried = {name.decode("latin-1"): value for name, value in headers.items()}
        with self.service.tracing.request(scope["method"], carried) as span:
            await self.app(scope, receive, send)
            span.set_attributes(
                {
                    "http.request.method": scope["method"],
                    "http.route": getattr(scope.get("route"), "path", "none"),
                    "http.response.status_code": state.status or CLIENT_GONE,
                    "distill.request_id": state.request_id,
                    "distill.images": state.images,
                }
            )

    def _refusal(
        self, method: str, path: str, headers: dict[bytes, str], state: RequestState
    ) -> tuple[int, str, dict[str, str]] | None:
        if path in PROBES:
            return None
        try:
            state.client = authenticate(method, path, headers, self.keys)
        except AccessDenied as error:
            return error.status, error.text, error.headers
        if path.endswith("/infer"):
            try:
                self.service.admission.require_room()
            except Refused as error:  # here, because routing costs as much as all of this
                self.service.metrics.rejected.labels(error.reason).inc()
                return error.status, error.text, {"retry-after": str(error.retry_after_s)}
        wanted = headers.get(b"if-match", "")
        if expects_another(wanted, self._etag):
            return 412, f"teacher {self._etag} found, If-Match expects {wanted[:80]}", {}
        return None
