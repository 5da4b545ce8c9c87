"""Uploaded images: refused early, read within limits, shrunk at once."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from fastapi import Request
from numpy.typing import NDArray
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException

from distill.data.images import FORMATS, decode_image, squish
from distill.errors import DistillError
from distill.teacher_server.pages.images import as_jpeg
from distill.teacher_server.pages.site import LiveTeacher, Student
from distill.wire.refusal import Refused, malformed, too_large

SHOWN = 512  # longer side in pixels


def announced_bytes(request: Request, most: int) -> int:
    """The bytes of a form that is to come.

    Raises:
        Refused: it is too large, or does not say how large it is.
    """
    announced = request.headers.get("content-length", "")
    if not announced.isdecimal():
        raise Refused(411, "no Content-Length found, expected a form with an image", "malformed")
    if int(announced) > most:
        raise too_large(f"{announced} bytes found, expected at most {most}; send a smaller image")
    return int(announced)


async def uploaded(request: Request) -> bytes:
    """The file of the form.

    Raises:
        Refused: it is no form with a file.
    """
    try:
        async with request.form(max_files=1, max_fields=4) as form:
            file = form.get("image")
            content = await file.read() if isinstance(file, UploadFile) else b""
    except (MultiPartException, HTTPException) as error:
        raise malformed("not a form with one image") from error
    if not content:
        raise malformed("no image found in the form; choose a file")
    return content


@dataclass(frozen=True, eq=False)
class Upload:
    """An upload, decoded and made small. student: its probabilities, where there is one."""

    pixels: NDArray[np.uint8]
    jpeg: bytes
    student: NDArray[Any] | None


def received(content: bytes, live: LiveTeacher, student: Student | None) -> Upload:
    try:
        image = decode_image(content, formats=FORMATS, max_pixels=live.max_image_pixels)
    except DistillError as error:
        raise malformed(str(error)) from error
    return Upload(
        pixels=np.asarray(squish(image, live.size)),
        jpeg=as_jpeg(image, SHOWN),
        student=None if student is None else student.probs(image),
    )
