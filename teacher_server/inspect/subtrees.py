"""Figures per class and per subtree: how many images are tagged there, and what of the teacher's
answer agrees with them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.teacher_server.inspect.findings import TagFindings
from distill.teacher_server.inspect.statistics import UNITS, Beliefs, RowState
from distill.teacher_server.inspect.tree import ClassTree


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


# Of a class: `tagged` with this very class, the others summed over its subtree.
SUMS = np.dtype(
    [
        *((name, np.int64) for name in ("tagged", "images", "answered", "missing", "suspect")),
        *((name, np.float64) for name in ("tag_prob", "agreed", "confidence")),
    ]
)


@dataclass(frozen=True, eq=False)
class Subtrees:
    """sums: [C] of SUMS, by class index."""

    tree: ClassTree
    sums: NDArray[Any]

    def of(self, c: int) -> SubtreeFigures:
        """The figures of a class."""
        hierarchy, here, sums = self.tree.hierarchy, self.tree.subtree(c), self.sums[c]
        level, answered = int(hierarchy.levels[c]), int(sums["answered"])
        seen = answered > 0 and level < hierarchy.num_hierarchies

        def mean(name: str) -> float | None:
            return float(sums[name] / answered) if seen else None

        return SubtreeFigures(
            wnid=hierarchy.synsets[c],
            name=self.tree.name(c),
            hierarchy=level,
            classes=here.stop - here.start,
            images=int(sums["images"]),
            tagged_here=int(sums["tagged"]),
            answered=answered,
            missing=int(sums["missing"]),
            suspect=int(sums["suspect"]),
            tag_prob=mean("tag_prob"),
            agreed=mean("agreed"),
            confidence=mean("confidence"),
        )


def sums_by_subtree(
    beliefs: Beliefs, labels: NDArray[np.int64], tree: ClassTree, tag_findings: TagFindings
) -> NDArray[Any]:
    """[C] of SUMS. Every image counts for its tag's class and each ancestor."""
    hierarchy, classes = tree.hierarchy, tree.hierarchy.num_classes
    sums = np.zeros(classes, SUMS)

    def count(tags: NDArray[np.int64]) -> NDArray[Any]:
        return np.bincount(tags, minlength=classes)

    sums["tagged"] = count(labels[labels >= 0])
    sums["images"] = tree.summed(sums["tagged"])
    sums["missing"] = tree.summed(count(labels[tag_findings.missing.rows]))
    sums["suspect"] = tree.summed(count(labels[tag_findings.suspect.rows]))
    answered = np.zeros(classes, np.int64)
    for first, images in beliefs.by_block():
        tags = labels[first : first + len(images)]
        here = np.flatnonzero((images["known"] == RowState.ANSWER) & (tags >= 0))
        some, tags = images[here], tags[here]
        answered += count(tags)
        positions = hierarchy.label_table[tags]
        for k, part in enumerate(hierarchy.slices):
            at = np.flatnonzero(positions[:, k] >= 0)
            c = hierarchy.class_order[part][positions[at, k]]
            for name, values in (
                ("tag_prob", some["tag_prob"][at, k] / UNITS),
                ("agreed", some["top"][at, k] == positions[at, k]),
                ("confidence", some["confidence"][at, k] / UNITS),
            ):
                sums[name] += np.bincount(c, values, minlength=classes)
    sums["answered"] = tree.summed(answered)
    return sums
