"""Images for pages: samples and their views, made small, as JPEG. Nothing is kept."""

import io

import torch
from PIL import Image

from distill.data.drawn import read_picture, read_views
from distill.data.view_policy import ViewPolicy
from distill.errors import DistillError
from distill.teacher_server.pages.error import PageError
from distill.teacher_server.pages.site import StoreSnapshot


def image_of(look: StoreSnapshot, row: int, view: int | None) -> Image.Image:
    """The image itself, or one of its views as the teacher saw it; frames side by side.

    Raises:
        PageError: 404, it is not to be had.
    """
    if look.pictures is None:
        raise PageError(404, look.blind or "There are no images here.")
    source, place = look.pictures.source, int(look.pictures.places[row])
    try:
        if view is None:
            return read_picture(source, place)
        manifest = look.inspection.store.manifest
        policy = ViewPolicy.from_json(manifest.views.policy)
        source.require_frames(policy.frames)
        (read,) = read_views(source, policy, [(place, (manifest.views.drawn[view],))])
        (pixels,) = read().pixels(manifest.teacher.input_size)
        return Image.fromarray(torch.cat([*pixels.split(3)], 2).permute(1, 2, 0).numpy())
    except DistillError as error:
        raise PageError(404, str(error)) from error


def as_jpeg(image: Image.Image, side: int) -> bytes:
    """With sides of at most `side` pixels; small ones as they are."""
    scale = min(1.0, side / max(image.size))
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    buffer = io.BytesIO()
    image.resize(size).save(buffer, "JPEG", quality=88)
    return buffer.getvalue()
