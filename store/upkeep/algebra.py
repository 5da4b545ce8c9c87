"""Stores from stores, without the teacher: merge, subset, transcode.

Each says which row and view of which source stands in each row and view of the result, and writes
it through `LogitStore`: block by block, resumed when killed. What was measured of a row (audit,
proofs, bad images) goes with it, and the result carries its lineage.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.data.sample_ids import SampleIds, ascending, find_rows, sample_ids, samples_digest
from distill.errors import (
    ConfigError,
    CorruptStoreError,
    IncompleteStoreError,
    StoreError,
    StoreMismatchError,
)
from distill.store.format.audit import LEAST_ROWS, AuditedViews, worst_of
from distill.store.format.codes import FIELDS, Codes
from distill.store.format.manifest import FORMAT_VERSION, DatasetIdentity, Manifest, ViewIdentity
from distill.store.logit_store import LogitStore
from distill.store.places.objects import Objects, open_objects
from distill.store.upkeep.compare import steps_apart
from distill.store.upkeep.reader import RowReader
from distill.targets.encoding import EncodingSpec
from distill.targets.rows import TargetRows

# audit(before, after, labels): angles by name of the second answers as if the first were exact.
Audit = Callable[[TargetRows, TargetRows, NDArray[np.int64]], Mapping[str, NDArray[np.float64]]]
Facts = dict[int, dict[str, Any]]  # by block of the result
TRIES = 2
ROUNDING_STEPS = 1  # that machines may differ by in the same answer
OWN_FACTS = ("bad", "audit", "replay", "inherited")


@dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """One source's share of a result.

    rows: of the result, and own: the source's rows that they are, both ascending. views: the
    source's view of each of the result, None where it is another source's.
    """

    store: LogitStore
    rows: NDArray[np.int64]
    own: NDArray[np.int64]
    views: Sequence[int | None]


def merge(location: str | Path, sources: Sequence[LogitStore]) -> LogitStore:
    """Blocks of one store computed on several machines, further views, or further samples.

    What several sources have must be the same but for rounding; it is taken from the first.

    Raises:
        StoreMismatchError: the sources are not parts of one thing.
        IncompleteStoreError: views or samples are merged and a source lacks blocks.
    """
    first = sources[0].manifest
    if len(sources) < 2:
        raise ConfigError("one store found to merge, expected two or more")
    for other in sources[1:]:
        other.manifest.require(
            other.location,
            teacher_fingerprint=first.teacher.fingerprint,
            hierarchy_digest=first.hierarchy.digest,
            encoding=first.encoding,
        )
        if other.manifest.views.policy != first.views.policy:
            raise StoreMismatchError(
                f"{other.location}: view policy {dict(other.manifest.views.policy)} found, "
                f"expected {dict(first.views.policy)} as in {sources[0].location}; precompute "
                "with one policy and seed, and --first-view"
            )
    if all(s.manifest.identity == first.identity for s in sources):
        return _merge_blocks(location, sources)
    for source in sources:
        source.require_complete()
    if all(s.manifest.dataset == first.dataset for s in sources):
        return _merge_views(location, sources)
    if all(s.manifest.views == first.views for s in sources):
        return _merge_samples(location, sources)
    raise StoreMismatchError(
        f"{sources[1].location}: other samples and other views than {sources[0].location} found, "
        "expected one of both to be the same; merge one kind after the other"
    )


def subset(
    location: str | Path,
    source: LogitStore,
    *,
    rows: NDArray[np.int64] | None = None,
    views: range | None = None,
) -> LogitStore:
    """Some rows, ascending, and a range of views by their drawn numbers.

    Raises:
        ConfigError: there is no such row or view, or none is left.
    """
    manifest = source.manifest
    source.require_complete()
    kept = np.arange(manifest.dataset.rows) if rows is None else rows
    numbers = range(manifest.views.drawn[0], manifest.views.drawn[-1] + 1)
    views = numbers if views is None else views
    if not len(kept) or not views or views[0] not in numbers or views[-1] not in numbers:
        raise ConfigError(
            f"{source.location}: {len(kept)} rows and views {views.start} to {views.stop - 1} "
            f"asked for, expected at least one row and views of {numbers[0]} to {numbers[-1]}"
        )
    ids, labels = source.sample_ids[kept], source.labels[kept]
    smaller = replace(
        manifest,
        dataset=DatasetIdentity(digest=samples_digest(ids, labels), rows=len(ids)),
        views=ViewIdentity(count=len(views), policy=manifest.views.policy, first=views[0]),
        block_rows=min(manifest.block_rows, len(ids)),
    )
    out = _create(location, smaller, "subset", [source], ids, labels)
    own_views = [number - numbers[0] for number in views]
    return _write(out, [Part(store=source, rows=np.arange(len(ids)), own=kept, views=own_views)])


def transcode(
    location: str | Path, source: LogitStore, encoding: EncodingSpec | None, audit: Audit
) -> LogitStore:
    """The same answers in today's format, and in another encoding where one is given.

    More entries than the source has cannot come back. audit: measures what the step costs; an
    angle to the teacher is at most that of the source and this one together.
    """
    manifest = source.manifest
    source.require_complete()
    spec = encoding or manifest.encoding
    kept = tuple(map(min, spec.entries, manifest.encoding.entries))
    other = replace(manifest, encoding=replace(spec, entries=kept))
    ids, labels = source.sample_ids, source.labels
    out = _create(location, other, "transcode", [source], ids, labels)
    starts = np.concatenate([[0], np.cumsum(manifest.slots)[:-1]])
    columns = np.concatenate([np.arange(s, s + k) for s, k in zip(starts, kept, strict=True)])

    def shortened(codes: Codes) -> Codes:
        if other.encoding == manifest.encoding:
            return codes
        before = manifest.coding.dequantise(codes)
        after = replace(before, index=before.index[:, columns], prob=before.prob[:, columns])
        return other.coding.quantise(after)

    def cost(row: NDArray[np.int64], view: int) -> AuditedViews:
        codes = RowReader(source, view).rows(row)
        before = manifest.coding.dequantise(codes)
        angles = audit(before, other.coding.dequantise(shortened(codes)), labels[row])
        return AuditedViews(row=row, view=np.full(len(row), view), angles=angles)

    def raised(measured: AuditedViews) -> AuditedViews:
        angles = {name: values.copy() for name, values in measured.angles.items()}
        for view in np.unique(measured.view).tolist():
            which = np.flatnonzero(measured.view == view)
            which = which[np.argsort(measured.row[which])]
            for name, step in cost(measured.row[which], view).angles.items():
                if name in angles:
                    angles[name][which] += step
        return replace(measured, angles=angles)

    rows = np.arange(len(ids))
    whole = Part(store=source, rows=rows, own=rows, views=range(manifest.views.count))
    if other.encoding == manifest.encoding:
        return _write(out, [whole])
    return _write(out, [whole], shortened, raised, cost(rows[:LEAST_ROWS], 0))


def _merge_blocks(location: str | Path, sources: Sequence[LogitStore]) -> LogitStore:
    manifest = sources[0].manifest
    out = _create(location, manifest, "merge", sources, sources[0].sample_ids, sources[0].labels)
    damaged: dict[int, CorruptStoreError] = {}
    for source in sources:
        records, commits = source.records(), source.block_commits()
        for block in sorted({*out.pending_blocks()} & records.keys()):
            try:
                views = source.read_block(block, commits[block])
            except CorruptStoreError as error:  # another source may have it
                damaged[block] = error
                continue
            facts = {k: v for k, v in records[block].items() if k in OWN_FACTS}
            if block == 0 and not _tells_by_row(source) and (certificate := source.certificate):
                facts["inherited"] = certificate["fidelity"]
            out.write_codes(block, views, facts)
    pending = {*out.pending_blocks()}
    if lost := sorted(pending & damaged.keys()):
        raise damaged[lost[0]]
    if not pending:
        out.finish()
    return out


def _tells_by_row(store: LogitStore) -> bool:
    """Whether angles of its rows are all that its certificate says."""
    records = store.records().values()
    return any("audit" in record for record in records) and not any(
        record.get("inherited") or "fidelity" in record.get("audit", {}) for record in records
    )


def _merge_views(location: str | Path, sources: Sequence[LogitStore]) -> LogitStore:
    ordered = sorted(sources, key=lambda s: s.manifest.views.first)
    drawn = sorted({view for source in ordered for view in source.manifest.views.drawn})
    if drawn != [*range(drawn[0], drawn[-1] + 1)]:
        raise StoreMismatchError(
            f"{ordered[-1].location}: together the stores hold views {drawn}, expected consecutive "
            "ones; precompute the missing ones with --first-view"
        )
    manifest = ordered[0].manifest
    views = replace(manifest.views, count=len(drawn))
    ids, labels = ordered[0].sample_ids, ordered[0].labels
    rows = np.arange(len(ids))
    taken: dict[int, LogitStore] = {}
    for source in ordered:
        for view in source.manifest.views.drawn:
            if view in taken:
                _require_same(taken[view], source, rows, rows, view)
            taken.setdefault(view, source)
    out = _create(location, replace(manifest, views=views), "merge", ordered, ids, labels)
    parts = [
        Part(
            store=source,
            rows=rows,
            own=rows,
            views=[
                view - source.manifest.views.first if taken[view] is source else None
                for view in drawn
            ],
        )
        for source in ordered
    ]
    return _write(out, parts)


def _merge_samples(location: str | Path, sources: Sequence[LogitStore]) -> LogitStore:
    ids = np.concatenate([s.sample_ids for s in sources])
    labels = np.concatenate([s.labels for s in sources])
    origin = np.concatenate([np.full(len(s.sample_ids), i) for i, s in enumerate(sources)])
    places = np.concatenate([np.arange(len(s.sample_ids)) for s in sources])
    order = ascending(ids)  # stable: what several have is the first one's
    ids, labels, origin, places = ids[order], labels[order], origin[order], places[order]
    again = np.flatnonzero((ids[1:] == ids[:-1]).all(axis=1)) + 1
    _require_same_samples(sources, labels, origin, places, again)
    alone = np.delete(np.arange(len(ids)), again)
    ids, labels, origin, places = ids[alone], labels[alone], origin[alone], places[alone]
    manifest = replace(
        sources[0].manifest,
        dataset=DatasetIdentity(digest=samples_digest(ids, labels), rows=len(ids)),
        block_rows=max(s.manifest.block_rows for s in sources),
    )
    out = _create(location, manifest, "merge", sources, ids, labels)
    parts = []
    for i, source in enumerate(sources):
        rows = np.flatnonzero(origin == i)
        every = range(manifest.views.count)
        parts.append(Part(store=source, rows=rows, own=places[rows], views=every))
    return _write(out, parts)


def _require_same_samples(
    sources: Sequence[LogitStore],
    labels: NDArray[np.int64],
    origin: NDArray[np.int64],
    places: NDArray[np.int64],
    again: NDArray[np.int64],
) -> None:
    """again: places of samples that the one before them is, too."""
    for i, j in {(int(origin[at - 1]), int(origin[at])) for at in again}:
        at = again[(origin[again - 1] == i) & (origin[again] == j)]
        if other := int((labels[at - 1] != labels[at]).sum()):
            raise StoreMismatchError(
                f"{sources[j].location}: {other} of {len(at)} samples that are in "
                f"{sources[i].location} as well have another label, expected the same; take one "
                "set of them out with `distill store subset --exclude`"
            )
        at = at[np.argsort(places[at])]
        for view in sources[0].manifest.views.drawn:
            _require_same(sources[i], sources[j], places[at - 1], places[at], view)


def _require_same(
    first: LogitStore,
    second: LogitStore,
    own: NDArray[np.int64],
    others: NDArray[np.int64],
    drawn: int,
) -> None:
    """That both say the same of one view of those rows, ascending, but for rounding."""
    readers = [RowReader(s, drawn - s.manifest.views.first) for s in (first, second)]
    step = first.manifest.block_rows
    for start in range(0, len(own), step):
        span = slice(start, start + step)
        codes = [r.rows(rows[span]) for r, rows in zip(readers, (own, others), strict=True)]
        apart = steps_apart(first.manifest, *codes) > ROUNDING_STEPS
        apart |= codes[0].valid != codes[1].valid
        if apart.any():
            raise StoreMismatchError(
                f"{second.location}: says something else than {first.location} of {apart.sum()} "
                f"samples in view {drawn} (first: row {others[span][apart.argmax()]}), expected "
                "the same answers; take one set of them out with `distill store subset --exclude`"
            )


def _create(
    location: str | Path,
    manifest: Manifest,
    command: str,
    sources: Sequence[LogitStore],
    ids: SampleIds,
    labels: NDArray[np.int64],
) -> LogitStore:
    lineage = {
        "command": command,
        "sources": [{"store": s.location, "identity": s.manifest.identity} for s in sources],
        "before": [p for s in sources if (p := s.manifest.provenance.get("lineage"))],
    }
    place = open_objects(location)
    if any(_same_place(s.objects, place) for s in sources):
        raise StoreError(f"{location}: is a source itself; choose another place for the result")
    provenance = {**manifest.provenance, "lineage": lineage}
    manifest = replace(manifest, provenance=provenance, version=FORMAT_VERSION)
    hierarchy = sources[0].hierarchy
    return LogitStore.create(location, manifest, ids=ids, labels=labels, hierarchy=hierarchy)


def _same_place(first: Objects, second: Objects) -> bool:
    if first.is_local and second.is_local:
        return Path(first.location).resolve() == Path(second.location).resolve()
    return first.location == second.location


def _write(
    out: LogitStore,
    parts: Sequence[Part],
    change: Callable[[Codes], Codes] = lambda codes: codes,
    raised: Callable[[AuditedViews], AuditedViews] = lambda measured: measured,
    cost: AuditedViews | None = None,
) -> LogitStore:
    """change: what is done to all answers; raised: what that makes of their audit; cost: of some
    rows, for sources that only tell figures of theirs.
    """
    readers = [
        [None if view is None else RowReader(part.store, view) for view in part.views]
        for part in parts
    ]

    def read(span: range, view: int) -> Codes:
        pieces, places = [], []
        for part, of_view in zip(parts, readers, strict=True):
            if reader := of_view[view]:
                first, stop = np.searchsorted(part.rows, [span.start, span.stop])
                if stop > first:
                    pieces.append(reader.rows(part.own[first:stop]))
                    places.append(part.rows[first:stop])
        back = np.argsort(np.concatenate(places))
        together = Codes.concatenate(pieces)
        return change(Codes(**{n: getattr(together, n)[back] for n in FIELDS}))

    facts = _facts(out, parts, raised)
    measured = any("audit" in of_block for of_block in facts.values())
    others = [part for part in parts if not (measured and _tells_by_row(part.store))]
    if inherited := _inherited(others, cost):
        facts[0]["inherited"] = inherited
    for _ in range(TRIES):
        for block in out.pending_blocks():
            span = out.manifest.rows_of_block(block)
            views = [read(span, view) for view in range(out.manifest.views.count)]
            out.write_codes(block, views, facts[block])
        with suppress(IncompleteStoreError):  # blocks of an earlier run were damaged
            out.finish()
            return out
    out.finish()
    return out


def _facts(
    out: LogitStore, parts: Sequence[Part], raised: Callable[[AuditedViews], AuditedViews]
) -> Facts:
    """Bad images, audit and proofs of each block, from the sources' records."""
    manifest = out.manifest
    facts: Facts = {block: {"bad": []} for block in range(manifest.num_blocks)}
    bad: dict[str, Any] = {}
    audits = []
    proofs: dict[int, list[Any]] = {}
    for part in parts:
        records = part.store.records()
        bad |= {entry["key"]: entry for record in records.values() for entry in record["bad"]}
        measured = [AuditedViews.from_json(r.get("audit")) for r in records.values()]
        audits.append(_moved(part, raised(AuditedViews.together(measured))))
        certificate = part.store.certificate or {"replay": {}}
        for row, proof in _moved_proofs(part, certificate["replay"]).items():
            proofs.setdefault(row, [None] * manifest.views.count)
            proofs[row] = [mine or old for mine, old in zip(proof, proofs[row], strict=True)]
    for entry, row in zip(
        bad.values(), find_rows(out.sample_ids, sample_ids(bad)).tolist(), strict=True
    ):
        if row >= 0:
            facts[row // manifest.block_rows]["bad"].append(entry)
    audit = AuditedViews.together(audits)
    for block in np.unique(audit.row // manifest.block_rows).tolist():
        here = audit.select(audit.row // manifest.block_rows == block)
        facts[block]["audit"] = here.to_json()
    for row, proof in sorted(proofs.items()):
        if all(proof):
            facts[row // manifest.block_rows].setdefault("replay", {})[str(row)] = proof
    return facts


def _moved(part: Part, measured: AuditedViews) -> AuditedViews:
    """What was measured of the source's rows and views, where they stand in the result."""
    moved = []
    for view, own_view in enumerate(part.views):
        here = measured.select(measured.view == own_view)
        rows = _rows_of(part, here.row)
        kept = here.select(rows >= 0)
        view_of_all = np.full(len(kept), view)
        moved.append(replace(kept, row=rows[rows >= 0], view=view_of_all))
    return AuditedViews.together(moved)


def _moved_proofs(part: Part, replay: Mapping[str, Sequence[Any]]) -> dict[int, list[Any]]:
    rows = _rows_of(part, np.array([int(row) for row in replay], np.int64))
    return {
        row: [None if view is None else proofs[view] for view in part.views]
        for row, proofs in zip(rows.tolist(), replay.values(), strict=True)
        if row >= 0
    }


def _rows_of(part: Part, own: NDArray[np.int64]) -> NDArray[np.int64]:
    """The rows of the result that those of the source are, -1 where they are none of it."""
    places = np.minimum(np.searchsorted(part.own, own), len(part.own) - 1)
    return np.where(part.own[places] == own, part.rows[places], -1)


def _inherited(parts: Sequence[Part], cost: AuditedViews | None) -> dict[str, Any] | None:
    """Where no audited row is left: what the sources' certificates say, at worst."""
    step = (cost and cost.figures()) or {"angle_deg": {}}
    worst = worst_of(
        [c["fidelity"] for part in parts if (c := part.store.certificate) and c["fidelity"]]
    )
    if worst is None:
        return None
    angles = {
        name: {
            of: value + step["angle_deg"].get(name, {}).get(of, 0.0) for of, value in each.items()
        }
        for name, each in sorted(worst["angle_deg"].items())
    }
    where = ", ".join(part.store.location for part in parts)
    return {"views": 0, "angle_deg": angles, "how": f"None of these rows was audited; of {where}."}
