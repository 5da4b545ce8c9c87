"""Check images or clips in a worker process: whether they decode, digest, perceptual hash."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from distill.data.clips import read_clip
from distill.data.formats.samples import Sample
from distill.data.images import decode_image, read_all
from distill.errors import DataError, DataUnavailableError


@dataclass(frozen=True, kw_only=True)
class CheckUnit:
    """first: the row of the first sample. hashed: whether perceptual hashes are wanted.

    frames: of each clip, from equal parts of it; 0 of images.
    """

    first: int
    samples: Sequence[Sample]
    hashed: bool
    frames: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class CheckedUnit:
    """digests: [n, 2] BLAKE2b-128 of each file, of a clip of its frames' pixels.

    hashes: perceptual ones, of a clip that of its middle; 0 where not wanted. reasons: why one
    cannot be read, by its place in the unit. bytes_total: of the files of images.
    """

    first: int
    digests: NDArray[np.uint64]
    hashes: NDArray[np.uint64]
    reasons: Mapping[int, str]
    bytes_total: int


def check_unit(unit: CheckUnit) -> CheckedUnit:
    """Read and decode the images or clips of a unit.

    Raises:
        DataUnavailableError: the disk or the network does not answer now.
    """
    digests = np.zeros((len(unit.samples), 2), np.uint64)
    hashes = np.zeros(len(unit.samples), np.uint64)
    reasons: dict[int, str] = {}
    total = 0
    for i, read in enumerate(_reads(unit)):
        try:
            content, image = read()
        except DataUnavailableError:
            raise
        except DataError as error:
            reasons[i] = str(error)
            continue
        total += 0 if unit.frames else len(content)
        digest = hashlib.blake2b(content, digest_size=16).digest()
        digests[i] = np.frombuffer(digest, np.uint64)
        if unit.hashed:
            hashes[i] = _perceptual(image)
    return CheckedUnit(
        first=unit.first, digests=digests, hashes=hashes, reasons=reasons, bytes_total=total
    )


def _reads(unit: CheckUnit) -> list[Callable[[], tuple[bytes, Image.Image]]]:
    """A call for each sample: what tells it from others, and the picture that it shows."""
    if unit.frames:
        return [partial(_clip, sample, unit.frames) for sample in unit.samples]
    return [partial(_image, read) for read in read_all(unit.samples)]


def _image(read: Callable[[], bytes]) -> tuple[bytes, Image.Image]:
    content = read()
    return content, decode_image(content)


def _clip(sample: Sample, frames: int) -> tuple[bytes, Image.Image]:
    pictures = read_clip(sample, [(i + 0.5) / frames for i in range(frames)], whole=True)
    shown = b"".join(repr(picture.size).encode() + picture.tobytes() for picture in pictures)
    return shown, pictures[frames // 2]


def _perceptual(image: Image.Image) -> int:
    """imagehash's pHash: signs of the low frequencies of a 32 × 32 grey picture, 64 bits."""
    import imagehash

    bits = imagehash.phash(image).hash.flatten()
    return int.from_bytes(np.packbits(bits).tobytes(), "big")
