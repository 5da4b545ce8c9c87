"""How often a teacher agrees with the tags, beside what chance would give.

A wrong order of classes, a wrong normalisation and random weights all show here as chance.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.hierarchy.semantic import SemanticHierarchy
from distill.targets.rows import TargetRows

AGREEMENT_ROWS = 1024  # of the first rows, which are a fair sample
FEWEST = 30  # tags by which to doubt a teacher


@dataclass(frozen=True, kw_only=True)
class TagAgreement:
    """Per hierarchy. tagged: images with a tag there. agree: share whose most probable class is it.

    chance: the share that would agree if answers and tags had nothing to do with each other: the
    sum over classes of the share of tags times the share of answers, as in Cohen's kappa (1960).
    """

    tagged: tuple[int, ...]
    agree: tuple[float, ...]
    chance: tuple[float, ...]

    @property
    def total(self) -> tuple[int, float, float]:
        """Tags of all hierarchies together, the share that agrees, chance."""
        tags = sum(self.tagged)
        shares = (
            sum(n * share for n, share in zip(self.tagged, of_each, strict=True)) / max(1, tags)
            for of_each in (self.agree, self.chance)
        )
        return (tags, *shares)  # type: ignore[return-value]

    @property
    def is_doubtful(self) -> bool:
        """Below twice chance; where chance is high already, below half the way to all."""
        tags, agree, chance = self.total
        return tags >= FEWEST and agree < min(2 * chance, (1 + chance) / 2)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        tags, agree, chance = self.total
        return {
            "tagged": list(self.tagged),
            "agree": list(self.agree),
            "chance": list(self.chance),
            "total": {"tagged": tags, "agree": agree, "chance": chance},
            "doubtful": self.is_doubtful,
        }

    def lines(self) -> list[str]:
        """In words; the second is a warning."""
        tags, agree, chance = self.total
        if not tags:
            return ["agreement with the tags: not known, no image of the sample has one"]
        each = ", ".join(
            f"{k}: {share:.0%} ({by_chance:.0%})"
            for k, (n, share, by_chance) in enumerate(
                zip(self.tagged, self.agree, self.chance, strict=True)
            )
            if n
        )
        found = (
            f"agreement with the tags: {agree:.1%} of {tags}, by chance {chance:.1%}; "
            f"by hierarchy (chance): {each}"
        )
        doubt = (
            "WARNING: this teacher agrees with the tags hardly more than chance: check the order "
            "of its classes (--label-set, --head), its normalisation, and whether it is trained"
        )
        return [found, doubt] if self.is_doubtful else [found]


def agreement_of(
    predicted: TargetRows,
    labels: NDArray[np.int64],
    hierarchy: SemanticHierarchy,
    slots: Sequence[int],
) -> TagAgreement:
    """Compare each row's most probable classes with its tag and that tag's ancestors.

    labels: [n] class indices, -1 for none. slots: S_k; the first of each holds the most probable.
    """
    table = hierarchy.label_table[labels[predicted.valid]]
    tagged, agree, chance = [], [], []
    for k, start in enumerate(accumulate(slots[:-1], initial=0)):
        said = predicted.index[predicted.valid, start].astype(np.int64)
        tag = table[:, k]
        known = tag >= 0
        count, size = int(known.sum()), hierarchy.classes_per_hierarchy[k]
        shares = [
            np.bincount(values[known], minlength=size) / max(1, count) for values in (said, tag)
        ]
        tagged.append(count)
        agree.append(float((said == tag)[known].mean()) if count else 0.0)
        chance.append(float(shares[0] @ shares[1]))
    return TagAgreement(tagged=tuple(tagged), agree=tuple(agree), chance=tuple(chance))
