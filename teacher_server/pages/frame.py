"""What all sites of pages have in common: templates, errors, static files, and who asks."""

from collections.abc import Sequence
from typing import Annotated, Any, Protocol, runtime_checkable

from fastapi import APIRouter, FastAPI, Path, Request
from fastapi.responses import HTMLResponse, Response

from distill.teacher_server.http.access import FOR_PROGRAMS
from distill.teacher_server.pages.error import PageError
from distill.teacher_server.pages.rendering import STATIC, page_headers, render, static_text

HERE = "local"  # who asks where there are no keys


@runtime_checkable
class Framed(Protocol):
    """A site, as its frame shows it.

    about: what it is of. links: its pages, URL and name. root: path that a proxy puts before all.
    """

    @property
    def root(self) -> str: ...

    @property
    def about(self) -> str: ...

    @property
    def links(self) -> Sequence[tuple[str, str]]: ...


def add_pages(app: FastAPI, site: Framed, router: APIRouter) -> None:
    """Put a site's pages at / and below."""

    @router.get("/static/{name}")
    def static(name: Annotated[str, Path(max_length=40)]) -> Response:
        if name not in STATIC:
            raise PageError(404, "no such file")
        headers = {**page_headers(), "cache-control": "private, max-age=31536000, immutable"}
        return Response(static_text(name), media_type=STATIC[name], headers=headers)

    app.include_router(router)

    @app.exception_handler(PageError)
    async def failed(request: Request, error: PageError) -> HTMLResponse:
        page = error_page(site, error.status, error.text, wait=error.wait, choices=error.choices)
        if error.retry_after_s:
            page.headers["retry-after"] = str(error.retry_after_s)
        return page


def page_of(site: Framed, template: str, *, status: int = 200, **context: Any) -> HTMLResponse:
    """A page of a template."""
    return HTMLResponse(render(template, site=site, **context), status, page_headers())


def error_page(
    site: Framed, status: int, text: str, *, wait: bool = False, choices: Sequence[int] = ()
) -> HTMLResponse:
    """What went wrong, for people."""
    context = {"text": text, "wait": wait, "choices": choices, "title": "Error"}
    return page_of(site, "error.html", status=status, **context)


def wants_page(request: Request) -> bool:
    """Whether a person asks, who has no use for JSON."""
    for_programs = request.url.path.startswith(FOR_PROGRAMS)
    return not for_programs and "text/html" in request.headers.get("accept", "")


def asker(request: Request) -> str:
    """The owner of the key that a request bears; empty where there are no keys."""
    return str(getattr(request.scope.get("distill"), "client", ""))
