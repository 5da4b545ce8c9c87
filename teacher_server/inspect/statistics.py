"""Statistics of a store: a short record per image, and their sums per block.

Owns the one pass that reads a store. What it finds is kept in a cache, a record a block with a
digest of what was read, so that nothing else here reads the store whole: no report and no page. A
block that is missing or damaged leaves its images unknown; it is tried again at the next opening.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import IntEnum
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.errors import CorruptStoreError
from distill.hierarchy.semantic import SemanticHierarchy
from distill.store.format.commits import Commit
from distill.store.logit_store import LogitStore
from distill.store.views.cache import Cache, Put
from distill.store.views.resident import decoders
from distill.targets.rows import TargetRows

UNITS = 65535  # a probability or a confidence of 1
CONFIDENCE_BINS = 1000
FORMAT = "beliefs 1"

Images = NDArray[Any]  # [n] of `image_dtype`


class RowState(IntEnum):
    """What is known of an image, or of a block."""

    NOTHING = 0  # no block says anything of it
    ANSWER = 1
    BAD = 2  # the teacher saw no image; the block is damaged


def image_dtype(hierarchies: int) -> np.dtype[Any]:
    """One image: means over its views, by hierarchy, in units of 1 / UNITS.

    top: the most probable class, by its position in the hierarchy; top_prob: its probability.
    tag_prob: the probability of what the image's own tag says there; 0 where it says nothing.
    confidence: the teacher's own P_k, without the label clause.
    """
    names = ("top", "top_prob", "tag_prob", "confidence")
    return np.dtype([("known", np.uint8), *((name, np.uint16, (hierarchies,)) for name in names)])


def block_dtype(hierarchies: int, block_rows: int) -> np.dtype[Any]:
    """A block: its images, and sums over them and their views.

    content: a digest of what it was read from; empty where nothing could be.
    answers: views of images that have an answer. pairs: of successive views of one image.
    confidence: how many answers have that confidence, [K, CONFIDENCE_BINS + 1].
    labelled: images whose tag says something there. same_top: pairs of one most probable class.
    entries, mass: how many were kept, and their probability. sq_norm: ΣT² of the whole answers.
    change: |ΔP_k| over pairs.
    """
    return np.dtype(
        [
            ("known", np.uint8),
            ("content", "S32"),
            *((name, np.int64) for name in ("images", "bad_images", "answers", "pairs")),
            ("confidence", np.int64, (hierarchies, CONFIDENCE_BINS + 1)),
            *((n, np.int64, (hierarchies,)) for n in ("labelled", "same_top", "entries")),
            *(
                (n, np.float64, (hierarchies,))
                for n in ("confidence_sum", "mass", "sq_norm", "change")
            ),
            ("image", image_dtype(hierarchies), (block_rows,)),
        ]
    )


@dataclass(frozen=True, eq=False)
class Beliefs:
    """blocks: [blocks] of `block_dtype`, memory-mapped. name: a digest of all it was read from."""

    name: str
    rows: int
    blocks: NDArray[Any]

    @property
    def is_complete(self) -> bool:
        """Whether every block could be read."""
        return bool((self.blocks["known"] == RowState.ANSWER).all())

    @property
    def block_rows(self) -> int:
        """Images of every block but the last."""
        return int(self.blocks["image"].shape[1])

    def images(self, rows: NDArray[np.int64]) -> Images:
        """Those images."""
        blocks, places = np.divmod(rows, self.block_rows)
        return self.blocks["image"][blocks, places]

    def by_block(self) -> Iterator[tuple[int, Images]]:
        """All images, a block at a time: the first one's row, and they."""
        for block, first in enumerate(range(0, self.rows, self.block_rows)):
            yield first, self.blocks["image"][block][: self.rows - first]

    def with_images(
        self, others: Sequence[tuple[NDArray[np.int64], Images]], names: Sequence[str]
    ) -> "Beliefs":
        """Nothing known but what `others` say: rows and images, of beliefs so named. In memory."""
        blocks = np.array(self.blocks)
        blocks["image"]["known"] = RowState.NOTHING
        for rows, images in others:
            blocks["image"][np.divmod(rows, self.block_rows)] = images
        return Beliefs(digest_of([self.name, *names]), self.rows, blocks)

    def total(self, name: str) -> NDArray[Any]:
        """One of the sums, over all blocks."""
        return np.asarray(self.blocks[name].sum(0))

    def blocks_that(self, known: RowState) -> list[int]:
        """The blocks of which that is known."""
        return [int(block) for block in np.flatnonzero(self.blocks["known"] == known)]


