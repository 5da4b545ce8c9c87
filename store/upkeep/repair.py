"""Repair a damaged store: restore what follows from the rest, revoke bad blocks.

Each step writes what was there before the damage, so it may be killed and run again. What only the
teacher can bring back is revoked: its blocks are pending, and a precompute fills them.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.data.sample_ids import SampleIds
from distill.errors import CorruptStoreError, StoreError
from store.format import commits
from store.format.chunks import block_digest, read_chunks
from store.format.documents import (
    ANSWER_KEYS,
    HIERARCHY_KEYS,
    SAMPLE_KEYS,
    damaged_documents,
    document_digests,
)
from store.format.layout import (
    create_answer_arrays,
    create_hierarchy,
    create_sample_arrays,
)
from store.format.objects import Objects, open_objects
from store.format.root import COPY_KEY, ROOT_KEY, Root, read_root_or_copy
from store.logit_store import LogitStore
from store.upkeep.verify import Verification, verify


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
    for block in commits.recorded_blocks(objects, root.manifest.num_blocks):
        try:
            commits.read_records(objects, [block], root.manifest.views.count)
        except CorruptStoreError:
            commits.delete_records(objects, [block])
            written.append(f"the damaged commit of block {block} was removed")
    if not root.generation:
        return written
    records, digests = _whole_or_none(store, root)
    documents = {*commits.compacted_keys(root.generation)} & set(damaged)
    if records is not None and digests is not None and not documents:
        return written
    for block in sorted(set(range(root.manifest.num_blocks)) - set(root.revoked)):
        if records is not None:
            record: commits.Record | None = records[block]
        else:
            record = _record_of_chunks(store, root, block, digests[block] if digests else None)
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
) -> tuple[dict[int, commits.Record] | None, dict[int, tuple[str, ...]] | None]:
    records, digests = None, None
    with suppress(StoreError):
        records = store.records_of(root)
    with suppress(StoreError):
        digests = store.content_digests_of(root)
    return records, digests


def _record_of_chunks(
    store: LogitStore, root: Root, block: int, digests: tuple[str, ...] | None
) -> commits.Record | None:
    """What can be told without the record: chunks whose checksums hold are what was written."""
    manifest = store.manifest
    try:
        block_digests = [
            block_digest(read_chunks(store.objects, manifest, block, view))
            for view in range(manifest.views.count)
        ]
    except CorruptStoreError:
        return None
    certificate = root.certificate or {"fidelity": None, "replay": {}}
    audit = {name: certificate[name] for name in ("fidelity", "replay")}
    rows = manifest.rows_of_block(block)
    return {
        "block": block,
        "rows": [rows.start, rows.stop],
        "content_sha256": list(digests or block_digests),
        "host": "restored",
        "committed_at": "",
        "bad": [],
        **({"audit": audit} if block == 0 else {}),
    }
