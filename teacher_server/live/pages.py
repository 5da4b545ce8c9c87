"""The inspector's pages over a running service: its store, its images, and it itself to ask."""

import asyncio
import time
from contextlib import AbstractContextManager

import numpy as np
from PIL import Image

from distill.errors import DistillError
from distill.views import squish
from teacher_server.inspector.findings import Rules
from teacher_server.inspector.pages.site import Later, Look, Said, Site, Student, read_apart
from teacher_server.inspector.tag_lists import Pictures
from teacher_server.live.refusal import too_late, unavailable
from teacher_server.live.service import Asked, Service

NO_IMAGES = "This server was started without --data, so there are no images to show."


def site_of(service: Service, student: Student | None = None) -> Site:
    """The store is read when its first page is asked for, by a process of its own."""
    samples = service.samples
    store = None
    if samples and samples.store:
        location = samples.store.location

        def look() -> Look:
            inspection = read_apart(location, Rules(), None)
            if samples.source is None:
                return Look(inspection, None, NO_IMAGES).prepared()
            try:
                return Look(inspection, Pictures.of(inspection, samples.source)).prepared()
            except DistillError as error:
                return Look(inspection, None, str(error)).prepared()

        store = Later(look, lambda look: not look.inspection.summary.complete)
    return Site(
        hierarchy=service.hierarchy,
        teacher=service.teacher.identity.name,
        store=store,
        student=student,
        live=OwnTeacher(service),
    )


class OwnTeacher:
    """The service as a page asks it."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.max_upload_bytes = service.options.max_body_bytes
        self.max_image_pixels = service.options.max_image_pixels

    def admitted(self, client: str, body_bytes: int) -> AbstractContextManager[object]:
        """See `LiveTeacher`."""
        if reason := self.service.why_not_ready():
            raise unavailable(reason)
        return self.service.admission.admit(client, body_bytes)

    async def ask(self, image: Image.Image, client: str) -> Said:
        """See `LiveTeacher`."""
        patience = self.service.options.deadline_s
        largest = max(self.service.teacher.sizes)
        asked = Asked(
            tensors={"image": np.asarray(squish(image, largest))[None]},
            outputs=("probs", "confidence"),
            client=client,
            deadline=time.monotonic() + patience,
            useless=lambda: False,
        )
        try:
            async with asyncio.timeout(patience):
                answered = await self.service.infer(asked)
        except TimeoutError as error:
            raise too_late(f"no answer within {patience:g} s") from error
        outputs = answered.outputs
        return Said(outputs["probs"][0].astype(np.float32), outputs["confidence"][0])
