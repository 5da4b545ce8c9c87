"""Images by tag, kind and confidence, a page at a time, without looking at all of them.

Images stand in the order of their tags' classes, depth first, so those of a subtree are a range;
missing and suspect tags stand by their score. From where a page ended the next one goes on.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from distill.errors import ConfigError
from distill.teacher_server.inspect.inspection import Inspection
from distill.teacher_server.inspect.statistics import UNITS, RowState

Kind = Literal["all", "missing", "suspect"]
KINDS: tuple[Kind, ...] = get_args(Kind)
IMAGES_A_PAGE = 48
LOOKED_AT_ONCE = 4096
MOST_LOOKED_AT = 2**18  # for one page; then it says how far it came


@dataclass(frozen=True, kw_only=True)
class GalleryFilter:
    """tag: class index, of it and all below it; None for any. confidence: least and most P_k of
    `hierarchy`; None of it for any.
    """

    kind: Kind = "all"
    tag: int | None = None
    hierarchy: int | None = None
    confidence: tuple[float, float] = (0.0, 1.0)


@dataclass(frozen=True)
class Page:
    """rows: to show. after: where the next page begins, None at the end. looked_at: images."""

    rows: tuple[int, ...]
    after: int | None
    looked_at: int


@dataclass(frozen=True, eq=False)
class Gallery:
    """Pages of the images of a store."""

    inspection: Inspection

    def page(self, wanted: GalleryFilter, start: int = 0, images: int = IMAGES_A_PAGE) -> Page:
        """The first images from `start` on that are wanted.

        Raises:
            ConfigError: no such hierarchy.
        """
        hierarchies = self.inspection.hierarchy.num_hierarchies
        if wanted.hierarchy is not None and not 0 <= wanted.hierarchy < hierarchies:
            raise ConfigError(
                f"hierarchy {wanted.hierarchy} found, expected 0 to {hierarchies - 1}"
            )
        order = self._order(wanted)
        collected: list[int] = []
        stop = min(len(order), start + MOST_LOOKED_AT)
        for first in range(start, stop, LOOKED_AT_ONCE):
            rows = order[first : min(first + LOOKED_AT_ONCE, stop)]
            places = np.flatnonzero(self._fits(rows, wanted))
            if len(collected) + len(places) > images:
                last = int(places[images - len(collected) - 1]) if images > len(collected) else -1
                collected += map(int, rows[places[: images - len(collected)]])
                return Page(tuple(collected), first + last + 1, first + last + 1 - start)
            collected += map(int, rows[places])
        return Page(tuple(collected), stop if stop < len(order) else None, max(0, stop - start))

    def _order(self, wanted: GalleryFilter) -> NDArray[np.int64]:
        """Candidates, the first to be shown first."""
        if wanted.kind != "all":
            rows: NDArray[np.int64] = getattr(self.inspection.tags, wanted.kind).rows
            return rows
        if wanted.tag is None:
            return self._by_tag
        ranks = self.inspection.tree.subtree(wanted.tag)
        return self._by_tag[self._begins[ranks.start] : self._begins[ranks.stop]]

    def _fits(self, rows: NDArray[np.int64], wanted: GalleryFilter) -> NDArray[np.bool_]:
        fits = np.ones(len(rows), np.bool_)
        if wanted.kind != "all" and wanted.tag is not None:
            ranks = self.inspection.tree.subtree(wanted.tag)
            rank = self.inspection.tree.rank[self.inspection.labels[rows]]
            fits &= (rank >= ranks.start) & (rank < ranks.stop)
        if wanted.hierarchy is not None:
            images = self.inspection.beliefs.images(rows)
            confidence = images["confidence"][:, wanted.hierarchy] / UNITS
            low, high = wanted.confidence
            fits &= (
                (images["known"] == RowState.ANSWER) & (confidence >= low) & (confidence <= high)
            )
        return fits

    @cached_property
    def _ranks(self) -> NDArray[np.int64]:
        """[rows]: of each image's tag; images without one stand behind all classes."""
        labels, classes = self.inspection.labels, self.inspection.hierarchy.num_classes
        return np.append(self.inspection.tree.rank, classes)[labels]

    @cached_property
    def _by_tag(self) -> NDArray[np.int64]:
        return np.argsort(self._ranks, kind="stable")

    @cached_property
    def _begins(self) -> NDArray[np.int64]:
        """[classes + 1]: where the images of each rank begin in `_by_tag`."""
        counts = np.bincount(self._ranks, minlength=self.inspection.hierarchy.num_classes + 1)
        return np.concatenate([[0], np.cumsum(counts)])[:-1]
