"""One image of the release → the bytes that are kept of it."""

import io
from dataclasses import dataclass

from distill.data.images import decode_image, squish


@dataclass(frozen=True, kw_only=True)
class ShrinkRules:
    """size: pixels a side. quality: JPEG's, 95 as OpenCV's default, which the authors used."""

    size: int = 224
    quality: int = 95


def shrink(content: bytes, rules: ShrinkRules) -> bytes:
    """Squish-resized to a square, bilinear with antialiasing, as JPEG without any metadata.

    An image that is smaller on both sides stays as it is, byte for byte; it is decoded all the
    same, to know that it is whole.

    Raises:
        DataError: it is undecodable image.
    """
    # Twice the size leaves the filter enough that nobody sees how it was decoded.
    image = decode_image(content, enough=2 * rules.size)
    if max(image.size) < rules.size:
        return content
    buffer = io.BytesIO()
    small = squish(image, (rules.size, rules.size))
    small.info.clear()  # of which Pillow would write some
    small.save(buffer, "JPEG", quality=rules.quality)
    return buffer.getvalue()
