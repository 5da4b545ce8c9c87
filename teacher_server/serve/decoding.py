"""Images of a request → pixels at the teacher's sizes, in a bounded pool of threads.

Pillow lets other threads run while it decodes and resizes. Every element is answered for itself: a
bad one is a status and a reason, and the others go on.
"""

import asyncio
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from distill.data.images import decode_image, read_image, squish
from distill.data.source import ImageSource
from distill.data.view_policy import ViewPolicy
from distill.data.views import Size, ViewParams, draw_view, render_pixels
from distill.errors import DataError, DataUnavailableError
from distill.wire.status import Status

SAY_EVERY_S = 30.0
IMAGES_A_TASK = 8  # so that a large request does not keep small ones out of the pool


@dataclass(frozen=True, eq=False)
class DecodeFailure:
    """Why an element has no pixels."""

    status: Status
    reason: str


@dataclass(frozen=True, eq=False)
class Decoded:
    """pixels: [good, height, width, 3] for each size, of those elements that are not in `bad`."""

    pixels: tuple[NDArray[np.uint8], ...]
    bad: dict[int, DecodeFailure]


class Decoder:
    """threads: that decode. max_pixels: of one image, looked up before any of it is decoded.

    say: told of images that take long, as on a disk that does not answer.
    """

    def __init__(
        self,
        sizes: Sequence[Size],
        *,
        threads: int,
        max_pixels: int,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.sizes, self.max_pixels, self.say = tuple(sizes), max_pixels, say
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")

    async def jpegs(
        self,
        elements: Sequence[memoryview],
        crcs: NDArray[np.uint32] | None,
        useless: Callable[[], bool],
    ) -> Decoded:
        """JPEG files. crcs: CRC-32 of each. useless: asked before each element is decoded."""

        def decode(i: int) -> Image.Image:
            if crcs is not None and zlib.crc32(elements[i]) != crcs[i]:
                raise _BadElement(Status.WRONG_CRC, "its CRC-32 is not the one that came with it")
            return decode_image(elements[i], formats=("JPEG",), max_pixels=self.max_pixels)

        return await self._all(len(elements), decode, _as_it_is, useless, "JPEGs of a request")

    async def images(
        self,
        images: NDArray[np.uint8],
        crcs: NDArray[np.uint32] | None,
        useless: Callable[[], bool],
    ) -> Decoded:
        """Pixels [n, height, width, 3]; those of the teacher's only size are taken as they are."""
        if crcs is None and self.sizes == (images.shape[1:3],):
            return Decoded((images,), {})

        def resize(i: int) -> Image.Image:
            if crcs is not None and zlib.crc32(images[i]) != crcs[i]:
                raise _BadElement(Status.WRONG_CRC, "its CRC-32 is not the one that came with it")
            return Image.fromarray(images[i])

        return await self._all(len(images), resize, _as_it_is, useless, "pixels of a request")

    async def samples(
        self,
        source: ImageSource,
        policy: ViewPolicy,
        rows: NDArray[np.int64],
        views: NDArray[np.int64],
        useless: Callable[[], bool],
    ) -> Decoded:
        """Images of a data set, each in one view, by its number in the policy."""

        def read(i: int) -> Image.Image:
            return read_image(source.samples[int(rows[i])])

        def drawn(i: int) -> ViewParams:
            return draw_view(policy, source.ids[rows[i]], int(views[i]))

        first = source.samples[int(rows[0])].path if len(rows) else ""
        return await self._all(len(rows), read, drawn, useless, f"images, {first} among them")

    async def _all(
        self,
        count: int,
        image: Callable[[int], Image.Image],
        params: Callable[[int], ViewParams],
        useless: Callable[[], bool],
        what: str,
    ) -> Decoded:
        pixels = tuple(np.empty((count, *size, 3), np.uint8) for size in self.sizes)
        bad: dict[int, DecodeFailure] = {}

        def some(first: int) -> None:
            for i in range(first, min(first + IMAGES_A_TASK, count)):
                if useless():
                    return
                try:
                    decoded = image(i)
                    for target, size in zip(pixels, self.sizes, strict=True):
                        target[i] = render_pixels(squish(decoded, size), params(i), size)
                except _BadElement as error:
                    bad[i] = error.bad
                except DataError as error:
                    bad[i] = DecodeFailure(_status_of(error), str(error))

        loop = asyncio.get_running_loop()
        firsts = range(0, count, IMAGES_A_TASK)
        waiting = {loop.run_in_executor(self.pool, some, first) for first in firsts}
        waited = 0.0
        while waiting:
            done, waiting = await asyncio.wait(waiting, timeout=SAY_EVERY_S)
            for each in done:
                each.result()
            if not done:
                waited += SAY_EVERY_S
                self.say(f"decoding takes {waited:.0f} s: {what}")
        if bad:
            good = np.array([i for i in range(count) if i not in bad], np.int64)
            pixels = tuple(each[good] for each in pixels)
        return Decoded(pixels, dict(sorted(bad.items())))

    def close(self) -> None:
        """Let the threads go."""
        self.pool.shutdown(wait=False, cancel_futures=True)


class _BadElement(Exception):
    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(reason)
        self.bad = DecodeFailure(status, reason)


def _as_it_is(i: int) -> ViewParams:
    return ViewParams()


def _status_of(error: DataError) -> Status:
    if isinstance(error, DataUnavailableError):
        return Status.NOT_NOW
    kind = str(error).partition(":")[0]
    if kind == "too many pixels":
        return Status.TOO_MANY_PIXELS
    return Status.UNREADABLE if kind == "cannot be read" else Status.NOT_AN_IMAGE
