"""Pages on which raters say which labels are right for an image.

One question at a time: an image, at most eight labels, examples of each. An answer is on the disk
before the next question is shown. Raters are told apart by their keys, or without keys by the name
that they give themselves. After Beyer et al. 2020 (arXiv 2006.07159), section 3.2.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from distill.curate.questions import Rating
from distill.curate.real_labels import ANSWERS
from distill.data.images import read_image
from distill.data.source import ImageSource
from distill.errors import DistillError
from distill.teacher_server.pages.error import PageError, keeping
from distill.teacher_server.pages.forms import sent
from distill.teacher_server.pages.frame import asker, page_of
from distill.teacher_server.pages.images import as_jpeg
from distill.teacher_server.pages.rendering import page_headers

NAME = re.compile(r"[\w.@-][\w .@-]{0,63}")
THUMBNAIL, LARGE = 160, 768  # longer side in pixels

Name = Annotated[str, Query(max_length=64)]
Number = Annotated[int, Query(ge=0, le=2**40)]


@dataclass(frozen=True, kw_only=True, eq=False)
class RatingSite:
    """source: the images. rows: in it, of each question. examples: rows, by label."""

    rating: Rating
    source: ImageSource
    rows: Sequence[int]
    examples: Mapping[str, Sequence[int]]
    root: str = ""

    @property
    def about(self) -> str:
        """See `Framed`."""
        return f"{len(self.rows)} questions"

    @property
    def links(self) -> list[tuple[str, str]]:
        """See `Framed`."""
        return [("/", "Rate")]


def rating_pages_of(site: RatingSite) -> APIRouter:
    """All routes."""
    router = APIRouter(include_in_schema=False)
    rating = site.rating

    @router.get("/")
    def start(request: Request) -> Response:
        if name := asker(request):
            return _to(site, name)
        return page_of(site, "rater.html", title="Who rates?")

    @router.get("/rate")
    def question(request: Request, rater: Name = "", number: Number | None = None) -> HTMLResponse:
        name = _rater(request, rater)
        if number is not None and number >= len(rating.questions):
            raise PageError(404, f"{len(rating.questions)} questions found, none is {number}")
        asked = rating.next_for(name) if number is None else number
        mine, complete, total = rating.progress(name)
        before = rating.last_of(name, len(rating.questions) if asked is None else asked)
        here: dict[str, Any] = {"question": None}
        if asked is not None:
            chosen = rating.questions[asked]
            here = {
                "question": chosen,
                "row": site.rows[asked],
                "given": [
                    rating.ratings.answers(chosen.key, label).get(name)
                    for label, _ in chosen.labels
                ],
                "examples": [
                    [row for row in site.examples.get(label, ()) if row != site.rows[asked]]
                    for label, _ in chosen.labels
                ],
            }
        return page_of(
            site,
            "rate.html",
            title="Which labels are right?",
            rater=name,
            number=asked,
            before=before,
            mine=mine,
            complete=complete,
            total=total,
            answers=ANSWERS[::-1],
            **here,
        )

    @router.post("/rate")
    async def answer(request: Request) -> Response:
        form = await sent(request)
        name = _rater(request, form.get("rater", ""))
        text = form.get("number", "")
        if not text.isdecimal() or int(text) >= len(rating.questions):
            raise PageError(400, f"question {text!r} found, expected one of those that are asked")
        number = int(text)
        labels = [label for label, _ in rating.questions[number].labels]
        said = {label: form.get(f"answer{i}", "") for i, label in enumerate(labels)}
        if not {*said.values()} <= {*ANSWERS}:
            raise PageError(400, "an answer is missing, expected yes, maybe or no for each label")
        with keeping():
            rating.answer(number, name, said)
        return _to(site, name)

    @router.get("/image/{row}")
    def image(row: Annotated[int, Path(ge=0)], large: Name = "") -> Response:
        if row >= len(site.source):
            raise PageError(404, "no such image")
        try:
            picture = read_image(site.source.samples[row])
        except DistillError as error:
            raise PageError(404, str(error)) from error
        jpeg = as_jpeg(picture, LARGE if large else THUMBNAIL)
        headers = {**page_headers(), "cache-control": "private, max-age=300"}
        return Response(jpeg, media_type="image/jpeg", headers=headers)

    return router


def _rater(request: Request, given: str) -> str:
    name = asker(request) or given.strip()
    if not NAME.fullmatch(name):
        raise PageError(400, f"name {given!r} found, expected letters and digits, at most 64")
    return name


def _to(site: RatingSite, rater: str) -> RedirectResponse:
    return RedirectResponse(f"{site.root}/rate?{urlencode({'rater': rater})}", 303)
