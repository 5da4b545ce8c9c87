"""The inspector's pages of a running service."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from distill.errors import DistillError
from distill.teacher_server.inspect.findings import Rules
from distill.teacher_server.inspect.tag_lists import ListedImages
from distill.teacher_server.pages.site import (
    Lazy,
    Prediction,
    ReaderProcess,
    Receiving,
    Site,
    StoreSnapshot,
    Student,
)
from distill.teacher_server.serve.service import InferRequest, Service
from distill.wire.refusal import Refused, unavailable

NO_IMAGES = "This server was started without --data, so there are no images to show."


def site_of(service: Service, student: Student | None = None, root: str = "") -> Site:
    """The store is read when its first page is asked for, by a process of its own."""
    samples = service.samples
    store = None
    if samples and samples.store:
        reader = ReaderProcess(samples.store.location, Rules())

        def look() -> StoreSnapshot:
            inspection = reader.read()
            if samples.source is None:
                return StoreSnapshot(inspection, None, NO_IMAGES).prepared()
            try:
                return StoreSnapshot(
                    inspection, ListedImages.of(inspection, samples.source)
                ).prepared()
            except DistillError as error:
                return StoreSnapshot(inspection, None, str(error)).prepared()

        store = Lazy(look, stale=StoreSnapshot.may_grow, close=reader.close)
    return Site(
        hierarchy=service.hierarchy,
        teacher=service.teacher.identity.name,
        store=store,
        student=student,
        live=OwnTeacher(service),
        root=root,
    )


class OwnTeacher:
    """The service as a page asks it."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.max_upload_bytes = service.options.max_body_bytes
        self.max_image_pixels = service.options.max_image_pixels
        self.deadline_s = service.options.deadline_s
        self.size = max(service.teacher.sizes)

    @contextmanager
    def admitted(self, client: str, body_bytes: int) -> Iterator[Receiving]:
        """See `LiveTeacher`. Refusals are counted as those of other requests."""
        try:
            if reason := self.service.why_not_ready():
                raise unavailable(reason)
            with self.service.admission.admit(client, body_bytes) as permit:
                yield permit.receiving
        except Refused as error:
            self.service.metrics.rejected.labels(error.reason).inc()
            raise

    async def ask(self, pixels: NDArray[np.uint8], client: str) -> Prediction:
        """See `LiveTeacher`."""
        gone = False
        infer_request = InferRequest(
            tensors={"image": pixels[None]},
            outputs=("probs", "confidence"),
            client=client,
            deadline=time.monotonic() + self.deadline_s,
            useless=lambda: gone,
        )
        try:
            result = await self.service.infer(infer_request)
        finally:
            gone = True
        assert result.probs is not None  # asked for above
        confidence = result.rows.confidence[0]
        return Prediction(
            result.probs[0].astype(np.float32),
            confidence if self.service.teacher.answers == "softmax" else None,
        )
