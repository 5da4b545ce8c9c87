"""A remote teacher server behind the pages."""

import asyncio
from contextlib import AbstractContextManager, nullcontext

import numpy as np
from numpy.typing import NDArray

from distill.errors import StoreMismatchError
from distill.hierarchy.semantic import SemanticHierarchy
from distill.teacher_server.inspect.dense_rows import dense
from distill.teacher_server.pages.site import Prediction, Receiving
from distill.wire.client import TeacherClient


class RemoteTeacher:
    """client: of a server of this hierarchy."""

    max_upload_bytes = 64 * 2**20
    max_image_pixels = 80_000_000

    def __init__(self, client: TeacherClient, hierarchy: SemanticHierarchy) -> None:
        if client.hierarchy.digest != hierarchy.digest:
            raise StoreMismatchError(
                f"{client.location}: hierarchy {client.hierarchy.digest[:12]} found, the store "
                f"expects {hierarchy.digest[:12]}; ask a teacher of the store's classes"
            )
        self.client, self.hierarchy = client, hierarchy
        self.size, self.deadline_s = client.input_size, client.deadline_s

    def admitted(self, client: str, body_bytes: int) -> AbstractContextManager[Receiving]:
        """The server itself refuses what it has no room for."""
        return nullcontext(nullcontext)

    async def ask(self, pixels: NDArray[np.uint8], client: str) -> Prediction:
        """See `LiveTeacher`."""
        targets = await asyncio.to_thread(self.client.infer_images, pixels[None])
        rows, answers = targets.to_rows(), targets.answers
        probs = dense(rows, targets.slots, self.hierarchy.classes_per_hierarchy, answers)
        return Prediction(probs, rows.confidence[0] if answers == "softmax" else None)
