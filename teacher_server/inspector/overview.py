"""Figures per hierarchy: how sure the teacher is, how steady, how much of its answer is kept."""

from dataclasses import dataclass

import numpy as np

from distill.hierarchy import SemanticHierarchy
from teacher_server.inspector.beliefs import CONFIDENCE_BINS, Beliefs

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
NO_QUANTILES = (0.0,) * len(QUANTILES)


@dataclass(frozen=True, kw_only=True)
class HierarchyFigures:
    """One hierarchy of one store. Confidence is the teacher's own, without the label clause.

    confidence_quantiles: at QUANTILES, to 1 / CONFIDENCE_BINS.
    labelled: share of the images whose tag says something there.
    kept_entries: mean number of stored entries; kept_mass: their mean share of the probability.
    effective_classes: 1 / mean ΣT², how many classes an answer spreads over.
    same_top: share of successive views of one image with the same most probable class;
    confidence_change: mean |ΔP_k| between them. None where images have one view.
    """

    hierarchy: int
    classes: int
    confidence_mean: float
    confidence_quantiles: tuple[float, ...]
    confidence_histogram: tuple[int, ...]  # of 50 equal parts, answers in each
    labelled: float
    kept_entries: float
    kept_mass: float
    effective_classes: float
    same_top: float | None
    confidence_change: float | None


def figures_by_hierarchy(beliefs: Beliefs, hierarchy: SemanticHierarchy) -> list[HierarchyFigures]:
    """Over all blocks that could be read, and all views."""
    answers, pairs = int(beliefs.total("answers")), int(beliefs.total("pairs"))
    images = max(1, int(beliefs.total("images")))
    mean = {
        name: beliefs.total(name) / max(1, answers)
        for name in ("confidence_sum", "entries", "mass", "sq_norm")
    }
    counts, labelled = beliefs.total("confidence"), beliefs.total("labelled") / images
    same_top, change = (beliefs.total(name) / max(1, pairs) for name in ("same_top", "change"))
    return [
        HierarchyFigures(
            hierarchy=k,
            classes=classes,
            confidence_mean=float(mean["confidence_sum"][k]),
            confidence_quantiles=_quantiles(counts[k], answers),
            confidence_histogram=_in_parts(counts[k]),
            labelled=float(labelled[k]),
            kept_entries=float(mean["entries"][k]),
            kept_mass=float(mean["mass"][k]),
            effective_classes=float(1 / mean["sq_norm"][k]) if mean["sq_norm"][k] else 0.0,
            same_top=float(same_top[k]) if pairs else None,
            confidence_change=float(change[k]) if pairs else None,
        )
        for k, classes in enumerate(hierarchy.classes_per_hierarchy)
    ]


def _quantiles(counts: np.ndarray, answers: int) -> tuple[float, ...]:
    if not answers:
        return NO_QUANTILES
    at = np.searchsorted(np.cumsum(counts), [q * answers for q in QUANTILES])
    return tuple(float(min(i, CONFIDENCE_BINS) / CONFIDENCE_BINS) for i in at)


def _in_parts(counts: np.ndarray, parts: int = 50) -> tuple[int, ...]:
    inner = counts[:-1].reshape(parts, -1).sum(1)
    inner[-1] += counts[-1]  # a confidence of 1
    return tuple(map(int, inner))
