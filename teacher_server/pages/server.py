"""Pages alone, without a teacher in this process, as `distill inspect --serve` shows them."""

import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import uvicorn
from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from distill.teacher_server.http.access import AccessDenied, authenticate, send_error
from distill.teacher_server.http.keys import ApiKeys
from distill.teacher_server.http.listener import Address, HttpServer
from distill.teacher_server.pages.frame import Framed, add_pages, error_page


@dataclass(frozen=True)
class Asker:
    """client: the owner of the key that a request bears; empty where there are none."""

    client: str


class Guarded:
    """Lets in who may ask."""

    def __init__(self, app: ASGIApp, keys: ApiKeys | None) -> None:
        self.app, self.keys = app, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "http":
            headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
            try:
                owner = authenticate(scope["method"], scope["path"], headers, self.keys)
            except AccessDenied as error:
                await send_error(send, error.status, error.text, error.headers)
                return
            scope["distill"] = Asker(owner)
        await self.app(scope, receive, send)


def pages_server(
    site: Framed, router: APIRouter, keys: ApiKeys | None, address: Address
) -> uvicorn.Server:
    """To be run on a socket.

    Raises:
        ConfigError: the certificate and its key are none.
    """
    app = FastAPI(title="distill inspect", docs_url=None, redoc_url=None, openapi_url=None)
    add_pages(app, site, router)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> HTMLResponse:
        first = error.errors()[0]
        return error_page(site, 400, f"{'.'.join(map(str, first['loc']))}: {first['msg']}")

    @app.exception_handler(HTTPException)
    async def of_framework(request: Request, error: HTTPException) -> HTMLResponse:
        return error_page(site, error.status_code, str(error.detail))

    @app.exception_handler(Exception)
    async def bug(request: Request, error: Exception) -> HTMLResponse:
        return error_page(site, 500, "Internal error; see the program's output.")

    return HttpServer(Guarded(app, keys), address)


def serve_pages(
    site: Framed,
    router: APIRouter,
    keys: ApiKeys | None,
    address: Address,
    listener: socket.socket,
    announce: Callable[[], None],
) -> None:
    """Until a signal comes, be it right after the announcement."""
    server = pages_server(site, router, keys, address)
    with suppress(KeyboardInterrupt):
        announce()
        server.run([listener])
