"""Images for pages: samples and their views, made small, as JPEG. Nothing is kept."""

import io

from PIL import Image

from distill.data.images import read_image, squish
from distill.data.view_policy import ViewPolicy
from distill.data.views import draw_view, render_pixels
from distill.errors import DistillError
from distill.teacher_server.pages.error import PageError
from distill.teacher_server.pages.site import StoreSnapshot


def image_of(look: StoreSnapshot, row: int, view: int | None) -> Image.Image:
    """The image itself, or one of its views as the teacher saw it.

    Raises:
        PageError: 404, it is not to be had.
    """
    if look.pictures is None:
        raise PageError(404, look.blind or "There are no images here.")
    try:
        image = read_image(look.pictures.sample(row))
        if view is None:
            return image
        store = look.inspection.store
        manifest, sample_id = store.manifest, store.sample_ids[row]
        policy = ViewPolicy.from_json(manifest.views.policy)
        params = draw_view(policy, sample_id, manifest.views.drawn[view])
        size = manifest.teacher.input_size
        return Image.fromarray(render_pixels(squish(image, size), params, size))
    except DistillError as error:
        raise PageError(404, str(error)) from error


def as_jpeg(image: Image.Image, side: int) -> bytes:
    """With sides of at most `side` pixels; small ones as they are."""
    scale = min(1.0, side / max(image.size))
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    buffer = io.BytesIO()
    image.resize(size).save(buffer, "JPEG", quality=88)
    return buffer.getvalue()
