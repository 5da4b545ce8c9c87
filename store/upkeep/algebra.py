"""Stores from stores, without the teacher: merge, subset, transcode.

Each says which rows of which sources stand in which block of the result and writes it through
`LogitStore`, so a result is committed block by block, resumes when killed, and carries its lineage.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.data.sample_ids import SampleIds, ascending, find_rows, sample_ids, samples_digest
from distill.errors import ConfigError, StoreError, StoreMismatchError
from distill.targets.encoding import EncodingSpec
from distill.targets.rows import TargetRows
from store.format.codes import ANSWER_ARRAYS, Codes
from store.format.manifest import DatasetIdentity, Manifest, ViewIdentity
from store.logit_store import LogitStore

AUDIT_ROWS = 1024

# read(rows of the result, view of the result): their codes.
Read = Callable[[NDArray[np.int64], int], Codes]


class RowReader:
    """Rows of one view of a store, fast while they come in ascending order."""

    def __init__(self, store: LogitStore, view: int) -> None:
        self.store, self.view = store, view
        self._digests = store.content_digests()
        self._block = -1
        self._codes: Codes | None = None

    def rows(self, rows: NDArray[np.int64]) -> Codes:
        """Those rows, ascending."""
        parts = []
        blocks, places = np.divmod(rows, self.store.manifest.block_rows)
        for block in np.unique(blocks):
            if block != self._block:
                digest = self._digests[int(block)][self.view]
                self._codes = self.store.read_codes(int(block), self.view, digest)
                self._block = int(block)
            mine = places[blocks == block]
            parts.append(Codes(**{n: getattr(self._codes, n)[mine] for n in ANSWER_ARRAYS}))
        return Codes.concatenate(parts)


def merge(location: str | Path, sources: Sequence[LogitStore]) -> LogitStore:
    """Blocks of one store computed on several machines, further views, or further samples.

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
    offset = views[0] - numbers[0]
    smaller = replace(
        manifest,
        dataset=DatasetIdentity(digest=samples_digest(ids, labels), rows=len(ids)),
        views=ViewIdentity(count=len(views), policy=manifest.views.policy, first=views[0]),
        block_rows=min(manifest.block_rows, len(ids)),
    )
    out = _create(location, smaller, "subset", [source], ids, labels)
    readers = [RowReader(source, offset + view) for view in range(len(views))]
    certificate = _certificate([source], ids)
    certificate["replay"] = {
        row: digests[offset : offset + len(views)] for row, digests in certificate["replay"].items()
    }
    return _write(out, lambda r, view: readers[view].rows(kept[r]), [source], certificate)


def transcode(
    location: str | Path,
    source: LogitStore,
    encoding: EncodingSpec,
    audit: Callable[[TargetRows, TargetRows], Mapping[str, Any]],
) -> LogitStore:
    """The same answers in another encoding; more entries than the source has cannot come back.

    audit: fidelity of the second answers as if the first were exact, over the audit sample.
    """
    manifest, certificate = source.manifest, source.require_complete()
    kept = tuple(map(min, encoding.entries, manifest.encoding.entries))
    other = replace(manifest, encoding=replace(encoding, entries=kept))
    out = _create(location, other, "transcode", [source], source.sample_ids, source.labels)
    starts = np.concatenate([[0], np.cumsum(manifest.slots)[:-1]])
    columns = np.concatenate([np.arange(s, s + k) for s, k in zip(starts, kept, strict=True)])
    readers = [RowReader(source, view) for view in range(manifest.views.count)]

    def shortened(rows: NDArray[np.int64], view: int) -> tuple[TargetRows, Codes]:
        before = manifest.coding.dequantise(readers[view].rows(rows))
        after = replace(before, index=before.index[:, columns], prob=before.prob[:, columns])
        return before, other.coding.quantise(after)

    sample = np.arange(min(AUDIT_ROWS, manifest.dataset.rows))
    pairs = [shortened(sample, view) for view in range(manifest.views.count)]
    before = _stacked([pair[0] for pair in pairs])
    after = other.coding.dequantise(Codes.concatenate([pair[1] for pair in pairs]))
    known = certificate["fidelity"] and before.valid.any()
    fidelity = _added(certificate["fidelity"], audit(before, after)) if known else None
    full_certificate = {**certificate, "fidelity": fidelity}
    return _write(out, lambda rows, view: shortened(rows, view)[1], [source], full_certificate)


def _merge_blocks(location: str | Path, sources: Sequence[LogitStore]) -> LogitStore:
    manifest = sources[0].manifest
    out = _create(location, manifest, "merge", sources, sources[0].sample_ids, sources[0].labels)
    for source in sources:
        records, pending = source.records(), {*out.pending_blocks()}
        for block in sorted(pending & records.keys()):
            digests = records[block]["content_sha256"]
            views = [source.read_codes(block, view, digest) for view, digest in enumerate(digests)]
            facts = {k: v for k, v in records[block].items() if k in ("bad", "audit")}
            out.write_codes(block, views, facts)
    if not out.pending_blocks():
        records = out.records()
        out.finish(dict(records[0]["audit"]))
    return out


def _merge_views(location: str | Path, sources: Sequence[LogitStore]) -> LogitStore:
    ordered = sorted(sources, key=lambda s: s.manifest.views.first)
    drawn = [view for source in ordered for view in source.manifest.views.drawn]
    if drawn != [*range(drawn[0], drawn[0] + len(drawn))]:
        raise StoreMismatchError(
            f"{ordered[-1].location}: together the stores hold views {drawn}, expected consecutive "
            "ones, each once; precompute the missing ones with --first-view"
        )
    manifest = ordered[0].manifest
    views = replace(manifest.views, count=len(drawn))
    ids, labels = ordered[0].sample_ids, ordered[0].labels
    out = _create(location, replace(manifest, views=views), "merge", ordered, ids, labels)
    readers = [RowReader(s, view) for s in ordered for view in range(s.manifest.views.count)]
    certificate = _certificate(ordered, ids)
    replays = [source.require_complete()["replay"] for source in ordered]
    certificate["replay"] = {
        row: [digest for replay in replays for digest in replay[row]]
        for row in set.intersection(*map(set, replays))
    }
    return _write(out, lambda rows, view: readers[view].rows(rows), ordered, certificate)


