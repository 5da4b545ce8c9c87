"""Parse form fields and query parameters."""

from collections.abc import Callable
from typing import Any

from fastapi import Request
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException

from distill.errors import DistillError
from distill.teacher_server.inspect.gallery import KINDS, GalleryFilter, Kind
from distill.teacher_server.pages.error import PageError
from distill.teacher_server.pages.site import Site

MOST_BODY_BYTES = 4096


async def sent(request: Request) -> dict[str, str]:
    """The fields of a small form.

    Raises:
        PageError: it is none, or too large.
    """
    announced = request.headers.get("content-length", "")
    if not announced.isdecimal() or int(announced) > MOST_BODY_BYTES:
        raise PageError(413, f"a form of {announced or 'unknown'} bytes found, expected a few")
    try:
        async with request.form(max_files=0, max_fields=20) as form:
            return {name: value for name, value in form.items() if isinstance(value, str)}
    except (MultiPartException, HTTPException) as error:
        raise PageError(400, "not a form") from error


def number(
    name: str, text: str, default: Any, kind: Callable[[str], Any], low: float, high: float
) -> Any:
    """A field of a form; empty is the default."""
    if not text.strip():
        return default
    try:
        value = kind(text)
        if not low <= value <= high:
            raise ValueError
    except ValueError as error:
        raise PageError(400, f"{name} {text!r} found, expected {low:g} to {high:g}") from error
    return value


def wanted_by(
    site: Site, tag: str, kind: str, hierarchy: str, low: str, high: str
) -> GalleryFilter:
    if kind not in KINDS:
        raise PageError(400, f"kind {kind!r} found, expected {', '.join(KINDS)}")
    chosen: Kind = next(each for each in KINDS if each == kind)
    least = number("least confidence", low, 0.0, float, 0, 1)
    most = number("most confidence", high, 1.0, float, 0, 1)
    level = number("hierarchy", hierarchy, None, int, 0, site.hierarchy.num_hierarchies - 1)
    if level is None and (least, most) != (0.0, 1.0):
        level = 0
    return GalleryFilter(
        kind=chosen,
        tag=class_named(site, tag) if tag else None,
        hierarchy=level,
        confidence=(least, most),
    )


def class_named(site: Site, word: str) -> int:
    try:
        named = [site.hierarchy.index(synset) for synset in site.hierarchy.find(word)]
    except DistillError as error:
        raise PageError(404, str(error)) from error
    if len(named) > 1:
        raise PageError(404, f"{word!r} names {len(named)} classes; choose one.", choices=named)
    return named[0]
