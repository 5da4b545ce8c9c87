"""Repair a damaged store: restore what follows from the rest, revoke bad blocks.

Each step writes what was there before the damage, so it may be killed and run again. What only the
teacher can bring back, or a replica, is revoked: its blocks are pending until either fills them.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.data.sample_ids import SampleIds
from distill.errors import CorruptStoreError, StoreError, StoreMismatchError
from distill.store.format import commits, version2
from distill.store.format.chunks import block_digest, read_chunks, sizes_in_shards
from distill.store.format.documents import (
    ANSWER_KEYS,
    DOCUMENTS,
    HIERARCHY_KEYS,
    SAMPLE_KEYS,
    damaged_documents,
    document_digests,
)
from distill.store.format.layout import (
    create_answer_arrays,
    create_hierarchy,
    create_sample_arrays,
)
from distill.store.format.manifest import Manifest
from distill.store.format.root import (
    CLAIM_KEY,
    COPY_KEY,
    ROOT_KEY,
    Root,
    claim_of,
    read_root_or_copy,
)
from distill.store.logit_store import LogitStore
from distill.store.places.objects import Objects, open_objects
from distill.store.upkeep.verify import Verification, verify


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """What a store was made from, for what of it cannot be restored from the store."""

    ids: SampleIds
    labels: NDArray[np.int64]
    hierarchy: Mapping[str, Any]


def restore(location: str, dataset: Dataset | None) -> list[str]:
    """Everything but chunks: documents, samples and commits. Returns what was written, a line each.

    Raises:
        CorruptStoreError: root and copy are beyond reading, or without a data set something is.
    """
    objects = open_objects(location)
    version2.require_current(location, read_root_or_copy(location).manifest)
    written = _restore_root(objects)
    root = Root.read(objects)
    damaged = damaged_documents(objects, root)
    store = LogitStore(objects, root.manifest)
    rewritten = _restore_metadata(objects, root, damaged)
    if dataset and not _samples_are_whole(store, damaged):
        create_sample_arrays(objects, dataset.ids, dataset.labels)
        create_hierarchy(objects, dataset.hierarchy)
        rewritten += [*SAMPLE_KEYS, *HIERARCHY_KEYS]
        written.append("sample_id, label and hierarchy, from the data set")
    # Another version of Zarr may write the same metadata in other words.
    documents = {**root.documents, **document_digests(objects, rewritten)}
    if rewritten:
        root = replace(root, documents=documents)
        root.write(objects)
    written += _restore_commits(store, root, damaged)
    left = damaged_documents(objects, Root.read(objects))
    if left:
        versions = ", ".join(f"{k} {v}" for k, v in root.manifest.provenance.items())
        raise CorruptStoreError(
            f"{objects.location}: {', '.join(left)} cannot be restored from the store alone; pass "
            f"the --teacher and --data it was made of (it was written with {versions})"
        )
    return written + [key for key in damaged if key in rewritten]


def revoke_bad(location: str) -> Verification:
    """Verify, and take the commits of bad blocks back."""
    report = verify(location)
    if report.bad_blocks:
        LogitStore.open(location).revoke(report.bad_blocks)
    return report


def mend_root(location: str, manifest: Manifest, dataset: Dataset) -> None:
    """Write the root of a store again that was lost, from its copy or from what a run knows of it.

    Without either, what lies there is left alone.

    Raises:
        StoreMismatchError: commits of another store are there.
    """
    objects = open_objects(location)
    if not objects.exists():
        return
    try:
        Root.read(objects)
    except CorruptStoreError:
        try:
            _restore_root(objects)
        except CorruptStoreError:
            _rebuild_root(objects, manifest, dataset)


def _rebuild_root(objects: Objects, manifest: Manifest, dataset: Dataset) -> None:
    """The commits that lie there count if they are of that very store."""
    blocks = commits.recorded_blocks(objects, manifest.num_blocks)
    generation, sha256 = "", dict[str, str]()
    strange = len(commits.damaged_records(objects, manifest))
    for found in commits.generations(objects):
        strange += 1
        with suppress(CorruptStoreError, ValueError):
            digests = commits.digests_of_generation(objects, found)
            root = Root(manifest=manifest, documents={}, generation=found, compacted_sha256=digests)
            commits.read_compacted_records(objects, root)
            generation, sha256, strange = found, digests, strange - 1
    if strange and not generation and strange >= len(blocks):
        raise StoreMismatchError(
            f"{objects.location}: the root is lost and all commits there are damaged or of another "
            "store (teacher, data, views, encoding or --block-rows), expected those of this run; "
            "choose another --store, or delete it"
        )
    if not blocks and not generation:
        if {"sample_id", "hierarchy", "commits"} <= {*objects.names()}:  # nothing is lost with it
            objects.write(CLAIM_KEY, claim_of(manifest))
            objects.delete([ROOT_KEY, COPY_KEY])
        return
    create_answer_arrays(objects, manifest)
    create_sample_arrays(objects, dataset.ids, dataset.labels)
    create_hierarchy(objects, dataset.hierarchy)
    objects.write(commits.GROUP_KEY, commits.GROUP_DOCUMENT)
    keys = [*DOCUMENTS, *(commits.compacted_keys(generation) if generation else ())]
    Root(
        manifest=manifest,
        documents=document_digests(objects, keys),
        generation=generation,
        compacted_sha256=sha256,
    ).write(objects)


def fill_from(
    store: LogitStore, replica: LogitStore, known: Mapping[int, commits.Commit]
) -> list[int]:
    """Pending blocks from another copy of the store; those that were filled.

    known: what the commits said of blocks before they were revoked; a copy of another content is
    not taken.

    Raises:
        StoreMismatchError: it is a copy of another store.
    """
    if replica.manifest.identity != store.manifest.identity:
        raise StoreMismatchError(
            f"{replica.location}: store {replica.manifest.identity[:12]} found, expected a copy of "
            f"{store.location}, {store.manifest.identity[:12]}; pass one"
        )
    records, theirs, filled = replica.records(), replica.block_commits(), []
    for block in store.pending_blocks():
        proven = block in theirs and (
            block not in known or known[block].digests == theirs[block].digests
        )
        if not proven:
            continue
        with suppress(CorruptStoreError):
            views = [
                replica.read_codes(block, view, theirs[block])
                for view in range(store.manifest.views.count)
            ]
            own = {"block", "store", "rows", "content_sha256", "chunk_bytes", "committed_at"}
            store.write_codes(
                block, views, {k: v for k, v in records[block].items() if k not in own}
            )
            filled.append(block)
    return filled


def _restore_root(objects: Objects) -> list[str]:
    written = []
    try:
        root = Root.read(objects)
    except CorruptStoreError:
        root = read_root_or_copy(objects.location)
        objects.write(ROOT_KEY, root.to_document())
        written.append(f"{ROOT_KEY}, from its copy")
    if objects.read(COPY_KEY) != objects.read(ROOT_KEY):
        objects.write(COPY_KEY, root.to_document())
        written.append(f"{COPY_KEY}, from the root")
    return written


def _restore_metadata(objects: Objects, root: Root, damaged: Sequence[str]) -> list[str]:
    """What the manifest alone tells; the keys that were written."""
    rewritten = []
    if commits.GROUP_KEY in damaged:
        objects.write(commits.GROUP_KEY, commits.GROUP_DOCUMENT)
        rewritten.append(commits.GROUP_KEY)
    if {*ANSWER_KEYS} & {*damaged}:
        create_answer_arrays(objects, root.manifest)
        rewritten += ANSWER_KEYS
    return rewritten


def _samples_are_whole(store: LogitStore, damaged: Sequence[str]) -> bool:
    try:
        return len(store.labels) > 0 and not {*HIERARCHY_KEYS, *SAMPLE_KEYS} & {*damaged}
    except StoreError:
        return False


def _restore_commits(store: LogitStore, root: Root, damaged: Sequence[str]) -> list[str]:
    """Damaged records are removed, damaged compacted ones told again by what is whole."""
    objects, written = store.objects, []
    for block in commits.damaged_records(objects, root.manifest):
        commits.delete_records(objects, [block])
        written.append(f"the damaged commit of block {block} was removed")
    if not root.generation:
        return written
    records, known = _whole_or_none(store, root)
    documents = {*commits.compacted_keys(root.generation)} & set(damaged)
    if records is not None and known is not None and not documents:
        return written
    for block in sorted(set(range(root.manifest.num_blocks)) - set(root.revoked)):
        if records is not None:
            record: commits.Record | None = records[block]
        else:
            record = _record_of_chunks(store, root, block, known[block] if known else None)
        if record is not None:
            commits.replace_record(objects, record)
    # The certificate goes with the generation; `finish` writes both again.
    replace(
        root,
        generation="",
        revoked=(),
        certificate=None,
        documents={k: v for k, v in root.documents.items() if not k.startswith("commits/g")},
    ).write(objects)
    commits.delete_other_generations(objects, "")
    return [*written, "the compacted commits, as one record a block"]


def _whole_or_none(
    store: LogitStore, root: Root
) -> tuple[dict[int, commits.Record] | None, dict[int, commits.Commit] | None]:
    records, known = None, None
    with suppress(StoreError):
        records = store.records_of(root)
    with suppress(StoreError):
        known = store.commits_of(root)
    return records, known


def _record_of_chunks(
    store: LogitStore, root: Root, block: int, known: commits.Commit | None
) -> commits.Record | None:
    """What can be told without the record: chunks whose checksums hold are what was written."""
    manifest = store.manifest
    try:
        sizes = known.chunk_bytes if known else sizes_in_shards(store.objects, manifest, block)
        views = [
            read_chunks(store.objects, manifest, block, view, sizes)
            for view in range(manifest.views.count)
        ]
    except CorruptStoreError:
        return None
    digests = [block_digest(stored) for stored in views]
    unread = np.flatnonzero(np.any([each["confidence"][0] == 0 for each in views], axis=0))
    certificate = root.certificate or {"fidelity": None, "replay": {}}
    rows = manifest.rows_of_block(block)
    replay = {r: p for r, p in certificate["replay"].items() if int(r) in rows}
    return {
        "block": block,
        "store": manifest.identity,
        "rows": [rows.start, rows.stop],
        "content_sha256": list(known.digests if known else digests),
        "chunk_bytes": [list(of_view) for of_view in sizes],
        "host": "restored",
        "committed_at": "",
        "bad": [
            {"key": f"row {rows.start + place}", "reason": "cannot be read; its name is lost"}
            for place in unread.tolist()
        ],
        **({"replay": replay} if replay else {}),
        **({"inherited": certificate["fidelity"]} if block == 0 else {}),
    }
