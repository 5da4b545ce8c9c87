"""Tags that a teacher would add or take back, found from what it believes of each image.

Owns the two rules, nothing of how they are shown. A *missing* tag: the teacher agrees with the tag
and is sure of a class below it. A *suspect* tag: the teacher is sure of another class somewhere on
the tag's own path.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.errors import ConfigError
from distill.hierarchy import SemanticHierarchy
from teacher_server.inspector.beliefs import UNITS, Beliefs, Images, Known


@dataclass(frozen=True, kw_only=True)
class Rules:
    """When a tag is missing or suspect.

    missing_above: least probability of every class that is added.
    suspect_above: least mean, over the tag's levels, of ln(p of the teacher's class / p of the
    tag's), in nats: how far the teacher contradicts the whole path.
    sure_above: least probability of the teacher's class at one level that is contradicted.
    """

    missing_above: float = 0.7
    suspect_above: float = 2.5
    sure_above: float = 0.3

    def __post_init__(self) -> None:
        for name in ("missing_above", "sure_above"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} {getattr(self, name)} found, expected 0 to 1")
        if not self.suspect_above > 0:
            raise ConfigError(f"suspect_above {self.suspect_above} found, expected above 0")


@dataclass(frozen=True, eq=False)
class Findings:
    """rows: of the images, the clearest first. score: of each, larger is clearer.

    proposed: class index of a missing tag; of a suspect one what the teacher sees instead, as deep
    as the tag is contradicted. level: of `proposed`.
    """

    rows: NDArray[np.int64]
    score: NDArray[np.float64]
    proposed: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    def of(self, row: int) -> tuple[float, int] | None:
        """Score and class for one image; None where nothing was found."""
        place = int(np.searchsorted(self.rows, row, sorter=self._by_row))
        if place == len(self) or self.rows[self._by_row[place]] != row:
            return None
        at = self._by_row[place]
        return float(self.score[at]), int(self.proposed[at])

    @cached_property
    def _by_row(self) -> NDArray[np.int64]:
        return np.argsort(self.rows)

    @classmethod
    def sorted(cls, parts: "list[Findings]") -> "Findings":
        """Of all blocks, by score; rows of one score ascending."""
        names = ("rows", "score", "proposed")
        joined = [np.concatenate([getattr(part, name) for part in parts]) for name in names]
        order = np.lexsort((joined[0], -joined[1]))
        return cls(*(each[order] for each in joined))


@dataclass(frozen=True, eq=False)
class TagFindings:
    """judged: images with a tag and an answer."""

    missing: Findings
    suspect: Findings
    judged: int


def find_tags(
    beliefs: Beliefs, labels: NDArray[np.int64], hierarchy: SemanticHierarchy, rules: Rules
) -> TagFindings:
    """Of every image whose tag can be judged. labels: [rows], class index or -1."""
    missing, suspect, judged = [], [], 0
    for first, images in beliefs.by_block():
        here = np.flatnonzero(
            (images["known"] == Known.ANSWER) & (labels[first : first + len(images)] >= 0)
        )
        rows, some = first + here, images[here]
        tags = labels[rows]
        judged += len(rows)
        missing.append(_missing(rows, some, tags, hierarchy, rules.missing_above))
        suspect.append(_suspect(rows, some, tags, hierarchy, rules))
    return TagFindings(Findings.sorted(missing), Findings.sorted(suspect), judged)


def top_classes(images: Images, hierarchy: SemanticHierarchy) -> NDArray[np.int64]:
    """[n, K]: the class index of the teacher's most probable class of each hierarchy."""
    starts = np.array([part.start for part in hierarchy.slices])
    classes: NDArray[np.int64] = hierarchy.class_order[starts + images["top"]]
    return classes


def contradiction(images: Images, tagged: NDArray[np.bool_]) -> NDArray[np.float64]:
    """[n]: mean over the tag's levels of ln(p of the teacher's class / p of the tag's), nats.

    0 where the teacher's first choice is the tag's path. tagged: [n, K], where a tag says anything.
    """
    top, tag = (np.maximum(images[name], 1).astype(np.float64) for name in ("top_prob", "tag_prob"))
    odds = np.where(tagged, np.log(top) - np.log(tag), 0.0)
    mean: NDArray[np.float64] = np.maximum(odds, 0).sum(1) / np.maximum(1, tagged.sum(1))
    return mean


def _missing(
    rows: NDArray[np.int64],
    images: Images,
    tags: NDArray[np.int64],
    hierarchy: SemanticHierarchy,
    above: float,
) -> Findings:
    """Walk down from the tag, as long as the teacher's first choice goes on below it."""
    parents, levels = np.array(hierarchy.parents), hierarchy.levels
    tops, probs = top_classes(images, hierarchy), images["top_prob"] / UNITS
    ends, score = tags.copy(), np.ones(len(tags))
    own = np.minimum(levels[tags], hierarchy.num_hierarchies - 1)
    first = images["top"][np.arange(len(tags)), own]
    agreed = first == hierarchy.label_table[tags, own]
    for k in range(hierarchy.num_hierarchies):
        below = agreed & (levels[ends] == k - 1) & (parents[tops[:, k]] == ends)
        goes_on = below & (probs[:, k] >= above)
        ends = np.where(goes_on, tops[:, k], ends)
        score = np.where(goes_on, np.minimum(score, probs[:, k]), score)
    found = np.flatnonzero(ends != tags)
    return Findings(rows[found], score[found], ends[found])


def _suspect(
    rows: NDArray[np.int64],
    images: Images,
    tags: NDArray[np.int64],
    hierarchy: SemanticHierarchy,
    rules: Rules,
) -> Findings:
    positions = hierarchy.label_table[tags]
    contradicted = (positions >= 0) & (images["top"] != positions)
    score = contradiction(images, positions >= 0)
    surest: Any = np.where(contradicted, images["top_prob"], 0)
    level = surest.argmax(1)
    sure = surest[np.arange(len(tags)), level] / UNITS
    found = np.flatnonzero(
        contradicted.any(1) & (score >= rules.suspect_above) & (sure >= rules.sure_above)
    )
    proposed = top_classes(images, hierarchy)[found, level[found]]
    return Findings(rows[found], score[found], proposed)
