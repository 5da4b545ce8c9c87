"""`distill inspect --serve`: its options, and the pages that they start."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from distill.cli.options.command import given_options, option, setting
from distill.cli.options.group import option_group
from distill.cli.options.images import DataChoice
from distill.cli.options.listening import Listening
from distill.errors import ConfigError

PATIENCE_S = 20.0  # of somebody who looks at a page

if TYPE_CHECKING:
    from distill.curate.rating_file import RatingFile
    from distill.teacher_server.inspect.inspection import Inspection
    from distill.teacher_server.pages.site import Site, StoreSnapshot


@dataclass(frozen=True, kw_only=True)
class Serving:
    """What was chosen. wanted: that pages be served at all."""

    wanted: bool
    student: str | None
    device: str
    ask: str | None
    api_key: str | None

    def require_alone(self, others: set[str]) -> None:
        """Raises ConfigError for options of a report with pages, or of pages without."""
        if self.wanted and others:
            raise ConfigError(
                f"--serve found with {', '.join(sorted(others))}, expected pages or a report; run "
                "the command twice"
            )
        if not self.wanted and (useless := given_options("Server", "Student")):
            raise ConfigError(f"{useless[0]} found without --serve, expected it for pages alone")

    def run(
        self,
        opened: Callable[[], "Inspection"],
        data: DataChoice | None,
        ratings: Path | None,
        listen: Listening,
    ) -> None:
        """Serve pages until a signal comes. ratings: a file of answers that they add to.

        Raises:
            DistillError: one of the parts is not to be had.
        """
        from contextlib import ExitStack, closing
        from functools import partial

        from distill.curate.rating_file import open_ratings
        from distill.teacher_server.pages.routes import pages_of
        from distill.teacher_server.pages.server import serve_pages

        address, keys, listener = listen.bound()
        with closing(listener), ExitStack() as stack:
            said = ratings and stack.enter_context(
                open_ratings(ratings, partial(click.echo, err=True))
            )
            site = self._site(opened, data, said or None)
            announce = partial(listen.announce_pages, listener)
            serve_pages(site, pages_of(site), keys, address, listener, announce)

    def _site(
        self,
        opened: Callable[[], "Inspection"],
        data: DataChoice | None,
        ratings: "RatingFile | None",
    ) -> "Site":
        from distill.teacher_server.pages.remote import RemoteTeacher
        from distill.teacher_server.pages.site import Lazy, Site, StoreSnapshot
        from distill.trainers.models.prediction import StudentOpinion
        from distill.wire.client import TeacherClient

        inspection = opened()
        hierarchy = inspection.hierarchy
        student = self.student and StudentOpinion.of(self.student, hierarchy, self.device)
        live = None
        if self.ask:
            client = TeacherClient(self.ask, api_key=self.api_key, deadline_s=PATIENCE_S)
            live = RemoteTeacher(client, hierarchy)
        first = _look(inspection, data).prepared()

        def again() -> StoreSnapshot:
            return replace(first, inspection=opened()).prepared()

        return Site(
            hierarchy=hierarchy,
            teacher=inspection.summary.teacher,
            store=Lazy(again, value=first, stale=StoreSnapshot.may_grow),
            student=student or None,
            live=live,
            ratings=ratings,
        )


def _look(inspection: "Inspection", data: DataChoice | None) -> "StoreSnapshot":
    """With the images; where they are not to be had, the pages say so and show the rest."""
    from distill.errors import DistillError
    from distill.teacher_server.inspect.tag_lists import ListedImages
    from distill.teacher_server.pages.site import StoreSnapshot

    if data is None:
        return StoreSnapshot(
            inspection, None, "Started without --data, so there are no images to show."
        )
    try:
        return StoreSnapshot(inspection, ListedImages.of(inspection, data.open()))
    except DistillError as error:
        click.echo(f"distill: {error}", err=True)
        return StoreSnapshot(inspection, None, str(error))


serving = option_group(
    "serving",
    (
        option("--serve", "wanted", is_flag=True, help="Serve everything as web pages."),
        setting("--student", help="Trained model to show beside the teacher."),
        setting("--device", default="cpu", help="Device of --student."),
        setting("--ask", metavar="URL", help="Teacher server that answers for uploaded images."),
        setting("--api-key", envvar="DISTILL_API_KEY", help="API key of the server at --ask."),
    ),
    Serving,
)
