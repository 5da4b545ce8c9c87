"""Check images in a worker process: whether they decode, digest, perceptual hash."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from distill.data.formats.samples import Sample
from distill.data.images import decode_image, read_all
from distill.errors import DataError, DataUnavailableError


@dataclass(frozen=True, kw_only=True)
class CheckUnit:
    """first: the row of the first sample. hashed: whether perceptual hashes are wanted."""

    first: int
    samples: Sequence[Sample]
    hashed: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class CheckedUnit:
    """digests: [n, 2] BLAKE2b-128 of each file. hashes: perceptual ones, 0 where not wanted.

    reasons: why an image cannot be read, by its place in the unit.
    """

    first: int
    digests: NDArray[np.uint64]
    hashes: NDArray[np.uint64]
    reasons: Mapping[int, str]
    bytes_total: int


def check_unit(unit: CheckUnit) -> CheckedUnit:
    """Read and decode the images of a unit.

    Raises:
        DataUnavailableError: the disk or the network does not answer now.
    """
    digests = np.zeros((len(unit.samples), 2), np.uint64)
    hashes = np.zeros(len(unit.samples), np.uint64)
    reasons: dict[int, str] = {}
    total = 0
    for i, read in enumerate(read_all(unit.samples)):
        try:
            content = read()
            image = decode_image(content)
        except DataUnavailableError:
            raise
        except DataError as error:
            reasons[i] = str(error)
            continue
        total += len(content)
        digest = hashlib.blake2b(content, digest_size=16).digest()
        digests[i] = np.frombuffer(digest, np.uint64)
        if unit.hashed:
            hashes[i] = _perceptual(image)
    return CheckedUnit(
        first=unit.first, digests=digests, hashes=hashes, reasons=reasons, bytes_total=total
    )


def _perceptual(image: Image.Image) -> int:
    """imagehash's pHash: signs of the low frequencies of a 32 × 32 grey picture, 64 bits."""
    import imagehash

    bits = imagehash.phash(image).hash.flatten()
    return int.from_bytes(np.packbits(bits).tobytes(), "big")
