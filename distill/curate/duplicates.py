"""Pictures that a data set holds more than once: the same bytes, or looking alike."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

HASH_BITS = 64
PAIRS_AT_ONCE = 2**22


def equal_groups(digests: NDArray[np.uint64]) -> list[NDArray[np.int64]]:
    """The rows of each digest that more than one row has. digests: [n, 2]."""
    order = np.lexsort((digests[:, 1], digests[:, 0]))
    ordered = digests[order]
    return _runs(order, (ordered[1:] != ordered[:-1]).any(axis=1))


def near_groups(
    hashes: NDArray[np.uint64], rows: NDArray[np.int64], bits: int
) -> list[NDArray[np.int64]]:
    """Rows whose hashes are joined by steps of at most `bits` differing bits.

    hashes: perceptual ones, of `rows`. Two hashes that differ in at most b bits agree in one of
    b + 1 bands of bits (pigeonholes), so only those that share a band are compared.
    """
    values, inverse = np.unique(hashes, return_inverse=True)
    roots_of = np.arange(len(values))
    for left, right in _near_pairs(values, bits):
        _join(roots_of, left, right)
    roots = np.array([_root(roots_of, i) for i in range(len(values))], np.int64)
    groups = roots[inverse]
    order = np.argsort(groups, kind="stable")
    return [np.sort(rows[some]) for some in _runs(order, np.diff(groups[order]) != 0)]


def _runs(order: NDArray[np.int64], new: NDArray[np.bool_]) -> list[NDArray[np.int64]]:
    """The pieces of `order` of two and more, cut before element i + 1 wherever new[i]."""
    if not len(order):
        return []
    edges = np.concatenate([[0], np.flatnonzero(new) + 1, [len(order)]])
    long = np.flatnonzero(np.diff(edges) > 1)
    return [np.sort(order[edges[i] : edges[i + 1]]) for i in long]


def _near_pairs(values: NDArray[np.uint64], bits: int) -> Iterator[tuple[int, int]]:
    edges = np.linspace(0, HASH_BITS, bits + 2).astype(int)
    for low, high in pairwise(edges.tolist()):
        mask = np.uint64((1 << (high - low)) - 1)
        band = (values >> np.uint64(low)) & mask
        order = np.argsort(band, kind="stable")
        for bucket in _runs(order, np.diff(band[order]) != 0):
            yield from _pairs_within(values, bucket, bits)


def _pairs_within(
    values: NDArray[np.uint64], bucket: NDArray[np.int64], bits: int
) -> Iterator[tuple[int, int]]:
    rows_at_once = max(1, PAIRS_AT_ONCE // max(1, len(bucket)))
    for start in range(0, len(bucket) if len(bucket) > 1 else 0, rows_at_once):
        some = bucket[start : start + rows_at_once]
        differing = np.bitwise_count(values[some][:, None] ^ values[bucket][None, :])
        for left, right in np.argwhere(differing <= bits):
            if some[left] < bucket[right]:
                yield int(some[left]), int(bucket[right])


def _join(roots_of: NDArray[np.int64], left: int, right: int) -> None:
    a, b = _root(roots_of, left), _root(roots_of, right)
    roots_of[max(a, b)] = min(a, b)


def _root(roots_of: NDArray[np.int64], i: int) -> int:
    while roots_of[i] != i:
        roots_of[i] = roots_of[roots_of[i]]
        i = int(roots_of[i])
    return i


def pairs_of(groups: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """[pairs, 2]: the first row of each group with each other one of it."""
    pairs = [(group[0], other) for group in groups for other in group[1:]]
    return np.array(pairs, np.int64).reshape(-1, 2)