def open_beliefs(
    store: LogitStore,
    hierarchy: SemanticHierarchy,
    cache: Cache,
    *,
    read_block: Callable[[int], None] = lambda blocks: None,
) -> Beliefs:
    """From the cache, or read off the store, complete or not.

    Of a store that has grown or was mended since, only what is new is read.

    read_block: told 0 when reading begins, and 1 for each block; never, where nothing is read.

    Raises:
        StoreError: the store or the cache cannot be used.
    """
    manifest, commits = store.manifest, store.block_commits()
    wanted = np.zeros(manifest.num_blocks, "S32")
    for block, commit in commits.items():
        wanted[block] = digest_of(commit.digests).encode()
    dtype = block_dtype(hierarchy.num_hierarchies, manifest.block_rows)
    name = f"{digest_of([FORMAT, manifest.identity])}-beliefs"
    before: NDArray[Any] = np.zeros(0, dtype)
    was_read = False

    def read(put: Put) -> None:
        nonlocal was_read
        was_read = True
        read_block(0)
        kept = np.flatnonzero(before["content"] == wanted[: len(before)])
        for block in map(int, kept):
            put(block, before[block : block + 1])
        new = sorted(set(range(manifest.num_blocks)) - set(map(int, kept)))
        with ThreadPoolExecutor(decoders(store)) as pool:
            for block, record in zip(new, pool.map(record_of, new), strict=True):
                put(block, record)
                read_block(1)

    def record_of(block: int) -> NDArray[Any]:
        record = np.zeros(1, dtype)
        if block in commits:
            _read_block(record, store, hierarchy, block, commits[block])
            record["content"] = wanted[block] if record["known"] == RowState.ANSWER else b""
        return record

    blocks = cache.open(name, dtype, manifest.num_blocks, read)
    if not was_read and (blocks["content"] != wanted).any():
        before = blocks
        cache.forget(name)
        blocks = cache.open(name, dtype, manifest.num_blocks, read)
    contents = [content.decode() for content in blocks["content"].tolist()]
    return Beliefs(digest_of([name, *contents]), manifest.dataset.rows, blocks)


