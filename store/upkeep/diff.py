"""Compare two stores: their manifests and their predictions."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from distill.data.sample_ids import find_rows
from store.logit_store import LogitStore
from store.upkeep.algebra import RowReader


@dataclass(frozen=True, kw_only=True)
class HierarchyDifference:
    """Over the rows and views that both stores hold. top1: share of rows with the same class."""

    hierarchy: int
    top1_agreement: float
    top1_prob_mean_abs: float
    confidence_mean_abs: float
    confidence_max_abs: float


@dataclass(frozen=True, kw_only=True)
class StoreDifference:
    """manifest: dotted name → the two values, where they differ.

    per_hierarchy: empty where the stores have nothing in common to compare.
    """

    manifest: dict[str, tuple[Any, Any]]
    rows_only_in_first: int
    rows_only_in_second: int
    rows_in_both: int
    labels_that_differ: int
    views_in_both: tuple[int, ...]
    per_hierarchy: tuple[HierarchyDifference, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def diff(first: LogitStore, second: LogitStore) -> StoreDifference:
    """Compare two complete stores.

    Raises:
        IncompleteStoreError: one of them lacks blocks.
    """
    for store in (first, second):
        store.require_complete()
    places = find_rows(second.sample_ids, first.sample_ids)
    mine = np.flatnonzero(places >= 0)
    theirs = places[mine]
    policies_agree = first.manifest.views.policy == second.manifest.views.policy
    drawn = [set(s.manifest.views.drawn) for s in (first, second)] if policies_agree else [set()]
    views = sorted(set.intersection(*drawn))
    same_hierarchy = first.manifest.hierarchy.digest == second.manifest.hierarchy.digest
    return StoreDifference(
        manifest=_different(_flat(first.manifest.to_json()), _flat(second.manifest.to_json())),
        rows_only_in_first=len(first.sample_ids) - len(mine),
        rows_only_in_second=len(second.sample_ids) - len(mine),
        rows_in_both=len(mine),
        labels_that_differ=int((first.labels[mine] != second.labels[theirs]).sum()),
        views_in_both=tuple(views),
        per_hierarchy=_answers(first, second, mine, theirs, views) if same_hierarchy else (),
    )


def _answers(
    first: LogitStore, second: LogitStore, mine: Any, theirs: Any, views: list[int]
) -> tuple[HierarchyDifference, ...]:
    rows = len(mine) * len(views)
    if not rows:
        return ()
    hierarchies = len(first.manifest.slots)
    agree, prob = np.zeros(hierarchies), np.zeros(hierarchies)
    total, largest = np.zeros(hierarchies), np.zeros(hierarchies)
    tops = [np.cumsum([0, *s.manifest.slots[:-1]]) for s in (first, second)]
    step = first.manifest.block_rows
    for view in views:
        readers = [RowReader(s, view - s.manifest.views.first) for s in (first, second)]
        for start in range(0, len(mine), step):
            parts = (mine[start : start + step], theirs[start : start + step])
            a, b = (
                store.manifest.coding.dequantise(reader.rows(part))
                for store, reader, part in zip((first, second), readers, parts, strict=True)
            )
            agree += (a.index[:, tops[0]] == b.index[:, tops[1]]).sum(0)
            prob += np.abs(a.prob[:, tops[0]] - b.prob[:, tops[1]]).sum(0)
            apart = np.abs(a.confidence - b.confidence)
            total += apart.sum(0)
            largest = np.maximum(largest, apart.max(0))
    return tuple(
        HierarchyDifference(
            hierarchy=k,
            top1_agreement=float(agree[k] / rows),
            top1_prob_mean_abs=float(prob[k] / rows),
            confidence_mean_abs=float(total[k] / rows),
            confidence_max_abs=float(largest[k]),
        )
        for k in range(hierarchies)
    )


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
