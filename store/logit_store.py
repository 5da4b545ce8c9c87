"""A logit store: create, write blocks, resume, certify, read blocks.

Chunks are written first, then the block's commit record (`distill.store.format.commits`); a block
without one does not exist, whatever chunks lie there. When all are there, `finish` compacts the
records and puts the certificate into the root document (`distill.store.format.root`). A store lies
on a disk or in a bucket (`distill.store.places.objects`).
"""

import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from distill.data.sample_ids import SampleIds, samples_digest
from distill.errors import CorruptStoreError, IncompleteStoreError, StoreError
from distill.store.format import commits, finishing, version2
from distill.store.format.audit import certificate_of
from distill.store.format.chunks import block_digest, read_chunks, read_shards, write_chunks
from distill.store.format.codes import ANSWER_ARRAYS, Codes, StoredBlock
from distill.store.format.commits import Commit
from distill.store.format.damage import damage_named
from distill.store.format.documents import DOCUMENTS, document_digests, require_documents
from distill.store.format.finishing import sole_finisher
from distill.store.format.layout import (
    SAMPLE_ARRAYS,
    create_arrays,
    create_hierarchy,
    read_hierarchy,
)
from distill.store.format.manifest import Manifest
from distill.store.format.root import CLAIM_KEY, COPY_KEY, ROOT_KEY, Root, claimed
from distill.store.places.objects import Objects, open_objects
from distill.targets.rows import TargetRows

Found = TypeVar("Found")
SETTLING_ROUNDS = 5

OWN_NAMES = {"claim", "finishing", *ANSWER_ARRAYS, *SAMPLE_ARRAYS, "hierarchy", "commits", "copy"}


