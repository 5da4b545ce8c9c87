"""What a store says of the teacher, block by block: confidence and labels per hierarchy, sizes."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from store.logit_store import LogitStore

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True, kw_only=True)
class HierarchySummary:
    """One hierarchy of one store. Confidence is the teacher's own, without the label clause.

    labelled: share of the images whose label says something there.
    kept_entries: mean number of stored entries; kept_mass: their mean share of the probability.
    """

    hierarchy: int
    classes: int
    confidence_mean: float
    confidence_quantiles: tuple[float, ...]
    labelled: float
    kept_entries: float
    kept_mass: float


@dataclass(frozen=True, kw_only=True)
class StoreSummary:
    """What `distill store info` and `distill inspect` show. bytes_per_view: of one image."""

    path: str
    rows: int
    views: int
    invalid_rows: int
    hierarchies: int
    bytes_total: int
    bytes_per_view: float
    encoding: dict[str, Any]
    teacher: str
    teacher_fingerprint: str
    hierarchy_digest: str
    view_policy: dict[str, Any]
    first_view: int
    complete: bool
    blocks: tuple[int, int]  # committed, all
    fidelity: dict[str, Any] | None
    lineage: dict[str, Any] | None  # the command and the stores it was made from

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def summarise(store: LogitStore) -> StoreSummary:
    """Without reading a row."""
    manifest, certificate = store.manifest, store.certificate
    records = store.records()
    committed = sum(len(manifest.rows_of_block(block)) for block in records)
    total = store.bytes_total()
    return StoreSummary(
        path=store.location,
        rows=manifest.dataset.rows,
        views=manifest.views.count,
        invalid_rows=sum(len(record["bad"]) for record in records.values()),
        hierarchies=len(manifest.hierarchy.classes_per_hierarchy),
        bytes_total=total,
        bytes_per_view=total / max(1, committed * manifest.views.count),
        encoding=manifest.encoding.to_json(),
        teacher=manifest.teacher.name,
        teacher_fingerprint=manifest.teacher.fingerprint,
        hierarchy_digest=manifest.hierarchy.digest,
        view_policy=dict(manifest.views.policy),
        first_view=manifest.views.first,
        complete=certificate is not None,
        blocks=(len(records), manifest.num_blocks),
        fidelity=certificate["fidelity"] if certificate else None,
        lineage=manifest.provenance.get("lineage"),
    )


def confidence_by_hierarchy(
    store: LogitStore, label_table: NDArray[np.int64]
) -> list[HierarchySummary]:
    """Over all committed blocks and all views.

    label_table: [num_classes + 1, K], negative where a label says nothing (last row: no label).
    Confidence is counted by its stored code, so quantiles are exact and memory does not grow.
    """
    manifest = store.manifest
    sizes, units = manifest.hierarchy.classes_per_hierarchy, manifest.coding.confidence_units
    counts = np.zeros((len(sizes), units + 1), np.int64)
    labelled = np.zeros(len(sizes))
    entries, mass, rows, images = np.zeros(len(sizes)), np.zeros(len(sizes)), 0, 0
    starts = np.concatenate([[0], np.cumsum(manifest.slots)[:-1]])
    for block, digests in store.content_digests().items():
        block_rows = manifest.rows_of_block(block)
        labels = store.labels[block_rows.start : block_rows.stop]
        labelled += (label_table[labels] >= 0).sum(0)
        images += len(labels)
        for view, digest in enumerate(digests):
            codes = store.read_codes(block, view, digest)
            prob = codes.prob / manifest.encoding.prob_steps
            for k in range(len(sizes)):
                counts[k] += np.bincount(codes.confidence[codes.valid, k], minlength=units + 1)
            entries += np.add.reduceat((codes.prob > 0).sum(0), starts)
            mass += np.add.reduceat(prob.sum(0), starts)
            rows += int(codes.valid.sum())
    values = np.arange(units + 1) / units
    summaries = []
    for k, size in enumerate(sizes):
        cumulative = np.cumsum(counts[k])
        at = np.searchsorted(cumulative, [q * rows for q in QUANTILES])
        summaries.append(
            HierarchySummary(
                hierarchy=k,
                classes=size,
                confidence_mean=float(counts[k] @ values / max(1, rows)),
                confidence_quantiles=tuple(float(values[min(i, units)]) for i in at),
                labelled=float(labelled[k] / max(1, images)),
                kept_entries=float(entries[k] / max(1, rows)),
                kept_mass=float(mass[k] / max(1, rows)),
            )
        )
    return summaries
