"""Tags that a teacher would add or take back, found from what it believes of each image.

Owns the two rules, nothing of how they are shown. A *missing* tag: the teacher agrees with the tag
and is sure of a class below it. A *suspect* tag: the teacher is sure of another class somewhere on
the tag's own path.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.errors import ConfigError
from distill.hierarchy.semantic import SemanticHierarchy
from distill.teacher_server.inspect.statistics import UNITS, Beliefs, Images, RowState

FORMAT = "verdicts 1"  # of what is kept; another one where the rules below change


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
        if not 0 < self.suspect_above < math.inf:
            raise ConfigError(
                f"suspect_above {self.suspect_above} found, expected a number above 0"
            )


class Verdict(IntEnum):
    """On one image's tag."""

    NOT_JUDGED = 0  # no tag, or no answer
    GOOD = 1
    MISSING = 2  # one below it
    SUSPECT = 3


# proposed: class index of a missing tag, or of what the teacher sees instead of a suspect one.
# score: of the finding, larger is clearer; 0 where there is none.
VERDICTS = np.dtype([("verdict", np.uint8), ("proposed", np.int32), ("score", np.float32)])


@dataclass(frozen=True, eq=False)
class Findings:
    """rows: of the images, the clearest first. score, proposed: as in VERDICTS."""

    rows: NDArray[np.int64]
    score: NDArray[Any]
    proposed: NDArray[Any]

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, eq=False)
class TagFindings:
    """verdicts: [rows] of VERDICTS."""

    verdicts: NDArray[Any]

    @cached_property
    def judged(self) -> int:
        """Images with a tag and an answer."""
        return int(np.count_nonzero(self.verdicts["verdict"]))

    @cached_property
    def missing(self) -> Findings:
        """Tags to add."""
        return self._all(Verdict.MISSING)

    @cached_property
    def suspect(self) -> Findings:
        """Tags that are contradicted."""
        return self._all(Verdict.SUSPECT)

    def _all(self, verdict: Verdict) -> Findings:
        rows = np.flatnonzero(self.verdicts["verdict"] == verdict)
        chosen = self.verdicts[rows]
        order = np.argsort(-chosen["score"], kind="stable")
        return Findings(rows[order], chosen["score"][order], chosen["proposed"][order])


def find_tags(
    beliefs: Beliefs, labels: NDArray[np.int64], hierarchy: SemanticHierarchy, rules: Rules
) -> Iterator[tuple[int, NDArray[Any]]]:
    """A block at a time: the first image's row, and VERDICTS. labels: [rows], class index or -1."""
    for first, images in beliefs.by_block():
        tags = labels[first : first + len(images)]
        verdicts = np.zeros(len(images), VERDICTS)
        judged = np.flatnonzero((images["known"] == RowState.ANSWER) & (tags >= 0))
        verdicts[judged] = _judge(images[judged], tags[judged], hierarchy, rules)
        yield first, verdicts


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


def _judge(
    images: Images, tags: NDArray[np.int64], hierarchy: SemanticHierarchy, rules: Rules
) -> NDArray[Any]:
    """[n] of VERDICTS. A suspect tag is not added to."""
    verdicts = np.zeros(len(tags), VERDICTS)
    verdicts["verdict"] = Verdict.GOOD
    ends, prob = _added(images, tags, hierarchy, rules.missing_above)
    seen, sure, score = _seen_instead(images, tags, hierarchy, rules.missing_above)
    missing = ends != tags
    suspect = (seen >= 0) & (score >= rules.suspect_above) & (sure >= rules.sure_above)
    for verdict, where, proposed, scores in (
        (Verdict.MISSING, missing, ends, prob),
        (Verdict.SUSPECT, suspect, seen, score),
    ):
        verdicts["verdict"][where] = verdict
        verdicts["proposed"][where], verdicts["score"][where] = proposed[where], scores[where]
    return verdicts


def _added(
    images: Images, tags: NDArray[np.int64], hierarchy: SemanticHierarchy, above: float
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The deepest class that the teacher is sure of below a tag that it agrees with; or the tag."""
    tag_levels = np.minimum(hierarchy.levels[tags], hierarchy.num_hierarchies - 1)
    agreed = (
        images["top"][np.arange(len(tags)), tag_levels] == hierarchy.label_table[tags, tag_levels]
    )
    ends, least = _walked_down(images, tags, hierarchy, above)
    return np.where(agreed, ends, tags), least


def _seen_instead(
    images: Images, tags: NDArray[np.int64], hierarchy: SemanticHierarchy, above: float
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """What contradicts each tag most surely, as deep as the teacher is sure of it, -1 for nothing.

    Its probability where it contradicts, and how far it does.
    """
    positions = hierarchy.label_table[tags]
    contradicted = (positions >= 0) & (images["top"] != positions)
    surest: Any = np.where(contradicted, images["top_prob"], 0)
    each, level = np.arange(len(tags)), surest.argmax(1)
    starts = top_classes(images, hierarchy)[each, level]
    ends, _ = _walked_down(images, starts, hierarchy, above)
    seen = np.where(contradicted.any(1), ends, -1)
    return seen, surest[each, level] / UNITS, contradiction(images, positions >= 0)


def _walked_down(
    images: Images, starts: NDArray[np.int64], hierarchy: SemanticHierarchy, above: float
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """From a class of each image along the teacher's first choices, as long as it is sure.

    Where that ends, and the least probability on the way.
    """
    parents, levels = np.array(hierarchy.parents), hierarchy.levels
    tops, probs = top_classes(images, hierarchy), images["top_prob"] / UNITS
    ends, least = starts.copy(), np.ones(len(starts))
    for k in range(hierarchy.num_hierarchies):
        below = (levels[ends] == k - 1) & (parents[tops[:, k]] == ends)
        goes_on = below & (probs[:, k] >= above)
        ends = np.where(goes_on, tops[:, k], ends)
        least = np.where(goes_on, np.minimum(least, probs[:, k]), least)
    return ends, least
