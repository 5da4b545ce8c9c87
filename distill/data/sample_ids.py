"""Sample ids: the 128-bit hash of a sample's key, the name a sample has in every part of distill.

An id depends on the key alone, so it survives re-sharding, re-ordering and moving the data. Rows of
a store stand in ascending order of id: a random permutation of the dataset that needs no table, and
in which a sample is found by binary search.
"""

import hashlib
import unicodedata
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

SampleIds = NDArray[np.uint64]  # [n, 2]: high and low 64 bits


def normal_key(key: str) -> str:
    """A key as it counts: in Unicode's NFC, which Macs do not use for names, and without ./ first.

    `tar cf x.tar .` writes names with it.
    """
    while key.startswith("./"):
        key = key[2:].lstrip("/")
    return key if key.isascii() else unicodedata.normalize("NFC", key)


def sample_ids(keys: Iterable[str]) -> SampleIds:
    """[n, 2] uint64: BLAKE2b-128 of each normal key's UTF-8 bytes, big-endian, high word first."""
    digests = bytearray()
    for key in keys:
        encoded = normal_key(key).encode("utf-8", "surrogatepass")
        digests += hashlib.blake2b(encoded, digest_size=16).digest()
    words = np.frombuffer(digests, dtype=">u8").reshape(-1, 2)
    return words.astype(np.uint64)


def samples_digest(ids: SampleIds, labels: NDArray[np.int64]) -> str:
    """SHA-256 over ascending ids and class indices: which images, tagged as what."""
    digest = hashlib.sha256(np.ascontiguousarray(ids, dtype="<u8").data)
    digest.update(np.ascontiguousarray(labels, dtype="<i8").data)
    return digest.hexdigest()


def ascending(ids: SampleIds) -> NDArray[np.int64]:
    """[n]: the positions of `ids` in ascending order."""
    return np.lexsort((ids[:, 1], ids[:, 0])).astype(np.int64)


def find_rows(sorted_ids: SampleIds, wanted: SampleIds) -> NDArray[np.int64]:
    """[m]: the row of each wanted id in ascending `sorted_ids` [n, 2], -1 where it is absent."""
    if len(sorted_ids) == 0:
        return np.full(len(wanted), -1, np.int64)
    rows = np.searchsorted(sorted_ids[:, 0], wanted[:, 0]).astype(np.int64)
    rows = np.minimum(rows, len(sorted_ids) - 1)
    matches = (sorted_ids[rows] == wanted).all(axis=1)
    # Two ids that share their high word are a one in 10^5 event at 12 M rows: look on, one by one.
    for i in np.flatnonzero(~matches):
        row = int(rows[i])
        while row + 1 < len(sorted_ids) and sorted_ids[row, 0] == wanted[i, 0]:
            row += 1
            if (sorted_ids[row] == wanted[i]).all():
                rows[i], matches[i] = row, True
                break
    return np.where(matches, rows, -1)
