"""A store's identity, size and progress, without reading a row."""

from dataclasses import asdict, dataclass
from typing import Any

from store.logit_store import LogitStore


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
    teacher_about: tuple[str, ...]  # weights, head and input, in words
    random_weights: bool

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
        bytes_per_view=total / (committed * manifest.views.count) if committed else 0.0,
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
        teacher_about=tuple(manifest.provenance.get("teacher", ())),
        random_weights=manifest.teacher.random_weights,
    )