@dataclass(frozen=True, eq=False)
class LogitStore:
    """An open store. Any number of processes may write different blocks of it."""

    objects: Objects
    manifest: Manifest

    # -- opening ----------------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        location: str | Path,
        manifest: Manifest,
        *,
        ids: SampleIds,
        labels: NDArray[np.int64],
        hierarchy: Mapping[str, Any],
    ) -> "LogitStore":
        """A new store; if another process makes the same one first, that one.

        hierarchy: the whole hierarchy as JSON, so that a store needs no other file to be read.

        The root document is written last, so a store is there whole or not at all, and what a
        killed process left of one is written over.

        Raises:
            StoreError: other files are there, or another store.
        """
        objects = open_objects(location)
        there = set(objects.names()) if objects.exists() else set()
        foreign = there - OWN_NAMES
        if there and not there & {ROOT_KEY, "claim"}:
            foreign = there  # every creation begins with its claim
        if foreign - {ROOT_KEY}:
            raise StoreError(
                f"{objects.location}: holds {', '.join(sorted(foreign)[:3])}, expected an empty "
                "place for a store; choose another --store"
            )
        objects.make_place()
        if ROOT_KEY not in foreign and claimed(objects, manifest):
            create_arrays(objects, manifest, ids, labels)
            create_hierarchy(objects, hierarchy)
            objects.write(commits.GROUP_KEY, commits.GROUP_DOCUMENT)
            digests = document_digests(objects, DOCUMENTS)
            root = Root(manifest=manifest, documents=digests)
            objects.write_new(COPY_KEY, root.to_document())
            objects.write_new(ROOT_KEY, root.to_document())
            objects.delete([CLAIM_KEY])
        store = cls.open(objects)
        if store.manifest.identity != manifest.identity:
            raise StoreError(
                f"{objects.location}: another process made another store there; choose a new path"
            )
        return store

    @classmethod
    def open(cls, location: str | Path | Objects) -> "LogitStore":
        """Open what is there, complete or not, and check every document of it.

        Raises:
            StoreError: nothing is there, or it cannot be read.
            CorruptStoreError: something is, but not a whole store.
        """
        objects = open_objects(location)
        root = Root.read(objects)
        require_documents(objects, root)
        return cls(objects, root.manifest)

    @property
    def location(self) -> str:
        """Folder or URL."""
        return self.objects.location

    @property
    def certificate(self) -> dict[str, Any] | None:
        """What `finish` wrote; None while blocks are missing."""
        certificate = self._root().certificate
        return None if certificate is None else dict(certificate)

    def require_complete(self) -> dict[str, Any]:
        """The certificate.

        Raises:
            IncompleteStoreError: blocks are still to be computed.
        """
        certificate = self.certificate
        if certificate is None:
            missing = len(self.pending_blocks())
            what = f"{missing} of {self.manifest.num_blocks} blocks are missing"
            raise IncompleteStoreError(
                f"{self.location}: {what if missing else 'no block is missing, none certified'}, "
                "expected a complete store; run the same `distill precompute` again, it goes on "
                "where it stopped"
            )
        return certificate

    def _root(self) -> Root:
        """As it is now: another process may have finished the store."""
        root = Root.read(self.objects)
        if root.manifest.identity != self.manifest.identity:
            raise StoreError(f"{self.location}: another store was put there; open it again")
        return root

    # -- commits ----------------------------------------------------------------------------------

    def pending_blocks(self) -> list[int]:
        """The blocks that no commit counts for, ascending."""
        committed = self._unmoved(self._committed)
        return sorted(set(range(self.manifest.num_blocks)) - committed)

    def is_pending(self, block: int) -> bool:
        """`pending_blocks` of one, at the cost of looking up one."""

        def look(root: Root) -> bool:
            compacted = bool(root.generation) and block not in root.revoked
            if root.certificate is not None or compacted:
                return False
            return self.objects.read(commits.record_key(block)) is None

        return self._unmoved(look)

    def block_commits(self) -> dict[int, Commit]:
        """What a reader needs of each committed block.

        Raises:
            CorruptStoreError: the commits are damaged.
        """
        return self._unmoved(self.commits_of)

    def content_digests(self) -> dict[int, tuple[str, ...]]:
        """SHA-256 of each committed block by view, in hexadecimal.

        Raises:
            CorruptStoreError: the commits are damaged.
        """
        return {block: commit.digests for block, commit in self.block_commits().items()}

    def records(self) -> dict[int, commits.Record]:
        """The whole commit record of each committed block.

        Raises:
            CorruptStoreError: the commits are damaged.
        """
        return self._unmoved(self.records_of)

    def _unmoved(self, read: Callable[[Root], Found]) -> Found:
        """What `read` finds; again where another process compacted what it was reading."""
        while True:
            root = self._root()
            try:
                value = read(root)
            except CorruptStoreError:
                if self._root() == root:
                    raise
                continue
            if root.certificate is not None or self._root() == root:
                return value

    def _committed(self, root: Root) -> set[int]:
        count = self.manifest.num_blocks
        if root.certificate is not None:
            return set(range(count))
        compacted = set(range(count)) - set(root.revoked) if root.generation else set()
        return compacted | set(commits.recorded_blocks(self.objects, count))

    def commits_of(self, root: Root) -> dict[int, Commit]:
        """`commits` by a root that is at hand."""
        found: dict[int, Commit] = {}
        if root.generation:
            compacted = commits.read_compacted(self.objects, root)
            revoked = set(root.revoked)
            found = {block: c for block, c in enumerate(compacted) if block not in revoked}
        if root.certificate is None:
            found |= {b: commits.commit_of(r) for b, r in self._own_records().items()}
        return dict(sorted(found.items()))

    def records_of(self, root: Root) -> dict[int, commits.Record]:
        """`records` by a root that is at hand."""
        records: dict[int, commits.Record] = {}
        if root.generation:
            compacted = commits.read_compacted_records(self.objects, root)
            revoked = set(root.revoked)
            records = {b: r for b, r in compacted.items() if b not in revoked}
        if root.certificate is None:
            records |= self._own_records()
        return dict(sorted(records.items()))

    def _own_records(self) -> dict[int, commits.Record]:
        blocks = commits.recorded_blocks(self.objects, self.manifest.num_blocks)
        return commits.read_records(self.objects, blocks, self.manifest)

    def revoke(self, blocks: Sequence[int]) -> None:
        """Take the commits of those blocks back: they are to be computed again."""
        version2.require_current(self.location, self.manifest)
        root = self._root()
        if root.generation:
            revoked = tuple(sorted({*root.revoked, *blocks}))
            replace(root, revoked=revoked, certificate=None).write(self.objects)
        commits.delete_records(self.objects, blocks)

    # -- writing ----------------------------------------------------------------------------------

    def write_block(
        self, block: int, views: Sequence[TargetRows], facts: Mapping[str, Any]
    ) -> None:
        """Write a block's chunks for all views, then commit it. Writing it twice changes nothing.

        facts: what the writer wants kept with it, as JSON (bad images, audit).

        Raises:
            StoreError: the place cannot be written; the block is not committed.
        """
        self.write_codes(block, [self.quantise(answers) for answers in views], facts)

    def write_codes(self, block: int, views: Sequence[Codes], facts: Mapping[str, Any]) -> None:
        """`write_block` for rows that are integers already."""
        rows = self.manifest.rows_of_block(block)
        if len(views) != self.manifest.views.count or any(len(v) != len(rows) for v in views):
            raise ValueError(
                f"block {block}: {[len(v) for v in views]} rows by view found, expected "
                f"{self.manifest.views.count} times {len(rows)}"
            )
        version2.require_current(self.location, self.manifest)
        if not self.is_pending(block):
            return
        stored = [self.manifest.coding.to_stored(codes) for codes in views]
        record = {
            "block": block,
            "store": self.manifest.identity,
            "rows": [rows.start, rows.stop],
            "content_sha256": [block_digest(each) for each in stored],
            "chunk_bytes": write_chunks(self.objects, self.manifest, block, stored),
            "host": socket.gethostname(),
            "committed_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            **facts,
        }
        alone = commits.write_record(self.objects, record)
        self._settle(block, record, stored, alone)

    def _settle(
        self, block: int, record: commits.Record, stored: Sequence[StoredBlock], alone: bool
    ) -> None:
        """Several writers may have had this block: the commit must tell what its chunks hold.

        On like machines all of them computed the same. Elsewhere the last bit may differ, and the
        chunks of one writer may stand under the record of another, or be mixed.
        """
        for _ in range(SETTLING_ROUNDS):
            root, counts = self._root(), commits.commit_of(record)
            compacted = bool(root.generation) and block not in root.revoked
            if compacted:
                counts = self.commits_of(root)[block]
                commits.delete_records(self.objects, [block])
            elif others := commits.read_records(self.objects, [block], self.manifest):
                counts = commits.commit_of(others[block])
            if (alone and not compacted) or self._is_whole(block, counts):
                return
            alone = False
            if compacted:
                self.revoke([block])
            commits.replace_record(self.objects, record)
            write_chunks(self.objects, self.manifest, block, stored)
        raise StoreError(
            f"{self.location}: another process writes other answers into block {block} again and "
            "again; run one writer per block, then `distill store verify`"
        )

    def _is_whole(self, block: int, commit: Commit) -> bool:
        try:
            self.read_block(block, commit)
        except CorruptStoreError:
            return False
        return True

    def damaged_records(self) -> list[int]:
        """Blocks whose own commit record is torn, or of another store."""
        return commits.damaged_records(self.objects, self.manifest)

    def damaged_blocks(self, stopping: Callable[[], bool] = lambda: False) -> list[int]:
        """Committed blocks that are not what was committed, or of another store: all are read.

        A power cut may have left them so, or a disk; `revoke` has them computed again. stopping:
        asked before each whether to look at no more.
        """
        damaged: list[int] = []

        def look(block: int) -> None:
            if stopping():
                return
            try:
                records = commits.read_records(self.objects, [block], self.manifest)
            except CorruptStoreError:
                damaged.append(block)
                return
            if not records and not root.generation:
                return  # taken back meanwhile, or compacted by another process
            commit = commits.commit_of(records[block]) if records else compacted[block]
            if not self._is_whole(block, commit):
                damaged.append(block)

        root = self._root()
        compacted = commits.read_compacted(self.objects, root) if root.generation else []
        with ThreadPoolExecutor(max(self.objects.requests, os.cpu_count() or 1)) as pool:
            list(pool.map(look, self._committed(root)))
        return sorted(damaged)

    def finish(
        self,
        *,
        stopping: Callable[[], bool] = lambda: False,
        say: Callable[[str], None] = lambda line: None,
    ) -> dict[str, Any]:
        """Certify a store whose blocks are all committed, and compact its commits.

        All is read back before: a power cut may leave a commit whose chunks were lost. stopping:
        asked again and again whether to leave it at that. say: told what is waited for.

        Raises:
            IncompleteStoreError: a block is missing, or was damaged and is pending now; or it was
            stopped.
        """
        version2.require_current(self.location, self.manifest)

        def nothing_to_finish() -> bool:
            return stopping() or self.certificate is not None or bool(self.pending_blocks())

        root = self._root()
        if root.certificate is not None:
            self._tidy(root)
            return dict(root.certificate)
        with sole_finisher(self.objects, nothing_to_finish, say) as ours:
            if ours:
                self._finish(stopping)
        return self.require_complete()

    def _finish(self, stopping: Callable[[], bool]) -> None:
        damaged = self.damaged_blocks(stopping)
        if stopping():
            return
        if damaged and self._root().certificate is None:  # else another one mended and finished it
            self.revoke(damaged)
            raise IncompleteStoreError(
                f"{self.location}: {len(damaged)} committed blocks are damaged (first "
                f"{damaged[0]}), as after a power cut; they are to be computed again"
            )
        records = self.records()
        root = self._root()
        if root.certificate is not None:
            return
        missing = self.manifest.num_blocks - len(records)
        if missing:
            raise IncompleteStoreError(
                f"{self.location}: {missing} blocks are missing; run it again"
            )
        require_documents(self.objects, root)
        generation, digests = commits.write_compacted(self.objects, records)
        documents = {key: root.documents[key] for key in DOCUMENTS}
        documents |= document_digests(self.objects, commits.compacted_keys(generation))
        root = replace(
            root,
            documents=documents,
            generation=generation,
            compacted_sha256=digests,
            revoked=(),
            certificate=certificate_of(records),
        )
        root.write(self.objects)
        self._tidy(root)

    def _tidy(self, root: Root) -> None:
        """Remove what a finished store does not need: claim, single records, older generations."""
        self.objects.tidy()
        self.objects.delete([CLAIM_KEY, finishing.KEY])
        single = commits.recorded_blocks(self.objects, self.manifest.num_blocks)
        commits.delete_records(self.objects, single)
        commits.delete_other_generations(self.objects, root.generation)

    # -- reading ----------------------------------------------------------------------------------

    @cached_property
    def sample_ids(self) -> SampleIds:
        """[rows, 2] uint64, ascending. 16 bytes a row in memory; `RowIndex` shares them."""
        return self._samples[0]

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """[rows]: class index of each sample's own label, -1 where it has none."""
        return self._samples[1]

    @cached_property
    def _samples(self) -> tuple[SampleIds, NDArray[np.int64]]:
        with damage_named(self.location, "sample_id or label"):
            ids, labels = (
                self.objects.read_array(name, 2 * self.manifest.dataset.rows)
                for name in SAMPLE_ARRAYS
            )
            labels = labels.astype(np.int64)
            if samples_digest(ids, labels) != self.manifest.dataset.digest:
                raise ValueError("its digest does not match")
        return ids, labels

    @cached_property
    def hierarchy(self) -> dict[str, Any]:
        """The hierarchy as JSON."""
        with damage_named(self.location, "hierarchy"):
            return read_hierarchy(self.objects)

    def read_codes(self, block: int, view: int, commit: Commit) -> Codes:
        """A block of one view as stored; its arrays are views with rows first.

        commit: of that block, from `commits`.

        Raises:
            CorruptStoreError: a chunk is missing or damaged, or its content was not committed.
        """
        place = self.objects, self.manifest, block, view
        if self.manifest.version == version2.VERSION:
            stored = version2.read_block(*place, commit.digests[view])
            return self.manifest.coding.from_stored(stored)
        stored = read_chunks(*place, commit.chunk_bytes)
        with damage_named(self.location, f"block {block} of view {view}"):
            if block_digest(stored) != commit.digests[view]:
                raise ValueError("it is not what was committed")
        return self.manifest.coding.from_stored(stored)

    def read_block(self, block: int, commit: Commit) -> list[Codes]:
        """`read_codes` of all views; every byte of the block is looked at, whoever reads it.

        Raises:
            CorruptStoreError: a shard is missing or damaged, or its content was not committed.
        """
        if self.manifest.version == version2.VERSION:
            return [self.read_codes(block, view, commit) for view in range(len(commit.digests))]
        views = read_shards(self.objects, self.manifest, block, commit.chunk_bytes)
        for view, (stored, digest) in enumerate(zip(views, commit.digests, strict=True)):
            with damage_named(self.location, f"block {block} of view {view}"):
                if block_digest(stored) != digest:
                    raise ValueError("it is not what was committed")
        return [self.manifest.coding.from_stored(stored) for stored in views]

    def quantise(self, answers: TargetRows) -> Codes:
        """What this store keeps of `answers`."""
        return self.manifest.coding.quantise(answers)

    def bytes_total(self) -> int:
        """Bytes of all objects of the store."""
        return self.objects.bytes_total()


def has_store(location: str | Path) -> bool:
    """Whether a store is there, whole or damaged, and not just what a killed `create` left."""
    objects = open_objects(location)
    return objects.exists() and objects.read(ROOT_KEY) is not None
