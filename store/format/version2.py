"""Format 2, which is read and no more: one object a chunk, and `valid` as an array of its own.

`distill store transcode` makes a store of today of one.
"""

import hashlib

import numpy as np

from distill.errors import StoreError
from distill.store.format.chunks import decode_chunk
from distill.store.format.codes import ANSWER_ARRAYS, StoredBlock
from distill.store.format.damage import damage_named
from distill.store.format.manifest import Manifest
from distill.store.places.objects import Objects

VERSION = 2
ARRAYS = (*ANSWER_ARRAYS, "valid")
COMPACTED = ("content_sha256", "records")


def require_current(location: str, manifest: Manifest) -> None:
    """Before anything is written.

    Raises:
        StoreError: the store is of this format.
    """
    if manifest.version == VERSION:
        raise StoreError(
            f"{location}: format {VERSION} found, which is read but not written to; a complete "
            f"store goes on as `distill store transcode {location} --out NEW`, another one must be "
            "precomputed again"
        )


def read_block(
    objects: Objects, manifest: Manifest, block: int, view: int, digest: str
) -> StoredBlock:
    """A block of one view, as today's format has it.

    Raises:
        CorruptStoreError: a chunk is missing or damaged, or its content was not committed.
    """
    coding, rows = manifest.coding, len(manifest.rows_of_block(block))
    keys = [f"{n}/c/{block}/{view}{'' if n == 'valid' else '/0'}" for n in ARRAYS]
    stored = {}
    with damage_named(objects.location, f"block {block} of view {view}"):
        for name, content in zip(ARRAYS, objects.read_written(keys), strict=True):
            if content is None:
                raise ValueError(f"its chunk of {name} is missing")
            chunk = decode_chunk(
                content, coding.dtypes[name], coding.widths.get(name), manifest.block_rows
            )
            stored[name] = np.ascontiguousarray(chunk[..., :rows])
        content_digest = hashlib.sha256(b"".join(stored[name].tobytes() for name in ARRAYS))
        if content_digest.hexdigest() != digest:
            raise ValueError("it is not what was committed")
    valid, codes = stored.pop("valid"), stored["confidence"]
    stored["confidence"] = np.where(valid, codes + 1, 0).astype(codes.dtype)
    return stored
