"""Figures per hierarchy: how sure the teacher is, how steady, how much of its answer is kept."""

from dataclasses import dataclass

import numpy as np

from distill.hierarchy.semantic import SemanticHierarchy
from distill.teacher_server.inspect.statistics import CONFIDENCE_BINS, Beliefs

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
SUMMED = ("confidence_sum", "entries", "mass", "sq_norm", "labelled", "same_top", "change")
NO_QUANTILES = (None,) * len(QUANTILES)


@dataclass(frozen=True, kw_only=True)
class HierarchyFigures:
    """One hierarchy of one store. Confidence is the teacher's own, without the label clause.

    confidence_quantiles: at QUANTILES, to 1 / CONFIDENCE_BINS.
    labelled: share of the images whose tag says something there.
    kept_entries: mean number of stored entries; kept_mass: their mean share of the probability.
    effective_classes: 1 / mean ΣT², how many classes an answer spreads over.
    same_top: share of successive views of one image with the same most probable class;
    confidence_change: mean |ΔP_k| between them. None where images have one view. Where there is no
    answer at all, None stands for every figure of answers.
    """

    hierarchy: int
    classes: int
    confidence_mean: float | None
    confidence_quantiles: tuple[float | None, ...]
    confidence_histogram: tuple[int, ...]  # of 50 equal parts, answers in each
    labelled: float | None
    kept_entries: float | None
    kept_mass: float | None
    effective_classes: float | None
    same_top: float | None
    confidence_change: float | None


def figures_by_hierarchy(beliefs: Beliefs, hierarchy: SemanticHierarchy) -> list[HierarchyFigures]:
    """Over all blocks that could be read, and all views."""
    answers, pairs = int(beliefs.total("answers")), int(beliefs.total("pairs"))
    images = int(beliefs.total("images"))
    counts = beliefs.total("confidence")
    total = {name: beliefs.total(name) for name in SUMMED}

    def mean(name: str, k: int, of: int) -> float | None:
        return float(total[name][k] / of) if of else None

    return [
        HierarchyFigures(
            hierarchy=k,
            classes=classes,
            confidence_mean=mean("confidence_sum", k, answers),
            confidence_quantiles=_quantiles(counts[k], answers),
            confidence_histogram=_in_parts(counts[k]),
            labelled=mean("labelled", k, images),
            kept_entries=mean("entries", k, answers),
            kept_mass=mean("mass", k, answers),
            effective_classes=_ratio(answers, total["sq_norm"][k]),
            same_top=mean("same_top", k, pairs),
            confidence_change=mean("change", k, pairs),
        )
        for k, classes in enumerate(hierarchy.classes_per_hierarchy)
    ]


def _quantiles(counts: np.ndarray, answers: int) -> tuple[float | None, ...]:
    if not answers:
        return NO_QUANTILES
    at = np.searchsorted(np.cumsum(counts), [q * answers for q in QUANTILES])
    return tuple(float(min(i, CONFIDENCE_BINS) / CONFIDENCE_BINS) for i in at)


def _in_parts(counts: np.ndarray, parts: int = 50) -> tuple[int, ...]:
    inner = counts[:-1].reshape(parts, -1).sum(1)
    inner[-1] += counts[-1]  # a confidence of 1
    return tuple(map(int, inner))


def _ratio(a: float, b: float) -> float | None:
    return float(a / b) if b else None