def _merge_samples(location: str | Path, sources: Sequence[LogitStore]) -> LogitStore:
    ids = np.concatenate([s.sample_ids for s in sources])
    labels = np.concatenate([s.labels for s in sources])
    origin = np.concatenate([np.full(len(s.sample_ids), i) for i, s in enumerate(sources)])
    places = np.concatenate([np.arange(len(s.sample_ids)) for s in sources])
    order = ascending(ids)
    ids, labels, origin, places = ids[order], labels[order], origin[order], places[order]
    twice = int((ids[1:] == ids[:-1]).all(axis=1).sum())
    if twice:
        raise StoreMismatchError(
            f"{sources[1].location}: {twice} samples are in more than one store, expected each "
            "once; take them out with `distill store subset`"
        )
    manifest = replace(
        sources[0].manifest,
        dataset=DatasetIdentity(digest=samples_digest(ids, labels), rows=len(ids)),
        block_rows=max(s.manifest.block_rows for s in sources),
    )
    out = _create(location, manifest, "merge", sources, ids, labels)
    readers = [[RowReader(s, v) for v in range(manifest.views.count)] for s in sources]

    def read(rows: NDArray[np.int64], view: int) -> Codes:
        """Each source's rows stand in the order of the result already."""
        parts = [np.flatnonzero(origin[rows] == i) for i in range(len(sources))]
        parts_of_view = [
            readers[i][view].rows(places[rows[part]]) for i, part in enumerate(parts) if len(part)
        ]
        back = np.argsort(np.concatenate(parts))
        together = Codes.concatenate(parts_of_view)
        return Codes(**{n: getattr(together, n)[back] for n in ANSWER_ARRAYS})

    return _write(out, read, sources, _certificate(sources, ids))


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
    if any(s.location == str(location) for s in sources):
        raise StoreError(f"{location}: is a source itself; choose another place for the result")
    manifest = replace(manifest, provenance={**manifest.provenance, "lineage": lineage})
    hierarchy = sources[0].hierarchy
    return LogitStore.create(location, manifest, ids=ids, labels=labels, hierarchy=hierarchy)


def _write(
    out: LogitStore, read: Read, sources: Sequence[LogitStore], certificate: Mapping[str, Any]
) -> LogitStore:
    bad = {e["key"]: e for s in sources for r in s.records().values() for e in r["bad"]}
    bad_rows = find_rows(out.sample_ids, sample_ids(bad))
    bad_of_block: dict[int, list[Any]] = {}
    for entry, row in zip(bad.values(), bad_rows.tolist(), strict=True):
        if row >= 0:
            bad_of_block.setdefault(row // out.manifest.block_rows, []).append(entry)
    audit = {name: certificate[name] for name in ("fidelity", "replay")}
    for block in out.pending_blocks():
        span = out.manifest.rows_of_block(block)
        rows = np.arange(span.start, span.stop)
        views = [read(rows, view) for view in range(out.manifest.views.count)]
        facts = {"bad": bad_of_block.get(block, []), **({} if block else {"audit": audit})}
        out.write_codes(block, views, facts)
    out.finish(audit)
    return out


def _certificate(sources: Sequence[LogitStore], ids: SampleIds) -> dict[str, Any]:
    """What the sources' certificates say of the result: at worst theirs, and their replay rows."""
    certificates = [source.require_complete() for source in sources]
    replay: dict[str, list[str]] = {}
    for source, certificate in zip(sources, certificates, strict=True):
        old = np.array([int(row) for row in certificate["replay"]], np.int64)
        new = find_rows(ids, source.sample_ids[old])
        digests = certificate["replay"].values()
        replay |= {str(row): d for row, d in zip(new, digests, strict=True) if row >= 0}
    fidelities = [c["fidelity"] for c in certificates if c["fidelity"]]
    return {"fidelity": _worst(fidelities) if fidelities else None, "replay": replay}


def _worst(figures: Sequence[Any]) -> Any:
    """The largest of each figure; of audited rows their sum."""
    first = figures[0]
    if isinstance(first, dict):
        together = {name: _worst([f[name] for f in figures]) for name in first}
        return together | ({"rows": sum(f["rows"] for f in figures)} if "rows" in first else {})
    if isinstance(first, list):
        return [_worst(each) for each in zip(*figures, strict=True)]
    return first if isinstance(first, str) else max(figures)


def _added(before: Any, step: Any) -> Any:
    """Figure by figure: what was lost before, and what the step lost of the rest."""
    if isinstance(before, dict):
        added = {name: _added(before[name], step[name]) for name in before}
        if "how" in before:
            added["how"] = (
                "sum of the source's figures and those of the transcoding, about: "
                + (before["how"])
            )
        return added | ({"rows": min(before["rows"], step["rows"])} if "rows" in before else {})
    if isinstance(before, list):
        return [_added(b, s) for b, s in zip(before, step, strict=True)]
    return before if isinstance(before, str) else round(before + step, 4)


def _stacked(parts: Sequence[TargetRows]) -> TargetRows:
    return TargetRows(
        **{name: np.concatenate([getattr(p, name) for p in parts]) for name in ANSWER_ARRAYS}
    )
