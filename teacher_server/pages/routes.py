"""Routes of the pages: from requests to templates.

GET pages are plain functions, which run in threads: they read a block a view at most, and nothing
of them is ever computed over the whole store. Images are decoded a few at a time.
"""

import asyncio
import base64
import re
from typing import Annotated, Any
from urllib.parse import quote, urlencode

import numpy as np
from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response, StreamingResponse
from starlette.requests import ClientDisconnect

from distill.data.sample_ids import sample_ids
from distill.errors import ConfigError, DistillError
from distill.teacher_server.inspect.dense_rows import dense, in_words
from distill.teacher_server.inspect.gallery import KINDS, GalleryFilter
from distill.teacher_server.pages.error import PageError
from distill.teacher_server.pages.findings import asked_about, keep_answer, listed
from distill.teacher_server.pages.forms import class_named, number, sent, wanted_by
from distill.teacher_server.pages.frame import asker, page_of
from distill.teacher_server.pages.images import as_jpeg, image_of
from distill.teacher_server.pages.rendering import (
    charts_of,
    class_url,
    page_headers,
    shown_id,
)
from distill.teacher_server.pages.site import LiveTeacher, Prediction, Site, StoreSnapshot
from distill.teacher_server.pages.uploads import Upload, announced_bytes, received, uploaded
from distill.wire.refusal import CLIENT_GONE, Refused

THUMBNAIL, LARGE = 160, 512  # longer side in pixels
DECODED_AT_ONCE = 4  # images, each of which may take some hundred megabytes
EXAMPLES = 6

SampleId = Annotated[str, Path(pattern=r"^[0-9a-f]{32}$")]
Wnid = Annotated[str, Path(max_length=100)]
Word = Annotated[str, Query(max_length=200)]
FormNumber = Annotated[str, Query(max_length=20)]


