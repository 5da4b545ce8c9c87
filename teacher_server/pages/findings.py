"""Missing and suspect tags as people judge them: asked beside each, kept, and listed.

An answer is one of a rater about a label of an image, in the same file as those of
`distill.teacher_server.pages.rating`: for a missing tag whether it is there, for a suspect one
whether the tag is right.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from distill.curate.real_labels import ANSWERS
from distill.data.sample_list import FINDINGS
from distill.files import csv_text
from distill.teacher_server.inspect.gallery import GalleryFilter
from distill.teacher_server.inspect.inspection import Proposal
from distill.teacher_server.pages.error import PageError, keeping
from distill.teacher_server.pages.frame import HERE
from distill.teacher_server.pages.site import Site, StoreSnapshot

BACK = re.compile(r"/(gallery|sample/[0-9a-f]{32})(\?[\w=&%.+-]*)?(#[0-9a-f]{32})?")
ROWS_AT_ONCE = 1024


@dataclass(frozen=True, kw_only=True)
class Asked:
    """label: a synset. given: what who looks has said; empty for nothing."""

    key: str
    label: str
    name: str
    given: str


def asked_about(
    site: Site, look: StoreSnapshot, row: int, proposal: Proposal | None, rater: str
) -> Asked | None:
    """What people are asked about an image; None where there is no finding, or nobody is asked."""
    if site.ratings is None or look.pictures is None or proposal is None:
        return None
    c = look.inspection.question(row, proposal)
    key, label = look.pictures.key(row), site.hierarchy.synsets[c]
    given = site.ratings.answers(key, label).get(rater or HERE, "")
    return Asked(key=key, label=label, name=site.tree.name(c), given=given)


def keep_answer(
    site: Site, look: StoreSnapshot, row: int, rater: str, form: Mapping[str, str]
) -> str:
    """Keep what a form says about an image; where to go back to.

    Raises:
        PageError: it is of another finding, or cannot be kept.
    """
    asked = asked_about(site, look, row, look.inspection.proposal(row), rater)
    answer, back = form.get("answer"), form.get("next")
    if asked is None or asked.label != form.get("label"):
        raise PageError(409, "The finding is another one by now; look at it again.")
    if answer not in ANSWERS or not BACK.fullmatch(back or ""):
        raise PageError(400, "expected an answer: yes, maybe or no")
    assert site.ratings
    assert back
    with keeping():
        site.ratings.add(rater or HERE, asked.key, {asked.label: answer})
    return back


def listed(site: Site, look: StoreSnapshot, wanted: GalleryFilter) -> Iterator[str]:
    """CSV of all images of a gallery, some lines at a time."""
    yield csv_text([FINDINGS])
    start: int | None = 0
    while start is not None:
        page = look.gallery.page(wanted, start, ROWS_AT_ONCE)
        yield csv_text([_row(site, look, row) for row in page.rows])
        start = page.after


def _row(site: Site, look: StoreSnapshot, row: int) -> tuple[str, ...]:
    assert look.pictures
    inspection, synsets = look.inspection, site.hierarchy.synsets
    key, tag = look.pictures.key(row), int(inspection.labels[row])
    tagged = (synsets[tag], site.tree.name(tag)) if tag >= 0 else ("", "")
    if (proposal := inspection.proposal(row)) is None:
        return (key, *tagged, "", "", "", "", "", "")
    label = synsets[inspection.question(row, proposal)]
    verdict = (site.ratings.verdict(key, label) if site.ratings else None) or ""
    seen = synsets[proposal.proposed], site.tree.name(proposal.proposed)
    figures = f"{proposal.prob:.4f}", f"{proposal.score:.4f}"
    return (key, *tagged, proposal.kind, *seen, *figures, verdict)
