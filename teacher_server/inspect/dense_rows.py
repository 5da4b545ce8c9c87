"""One answer in words: the most probable classes of each hierarchy, beside what the tag says."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.hierarchy.semantic import SemanticHierarchy
from distill.store.upkeep.compare import dense_probs
from distill.targets.encoding import Answers
from distill.targets.rows import TargetRows

CLASSES_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class ClassProb:
    """A class and its probability. tagged: it is on the path of the image's tag."""

    wnid: str
    name: str
    prob: float
    tagged: bool


@dataclass(frozen=True, kw_only=True)
class HierarchyAnswer:
    """One hierarchy's softmax. confidence: P_k, the teacher's own; None for a student.

    classes: the most probable ones, and the tag's if it is not among them.
    """

    hierarchy: int
    classes: tuple[ClassProb, ...]
    confidence: float | None

    @property
    def contradicts(self) -> bool:
        """The tag says something here, and it is not the first choice."""
        return any(c.tagged for c in self.classes) and not self.classes[0].tagged


def dense(
    rows: TargetRows, slots: Sequence[int], sizes: Sequence[int], answers: Answers = "softmax"
) -> NDArray[np.float64]:
    """[ΣN_k]: the mean over the valid ones of `rows`; what is not kept is spread evenly."""
    if not rows.valid.any():
        return np.zeros(sum(sizes))
    parts = dense_probs(rows.select(np.flatnonzero(rows.valid)), slots, sizes, answers)
    return np.concatenate([part.mean(0) for part in parts])


def in_words(
    probs: NDArray[Any],
    hierarchy: SemanticHierarchy,
    *,
    tag: int,
    confidence: NDArray[Any] | None = None,
    shown: int = CLASSES_SHOWN,
) -> list[HierarchyAnswer]:
    """probs: [ΣN_k] in hierarchy order. tag: class index, -1 without one. confidence: [K]."""
    positions = hierarchy.label_table[tag]
    predictions = []
    for k, part in enumerate(hierarchy.slices):
        order = np.argsort(-probs[part], kind="stable")[:shown]
        if positions[k] >= 0 and positions[k] not in order:
            order = np.append(order, positions[k])
        classes = hierarchy.class_order[part]
        predictions.append(
            HierarchyAnswer(
                hierarchy=k,
                classes=tuple(
                    ClassProb(
                        wnid=hierarchy.synsets[classes[p]],
                        name=hierarchy.display_name(hierarchy.synsets[classes[p]]),
                        prob=float(probs[part][p]),
                        tagged=bool(p == positions[k]),
                    )
                    for p in order
                ),
                confidence=None if confidence is None else float(confidence[k]),
            )
        )
    return predictions