def pages_of(site: Site) -> APIRouter:
    """All routes."""
    router = APIRouter(include_in_schema=False)
    decoders = asyncio.Semaphore(DECODED_AT_ONCE)

    def look() -> StoreSnapshot | None:
        """The store, where it has been read."""
        return site.store.get() if site.store else None

    def required() -> StoreSnapshot:
        snapshot = look()
        if snapshot is None:
            raise _not_there(site)
        return snapshot

    @router.get("/")
    def overview() -> HTMLResponse:
        snapshot = look()
        failure = site.store.failure if site.store else ""
        reading = site.store is not None and snapshot is None and not failure
        return page_of(
            site,
            "overview.html",
            title="Overview",
            look=snapshot,
            failure=failure,
            wait=reading,
            charts=charts_of(site, snapshot),
        )

    @router.get("/tree")
    def roots() -> HTMLResponse:
        return _tree(site, look(), None)

    @router.get("/tree/{wnid:path}")
    def subtree(wnid: Wnid) -> HTMLResponse:
        return _tree(site, look(), class_named(site, wnid))

    @router.get("/class")
    def find_class(word: Word = "") -> Response:
        c = class_named(site, word.strip())
        return RedirectResponse(site.root + class_url(site.hierarchy.synsets[c]), 303)

    @router.get("/gallery")
    def gallery(
        request: Request,
        tag: Word = "",
        kind: Word = "all",
        hierarchy: FormNumber = "",
        low: FormNumber = "",
        high: FormNumber = "",
        start: FormNumber = "",
    ) -> HTMLResponse:
        snapshot = required()
        wanted = wanted_by(site, tag.strip(), kind, hierarchy, low, high)
        try:
            page = snapshot.gallery.page(wanted, number("start", start, 0, int, 0, 2**40))
        except ConfigError as error:
            raise PageError(400, str(error)) from error
        form = {"tag": tag, "kind": kind, "hierarchy": hierarchy, "low": low, "high": high}
        more = urlencode({**form, "start": page.after})
        return page_of(
            site,
            "gallery.html",
            title="Gallery",
            look=snapshot,
            form=form,
            kinds=KINDS,
            wanted=wanted,
            page=page,
            more=more,
            filters=urlencode(form),
            here=f"/gallery?{urlencode({**form, 'start': start})}",
            tiles=[_tile(site, snapshot, row, asker(request)) for row in page.rows],
        )

    @router.get("/gallery.csv")
    def gallery_list(
        tag: Word = "",
        kind: Word = "all",
        hierarchy: FormNumber = "",
        low: FormNumber = "",
        high: FormNumber = "",
    ) -> StreamingResponse:
        snapshot = required()
        if snapshot.pictures is None:
            raise PageError(404, snapshot.blind or "There are no images here.")
        wanted = wanted_by(site, tag.strip(), kind, hierarchy, low, high)
        name = f"{kind}-{tag.strip() or 'any'}.csv"
        headers = {
            **page_headers(),
            "content-disposition": f"attachment; filename*=UTF-8''{quote(name)}",
        }
        lines = (line.encode("utf-8", "surrogatepass") for line in listed(site, snapshot, wanted))
        return StreamingResponse(lines, media_type="text/csv; charset=utf-8", headers=headers)

    @router.post("/confirm")
    async def confirm(request: Request) -> Response:
        form, snapshot = await sent(request), required()
        if not re.fullmatch("[0-9a-f]{32}", sample_id := form.get("id", "")):
            raise PageError(400, "no sample found, expected one")

        def keep() -> str:
            row = _row_of(snapshot, sample_id)
            return keep_answer(site, snapshot, row, asker(request), form)

        return RedirectResponse(site.root + await asyncio.to_thread(keep), 303)

    @router.get("/sample")
    def find_sample(key: Annotated[str, Query(max_length=4096)] = "") -> Response:
        snapshot, wanted = required(), key.strip()
        try:
            row = snapshot.inspection.row_of(sample_ids([wanted]), wanted)
        except DistillError as error:
            raise PageError(404, str(error)) from error
        shown = shown_id(snapshot.inspection.store.sample_ids[row])
        return RedirectResponse(f"{site.root}/sample/{shown}", 303)

    @router.get("/sample/{sample_id}")
    def sample(request: Request, sample_id: SampleId, view: FormNumber = "") -> HTMLResponse:
        snapshot = required()
        row = _row_of(snapshot, sample_id)
        views = snapshot.inspection.store.manifest.views.count
        chosen = number("view", view, None, int, 0, views - 1)
        shown = _sample(site, snapshot, row, chosen, asker(request))
        return page_of(site, "sample.html", title="Sample", here=f"/sample/{sample_id}", **shown)

    @router.get("/image/{sample_id}")
    async def image(sample_id: SampleId, view: FormNumber = "", large: FormNumber = "") -> Response:
        snapshot = required()
        row = await asyncio.to_thread(_row_of, snapshot, sample_id)
        views = snapshot.inspection.store.manifest.views.count
        chosen = number("view", view, None, int, 0, views - 1)
        async with decoders:
            side = LARGE if large else THUMBNAIL
            jpeg = await asyncio.to_thread(_thumbnail, snapshot, row, chosen, side)
        headers = {**page_headers(), "cache-control": "private, max-age=300"}
        return Response(jpeg, media_type="image/jpeg", headers=headers)

    @router.get("/ask")
    def ask_form() -> HTMLResponse:
        _require_live(site)
        return page_of(site, "ask.html", title="Ask the teacher", said=None)

    @router.post("/ask")
    async def ask(request: Request) -> Response:
        live = _require_live(site)
        client = asker(request)
        try:
            body_bytes = announced_bytes(request, live.max_upload_bytes)
            with live.admitted(client, body_bytes) as receiving:
                async with asyncio.timeout(live.deadline_s) as limit:
                    with receiving(limit):
                        content = await uploaded(request)
                    async with decoders:
                        picture = await asyncio.to_thread(received, content, live, site.student)
                    prediction = await live.ask(picture.pixels, client)
        except Refused as error:
            raise PageError(error.status, error.text, retry_after_s=error.retry_after_s) from error
        except TimeoutError as error:
            raise PageError(504, f"no answer within {live.deadline_s:g} s") from error
        except ClientDisconnect:
            return Response(status_code=CLIENT_GONE)
        except DistillError as error:
            raise PageError(503, str(error)) from error
        return await asyncio.to_thread(_predicted, site, picture, prediction)

    return router


