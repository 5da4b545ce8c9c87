"""A store's identity, size and progress, without reading a row."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from distill.store.logit_store import LogitStore

MOST_SPANS = 8


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
    missing: tuple[str, ...]  # blocks, in words, and whose they are
    fidelity: dict[str, Any] | None
    lineage: dict[str, Any] | None  # the command and the stores it was made from
    teacher_about: tuple[str, ...]  # weights, head and input, in words
    random_weights: bool

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def missing_blocks(records: Mapping[int, Any], num_blocks: int) -> tuple[str, ...]:
    """A line for each writer of blocks that are missing, as far as the others say who it is."""
    missing = sorted({*range(num_blocks)} - {*records})
    shares = {block: record.get("share") or {} for block, record in records.items()}
    counts = {int(share.get("count", 1)) for share in shares.values()}
    count = counts.pop() if len(counts) == 1 else 1
    lines = []
    for index in range(count):
        blocks = [block for block in missing if block % count == index]
        hosts = {str(r["host"]) for b, r in records.items() if b % count == index and "host" in r}
        if not blocks:
            continue
        whose = f"shard {index} of {count}, " if count > 1 else ""
        by = f"others of it by {', '.join(sorted(hosts))}" if hosts else "none of it written yet"
        lines.append(f"{len(blocks)} blocks missing: {_ranges(blocks)} ({whose}{by})")
    return tuple(lines)


def _ranges(numbers: Sequence[int]) -> str:
    """1 to 3 and 7 as 1-3, 7; the first of many."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    shown = [str(a) if a == b else f"{a}-{b}" for a, b in spans[:MOST_SPANS]]
    return ", ".join(shown) + (", …" if len(spans) > MOST_SPANS else "")


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
        missing=missing_blocks(records, manifest.num_blocks),
        fidelity=certificate["fidelity"] if certificate else None,
        lineage=manifest.provenance.get("lineage"),
        teacher_about=tuple(manifest.provenance.get("teacher", ())),
        random_weights=manifest.teacher.random_weights,
    )
