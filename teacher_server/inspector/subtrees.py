"""Figures per class and per subtree: how many images are tagged there, and what of the teacher's
answer agrees with them."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from distill.hierarchy import SemanticHierarchy
from teacher_server.inspector.beliefs import UNITS, Beliefs, Known
from teacher_server.inspector.findings import TagFindings
from teacher_server.inspector.tree import ClassTree


@dataclass(frozen=True, kw_only=True)
class SubtreeFigures:
    """A class and all below it.

    images: tagged in the subtree; tagged_here: with this very class.
    missing, suspect: of those images. answered: images of it that the teacher saw.
    tag_prob: mean probability of the class, over the answered images of the subtree.
    agreed: share of them whose most probable class of this hierarchy is this one.
    confidence: mean P_k of them in the class's hierarchy. The three are None where no image was
    seen, or the class is of the dropped level.
    """

    wnid: str
    name: str
    hierarchy: int
    classes: int
    images: int
    tagged_here: int
    answered: int
    missing: int
    suspect: int
    tag_prob: float | None
    agreed: float | None
    confidence: float | None


@dataclass(frozen=True, eq=False)
class Subtrees:
    """Sums by class index; of a subtree each."""

    tree: ClassTree
    tagged: NDArray[np.int64]  # with this very class
    sums: dict[str, NDArray[np.float64]]

    @property
    def hierarchy(self) -> SemanticHierarchy:
        """Of those classes."""
        return self.tree.hierarchy

    @cached_property
    def _images(self) -> NDArray[np.int64]:
        return self.tree.summed(self.tagged)

    def of(self, c: int) -> SubtreeFigures:
        """The figures of a class."""
        here, level = self.tree.subtree(c), int(self.hierarchy.levels[c])
        answered = int(self.sums["answered"][c])
        seen = answered > 0 and level < self.hierarchy.num_hierarchies

        def mean(name: str) -> float | None:
            return float(self.sums[name][c] / answered) if seen else None

        return SubtreeFigures(
            wnid=self.hierarchy.synsets[c],
            name=self.hierarchy.display_name(self.hierarchy.synsets[c]),
            hierarchy=level,
            classes=here.stop - here.start,
            images=int(self._images[c]),
            tagged_here=int(self.tagged[c]),
            answered=answered,
            missing=int(self.sums["missing"][c]),
            suspect=int(self.sums["suspect"][c]),
            tag_prob=mean("tag_prob"),
            agreed=mean("agreed"),
            confidence=mean("confidence"),
        )


def figures_by_subtree(
    beliefs: Beliefs, labels: NDArray[np.int64], tree: ClassTree, found: TagFindings
) -> Subtrees:
    """Over all images with a tag. Every image counts for its tag's class and each ancestor."""
    hierarchy, classes = tree.hierarchy, tree.hierarchy.num_classes
    sums = {n: np.zeros(classes) for n in ("answered", "tag_prob", "agreed", "confidence")}
    members = np.full((hierarchy.num_hierarchies, max(hierarchy.classes_per_hierarchy)), 0)
    for k, part in enumerate(hierarchy.slices):
        members[k, : part.stop - part.start] = hierarchy.class_order[part]
    dropped = np.zeros(classes, np.int64)
    for first, images in beliefs.by_block():
        tags = labels[first : first + len(images)]
        here = np.flatnonzero((images["known"] == Known.ANSWER) & (tags >= 0))
        some, tags = images[here], tags[here]
        positions = hierarchy.label_table[tags]
        for k in range(hierarchy.num_hierarchies):
            at = np.flatnonzero(positions[:, k] >= 0)
            c = members[k, positions[at, k]]
            sums["answered"] += np.bincount(c, minlength=classes)
            for name, values in (
                ("tag_prob", some["tag_prob"][at, k] / UNITS),
                ("agreed", some["top"][at, k] == positions[at, k]),
                ("confidence", some["confidence"][at, k] / UNITS),
            ):
                sums[name] += np.bincount(c, values, minlength=classes)
        dropped += np.bincount(
            tags[hierarchy.levels[tags] >= hierarchy.num_hierarchies], minlength=classes
        )
    sums["answered"] += dropped
    for name in ("missing", "suspect"):
        counts = np.bincount(labels[getattr(found, name).rows], minlength=classes)
        sums[name] = tree.summed(counts)
    return Subtrees(tree, np.bincount(labels[labels >= 0], minlength=classes), sums)