def _not_there(site: Site) -> PageError:
    if site.store is None:
        return PageError(404, "There is no store here: start with one to see its images.")
    if site.store.failure:
        return PageError(503, site.store.failure)
    return PageError(
        503, "The store is being read for the first time; this page reloads by itself.", wait=True
    )


def _row_of(look: StoreSnapshot, sample_id: str) -> int:
    words = np.array([[int(sample_id[:16], 16), int(sample_id[16:], 16)]], np.uint64)
    try:
        return look.inspection.row_of(words, sample_id)
    except DistillError as error:
        raise PageError(404, str(error)) from error


def _tree(site: Site, look: StoreSnapshot | None, c: int | None) -> HTMLResponse:
    tree = site.tree
    children = tree.roots if c is None else tree.children[c]
    figures = look.inspection.subtrees if look else None
    examples = []
    if look and c is not None:
        rows = look.gallery.page(GalleryFilter(tag=c), images=EXAMPLES).rows
        examples = [_tile(site, look, row, "") for row in rows]
    return page_of(
        site,
        "tree.html",
        title="Classes" if c is None else tree.name(c),
        look=look,
        here=c,
        path=[] if c is None else tree.path(c),
        children=children,
        figures=figures,
        examples=examples,
    )


def _tile(site: Site, look: StoreSnapshot, row: int, rater: str) -> dict[str, Any]:
    """One image of the gallery. proposal: what the teacher would change; asked: whether rightly."""
    inspection = look.inspection
    tag, proposal = int(inspection.labels[row]), inspection.proposal(row)
    return {
        "id": shown_id(inspection.store.sample_ids[row]),
        "key": look.pictures.key(row) if look.pictures else None,
        "tag": tag,
        "proposal": proposal,
        "asked": asked_about(site, look, row, proposal, rater),
    }


def _sample(
    site: Site, look: StoreSnapshot, row: int, view: int | None, rater: str
) -> dict[str, Any]:
    """Everything on a sample's page. view: the one whose answer is shown; None is their mean."""
    inspection = look.inspection
    manifest, hierarchy, tag = (
        inspection.store.manifest,
        site.hierarchy,
        int(inspection.labels[row]),
    )
    answers, why_not = None, ""
    try:
        rows = inspection.answers(row, view)
        if rows.valid.any():
            answers = in_words(
                dense(rows, manifest.slots, hierarchy.classes_per_hierarchy),
                hierarchy,
                tag=tag,
                confidence=rows.confidence[rows.valid].mean(0),
            )
        else:
            why_not = "Its image could not be read when the store was computed."
    except DistillError as error:
        why_not = str(error)
    beside, picture_error = None, look.blind
    if site.student and look.pictures:
        try:
            beside = in_words(site.student.probs(image_of(look, row, view)), hierarchy, tag=tag)
        except PageError as error:
            picture_error = error.text
    return {
        **_tile(site, look, row, rater),
        "look": look,
        "row": row,
        "path": site.tree.path(tag) if tag >= 0 else [],
        "views": list(enumerate(manifest.views.drawn)),
        "view": view,
        "answers": answers,
        "why_not": why_not,
        "beside": beside,
        "picture_error": picture_error,
    }


def _thumbnail(look: StoreSnapshot, row: int, view: int | None, side: int) -> bytes:
    return as_jpeg(image_of(look, row, view), side)


def _require_live(site: Site) -> LiveTeacher:
    if site.live is None:
        raise PageError(
            404, "There is no live teacher here: start `distill serve`, or pass its URL as --ask."
        )
    return site.live


def _predicted(site: Site, picture: Upload, prediction: Prediction) -> HTMLResponse:
    beside = None if picture.student is None else in_words(picture.student, site.hierarchy, tag=-1)
    return page_of(
        site,
        "ask.html",
        title="Ask the teacher",
        said=in_words(prediction.probs, site.hierarchy, tag=-1, confidence=prediction.confidence),
        beside=beside,
        shown=base64.b64encode(picture.jpeg).decode(),
    )
