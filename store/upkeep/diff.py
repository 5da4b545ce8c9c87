"""Compare two stores: their manifests and their predictions."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.data.sample_ids import find_rows
from distill.store.logit_store import LogitStore
from distill.store.upkeep.compare import angles_apart, dense_probs
from distill.store.upkeep.reader import RowReader

ROWS_AT_ONCE = 1024


@dataclass(frozen=True, kw_only=True)
class HierarchyDifference:
    """One hierarchy in one view, over the rows that both stores hold.

    top1_agreement: share of rows with the same first class. distance: ‖T − T′‖₂ of all
    probabilities. confidence: |P − P′|.
    """

    view: int
    hierarchy: int
    top1_agreement: float
    distance_mean: float
    distance_max: float
    confidence_mean: float
    confidence_max: float


@dataclass(frozen=True, kw_only=True)
class StoreDifference:
    """manifest: dotted name → the two values, where they differ.

    answers_equal: both have the same rows, labels and views, and the same answers byte for byte.
    rows_apart: that only one could read. angle_deg: between the KD gradients of a student that
    knows nothing, over rows and views. per_hierarchy: empty where nothing is to be compared.
    """

    manifest: dict[str, tuple[Any, Any]]
    answers_equal: bool
    rows_only_in_first: int
    rows_only_in_second: int
    rows_in_both: int
    labels_that_differ: int
    views_in_both: tuple[int, ...]
    rows_apart: int
    angle_deg: dict[str, float] | None
    per_hierarchy: tuple[HierarchyDifference, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def diff(first: LogitStore, second: LogitStore) -> StoreDifference:
    """Compare two complete stores: by digests where they suffice, row by row elsewhere.

    Raises:
        IncompleteStoreError: one of them lacks blocks.
    """
    for store in (first, second):
        store.require_complete()
    a, b = first.manifest, second.manifest
    manifest = _different(_flat(a.to_json()), _flat(b.to_json()))
    same_questions = (a.dataset, a.views, a.hierarchy, a.answers, a.encoding, a.block_rows) == (
        *(b.dataset, b.views, b.hierarchy, b.answers, b.encoding, b.block_rows),
    )
    if same_questions and first.content_digests() == second.content_digests():
        return StoreDifference(
            manifest=manifest,
            answers_equal=True,
            rows_only_in_first=0,
            rows_only_in_second=0,
            rows_in_both=a.dataset.rows,
            labels_that_differ=0,
            views_in_both=a.views.drawn,
            rows_apart=0,
            angle_deg=None,
            per_hierarchy=(),
        )
    places = find_rows(second.sample_ids, first.sample_ids)
    mine = np.flatnonzero(places >= 0)
    theirs = places[mine]
    drawn = [set(m.views.drawn) for m in (a, b)] if a.views.policy == b.views.policy else [set()]
    views = sorted(set.intersection(*drawn))
    same_kind = a.hierarchy.digest == b.hierarchy.digest and a.answers == b.answers
    comparable = same_kind and len(mine) > 0
    tally = _Tally(first, second)
    for view in views if comparable else []:
        tally.add(view, mine, theirs)
    labels_that_differ = int((first.labels[mine] != second.labels[theirs]).sum())
    only = len(first.sample_ids) - len(mine), len(second.sample_ids) - len(mine)
    same_rows_and_views = only == (0, 0) and labels_that_differ == 0 and a.views == b.views
    return StoreDifference(
        manifest=manifest,
        answers_equal=same_rows_and_views and tally.equal and comparable,
        rows_only_in_first=only[0],
        rows_only_in_second=only[1],
        rows_in_both=len(mine),
        labels_that_differ=labels_that_differ,
        views_in_both=tuple(views),
        rows_apart=tally.rows_apart,
        angle_deg=tally.angles(),
        per_hierarchy=tuple(tally.per_hierarchy),
    )


class _Tally:
    """Distances over the rows of one view after the other."""

    def __init__(self, first: LogitStore, second: LogitStore) -> None:
        self.stores = first, second
        self.sizes = first.manifest.hierarchy.classes_per_hierarchy
        self.answers = first.manifest.answers
        self.equal, self.rows_apart = True, 0
        self.per_hierarchy: list[HierarchyDifference] = []
        self._angles: list[NDArray[np.float64]] = []

    def add(self, view: int, mine: NDArray[np.int64], theirs: NDArray[np.int64]) -> None:
        """A view, by its drawn number."""
        readers = [RowReader(s, view - s.manifest.views.first) for s in self.stores]
        hierarchies = len(self.sizes)
        agree, counted = np.zeros(hierarchies), 0
        distance, confidence = np.zeros((2, hierarchies)), np.zeros((2, hierarchies))
        # By distance, then by confidence: the sum and the maximum of each hierarchy.
        for start in range(0, len(mine), ROWS_AT_ONCE):
            span = slice(start, start + ROWS_AT_ONCE)
            answers = [
                store.manifest.coding.dequantise(reader.rows(rows[span]))
                for store, reader, rows in zip(self.stores, readers, (mine, theirs), strict=True)
            ]
            both = answers[0].valid & answers[1].valid
            self.rows_apart += int((answers[0].valid != answers[1].valid).sum())
            answers = [each.select(np.flatnonzero(both)) for each in answers]
            dense = [
                dense_probs(each, store.manifest.slots, self.sizes, self.answers)
                for each, store in zip(answers, self.stores, strict=True)
            ]
            counted += int(both.sum())
            for k, (p, q) in enumerate(zip(*dense, strict=True)):
                agree[k] += (p.argmax(1) == q.argmax(1)).sum()
                apart = np.sqrt(((p - q) ** 2).sum(1))
                distance[0, k] += apart.sum()
                distance[1, k] = max(distance[1, k], apart.max(initial=0))
            between = np.abs(answers[0].confidence - answers[1].confidence)
            confidence[0] += between.sum(0)
            confidence[1] = np.maximum(confidence[1], between.max(0, initial=0))
            confidences = answers[0].confidence, answers[1].confidence
            self._angles.append(angles_apart(dense[0], dense[1], confidences, self.answers))
        self.equal &= self.rows_apart == 0 and not distance[1].any() and not confidence[1].any()
        self.per_hierarchy += [
            HierarchyDifference(
                view=view,
                hierarchy=k,
                top1_agreement=float(agree[k] / max(1, counted)),
                distance_mean=float(distance[0, k] / max(1, counted)),
                distance_max=float(distance[1, k]),
                confidence_mean=float(confidence[0, k] / max(1, counted)),
                confidence_max=float(confidence[1, k]),
            )
            for k in range(hierarchies)
        ]

    def angles(self) -> dict[str, float] | None:
        """Median, p99 and maximum."""
        angles = np.concatenate([np.zeros(0), *self._angles])
        if not len(angles):
            return None
        median, p99 = np.quantile(angles, [0.5, 0.99])
        return {"median": float(median), "p99": float(p99), "max": float(angles.max())}


def _flat(document: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in document.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _different(a: dict[str, Any], b: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {n: (a.get(n), b.get(n)) for n in sorted(a.keys() | b.keys()) if a.get(n) != b.get(n)}