def digest_of(parts: Sequence[str]) -> str:
    """A name for what is made of them."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _read_block(
    record: NDArray[Any],
    store: LogitStore,
    hierarchy: SemanticHierarchy,
    block: int,
    commit: Commit,
) -> None:
    """Fill the one `record`."""
    manifest = store.manifest
    rows = manifest.rows_of_block(block)
    try:
        codes = [store.read_codes(block, v, commit) for v in range(manifest.views.count)]
    except CorruptStoreError:
        record["known"] = RowState.BAD
        return
    labels = hierarchy.label_table[store.labels[rows.start : rows.stop]]
    views = [manifest.coding.dequantise(each) for each in codes]
    record_statistics(record[0], views, labels, manifest.slots, hierarchy.classes_per_hierarchy)


def record_statistics(
    record: Any,
    views: Sequence[TargetRows],
    labels: NDArray[np.int64],
    slots: Sequence[int],
    sizes: Sequence[int],
) -> None:
    """Fill the record of a block from its answers by view.

    labels: [n, K], what each image's tag says in each hierarchy, negative where nothing.
    slots, sizes: S_k and N_k.
    """
    valid = np.stack([view.valid for view in views])  # [V, n]
    seen: NDArray[np.bool_] = np.logical_or.reduce(valid, axis=0)
    both = valid[1:] & valid[:-1]
    record["known"] = RowState.ANSWER
    record["images"], record["bad_images"] = len(seen), len(seen) - seen.sum()
    record["answers"], record["pairs"] = valid.sum(), both.sum()
    record["labelled"] = (labels >= 0).sum(0)
    for view in views:
        bins = np.rint(view.confidence[view.valid] * CONFIDENCE_BINS).astype(np.int64)
        for k in range(len(sizes)):
            record["confidence"][k] += np.bincount(bins[:, k], minlength=CONFIDENCE_BINS + 1)
        record["confidence_sum"] += view.confidence[view.valid].sum(0, dtype=np.float64)
        record["sq_norm"] += view.sq_norm[view.valid].sum(0, dtype=np.float64)
    for k, stop in enumerate(accumulate(slots)):
        part = slice(stop - slots[k], stop)
        kept = [view.prob.T[part] for view in views]
        record["entries"][k] = sum(int((prob > 0).sum()) for prob in kept)
        record["mass"][k] = sum(float(prob.sum(dtype=np.float64)) for prob in kept)
        tops = np.stack([view.index.T[stop - slots[k]] for view in views])
        record["same_top"][k] = ((tops[1:] == tops[:-1]) & both).sum()
    for before, after in pairwise(views):
        change = np.abs(after.confidence - before.confidence)[before.valid & after.valid]
        record["change"] += change.sum(0, dtype=np.float64)
    image = record["image"][: len(seen)]
    image["known"] = np.where(seen, RowState.ANSWER, RowState.BAD)
    weight = valid / np.maximum(1, valid.sum(0))  # of each view in the means, [V, n]
    confidence = sum(w[:, None] * view.confidence for w, view in zip(weight, views, strict=True))
    image["confidence"] = _in_units(confidence)
    for k, stop in enumerate(accumulate(slots)):
        mean = _MeanAnswer(views, weight, slice(stop - slots[k], stop), sizes[k])
        top, top_prob = mean.top()
        tagged = np.flatnonzero(labels[:, k] >= 0)
        tag_prob = mean.prob(labels[tagged, k], tagged)
        above = tag_prob > top_prob[tagged]  # no view's first choice, and yet that of their mean
        top[tagged[above]], top_prob[tagged[above]] = labels[tagged[above], k], tag_prob[above]
        image["top"][:, k], image["top_prob"][:, k] = top, _in_units(top_prob)
        image["tag_prob"][tagged, k] = _in_units(tag_prob)
    image[~seen] = np.array((RowState.BAD, 0, 0, 0, 0), image.dtype)


class _MeanAnswer:
    """The mean over views of what is said in one hierarchy."""

    def __init__(
        self,
        views: Sequence[TargetRows],
        weight: NDArray[np.float64],
        part: slice,
        size: int,
    ) -> None:
        # Slots first, as they are stored: a slot of all images is one piece of memory.
        self.index = [view.index.T[part] for view in views]
        self.kept = [view.prob.T[part] for view in views]
        self.weight, self.size = weight, size

    def prob(self, classes: NDArray[Any], rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """[m]: the probability of those classes for the images `rows`."""
        mean = np.zeros(len(rows))
        for index, kept, weight in zip(self.index, self.kept, self.weight, strict=True):
            prob = kept[:, rows]
            named = (index[:, rows] == classes) & (prob > 0)
            unkept = np.maximum(1, self.size - (prob > 0).sum(0))
            tail = np.maximum(0, 1 - prob.sum(0)) / unkept
            mean += weight[rows] * np.where(named.any(0), (prob * named).sum(0), tail)
        return mean

    def top(self) -> tuple[NDArray[Any], NDArray[np.float64]]:
        """[n], [n]: the class of the largest mean among those that are the top of some view."""
        everyone = np.arange(self.weight.shape[1])
        top = self.index[0][0].copy()
        top_prob = self.prob(top, everyone)
        for index in self.index[1:]:
            rivals = np.flatnonzero(index[0] != top)
            prob = self.prob(index[0][rivals], rivals)
            better = rivals[prob > top_prob[rivals]]
            top[better], top_prob[better] = index[0][better], prob[prob > top_prob[rivals]]
        return top, top_prob


def _in_units(values: Any) -> NDArray[np.uint16]:
    units: NDArray[np.uint16] = np.rint(np.clip(values, 0, 1) * UNITS).astype(np.uint16)
    return units
