"""Images: their bytes, and the pixels in them.

Owns decoding of bytes that may be hostile, with one reason for each that is no whole image, and the
squish-resize. Does not augment, and knows no torch.
"""

import io
import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.Image import Transpose

from distill.data.formats.samples import Sample
from distill.errors import DataError, DataUnavailableError, first_line
from distill.storage.disk import is_gone
from distill.storage.locations import is_remote, place_of
from distill.storage.place import AbsentError, unavailable

REQUESTS_AT_ONCE = 16
MAX_IMAGE_BYTES = 64 * 2**20
MAX_IMAGE_PIXELS = 80_000_000
# The decoders that may see the bytes: Pillow's others run programs, or are seldom looked after.
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "BMP", "GIF", "TIFF", "PPM")

# What a camera wrote into EXIF's orientation tag, and what sets the picture upright.
ORIENTATION_TAG = 0x0112
UPRIGHT = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}


def read_bytes(sample: Sample, at_most: int = MAX_IMAGE_BYTES) -> bytes:
    """The encoded image, or video.

    Raises:
        DataError: the bytes are missing or too many. The message is the reason: what kind of
        damage, a colon, and the rest.
        DataUnavailableError: a disk, a mount, the network or this machine is in trouble.
    """
    path = sample.path
    try:
        return place_of(path).read(path, sample.offset, sample.size, at_most=at_most)
    except AbsentError as error:
        # It was there when it was listed; where its whole folder went, that is no fault of its own.
        if not is_remote(path) and is_gone(os.path.dirname(path)):  # noqa: PTH120
            cause = "its folder is gone or empty; is a disk still mounted there?"
            raise unavailable(path, cause) from error
        raise


def read_all(samples: Sequence[Sample]) -> list[Callable[[], bytes]]:
    """Return a call per sample that gives or raises `read_bytes`; buckets are read concurrently."""
    if not any(is_remote(sample.path) for sample in samples):
        return [partial(read_bytes, sample) for sample in samples]
    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        return [pool.submit(read_bytes, sample).result for sample in samples]


def read_image(sample: Sample) -> Image.Image:
    """The decoded image, RGB, upright.

    Raises:
        DataError: as `read_bytes`, or the bytes are no whole image.
        DataUnavailableError: as `read_bytes`, or memory ran out.
    """
    return decode_image(read_bytes(sample))


def decode_image(
    content: bytes | memoryview,
    *,
    formats: tuple[str, ...] = FORMATS,
    max_pixels: int = MAX_IMAGE_PIXELS,
    enough: int | None = None,
    upright: bool = True,
) -> Image.Image:
    """`read_image` for bytes that are at hand. Of an animation, the first picture.

    enough: pixels a side that will do. A JPEG is then decoded at a half, a quarter or an eighth of
    its size, where that is as large: a large photograph takes a fraction of the time.
    upright: turned as a camera wrote that it should be; else as the pixels are stored.
    """
    if not len(content):
        raise DataError("not an image: 0 bytes found")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow's, about size and broken EXIF
            image = Image.open(io.BytesIO(content), formats=formats)
            if image.width * image.height > max_pixels:
                raise DataError(
                    f"too many pixels: {image.width}×{image.height} found, "
                    f"expected at most {max_pixels}"
                )
            if enough:
                image.draft(None, (enough, enough))
            return _upright(_in_rgb(image), _orientation(image) if upright else None)
    except DataError:
        raise
    except MemoryError as error:
        raise out_of_memory("an image") from error
    except Image.DecompressionBombError as error:
        raise DataError(f"too many pixels: {first_line(error)}") from error
    except UnidentifiedImageError as error:
        known = f"of no supported format ({', '.join(formats)})"
        raise DataError(f"not an image: {known}") from error
    except Exception as error:  # decoders raise whatever hostile bytes provoke
        raise DataError(f"undecodable image: {first_line(error)}") from error


def out_of_memory(thing: str) -> DataUnavailableError:
    """What to raise where there is no room to decode it."""
    return DataUnavailableError(
        f"out of memory while decoding {thing}, expected room for it; lower --workers or "
        "--batch-size, then run the same command again"
    )


def squish(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The image at `size`: bilinear with antialiasing, aspect ratio not kept, as the authors do."""
    height, width = size
    if image.size == (width, height):
        return image
    return image.resize((width, height), Image.Resampling.BILINEAR)


def _in_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # Pillow would clip at 255
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "RGB":  # which `convert` would copy
        image.load()
        return image
    return image.convert("RGB")


def _orientation(image: Image.Image) -> object:
    try:
        return image.getexif().get(ORIENTATION_TAG) if image.info.get("exif") else None
    except Exception:  # a broken tag does not make the pixels worse
        return None


def _upright(image: Image.Image, orientation: object) -> Image.Image:
    turn = UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)
