"""A logit store on disk: create, write blocks, resume, certify, read blocks.

A block is committed by one small Zarr group, `commits/<block>`, that is written after its chunks
and whose attributes are the commit record. A block without one does not exist, whatever chunks lie
there. When all are there, `finish` puts the certificate into the root attributes.
"""

import errno
import hashlib
import os
import shutil
import socket
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import zarr
import zarr.errors
from numpy.typing import NDArray

from distill.answers import Answers
from distill.errors import CorruptStoreError, IncompleteStoreError, StoreError, first_line
from distill.sample_id import SampleIds
from store.codes import Codes, quantise
from store.layout import ANSWER_ARRAYS, create_arrays
from store.manifest import Manifest


@dataclass(frozen=True, eq=False)
class LogitStore:
    """An open store. Any number of processes may write different blocks of it."""

    path: Path
    manifest: Manifest

    # -- opening ----------------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        path: Path,
        manifest: Manifest,
        *,
        ids: SampleIds,
        labels: NDArray[np.int64],
        hierarchy: Mapping[str, Any],
    ) -> "LogitStore":
        """A new store; if another process makes the same one first, that one.

        hierarchy: the whole hierarchy as JSON, so that a store needs no other file to be read.

        Built under another name and renamed, so that a store is there whole or not at all.
        """
        building = path.with_name(f".{path.name}.{uuid.uuid4().hex}.creating")
        try:
            with _disk_errors(path):
                building.parent.mkdir(parents=True, exist_ok=True)
                group = zarr.create_group(building, zarr_format=3)
                create_arrays(group, manifest, ids, labels)
                group.create_group("commits", attributes=COMMITS_EXPLAINED)
                group.create_group("hierarchy", attributes=dict(hierarchy))
                group.update_attributes({"distill": manifest.to_json()})
                try:
                    building.rename(path)
                except OSError as error:
                    if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                        raise
        finally:
            shutil.rmtree(building, ignore_errors=True)
        store = cls.open(path)
        if store.manifest.identity != manifest.identity:
            raise StoreError(f"{path}: another process made another store there; choose a new path")
        return store

    @classmethod
    def open(cls, path: Path) -> "LogitStore":
        """Open what is there, complete or not.

        Raises:
            StoreError: nothing is there.
            CorruptStoreError: something is, but not a whole store.
        """
        if not path.exists():
            raise StoreError(
                f"{path}: no store there; `distill precompute --store {path}` makes one"
            )
        attributes = _root_attributes(path)
        if "distill" not in attributes:
            raise CorruptStoreError(
                f"{path}: not a distill store; expected a Zarr v3 group whose attributes have "
                "'distill', as `distill precompute` writes it"
            )
        return cls(path, Manifest.from_json(attributes["distill"], str(path)))

    @property
    def certificate(self) -> dict[str, Any] | None:
        """What `finish` wrote; None while blocks are missing."""
        certificate = _root_attributes(self.path).get("certificate")
        if certificate is None:
            return None
        parts = certificate if isinstance(certificate, dict) else {}
        blocks = parts.get("content_sha256")
        whole = isinstance(blocks, list) and len(blocks) == self.manifest.num_blocks
        if not whole or not {"fidelity", "replay"} <= parts.keys():
            raise CorruptStoreError(
                f"{self.path}: the certificate is damaged, expected digests of "
                f"{self.manifest.num_blocks} blocks; run the same `distill precompute` again"
            )
        return parts

    def require_complete(self) -> dict[str, Any]:
        """The certificate.

        Raises:
            IncompleteStoreError: blocks are still to be computed.
        """
        certificate = self.certificate
        if certificate is None:
            missing = len(self.pending_blocks())
            raise IncompleteStoreError(
                f"{self.path}: {missing} of {self.manifest.num_blocks} blocks are missing, "
                "expected a complete store; run the same `distill precompute` again, it goes on "
                "where it stopped"
            )
        return certificate

    # -- writing ----------------------------------------------------------------------------------

    def pending_blocks(self) -> list[int]:
        """The blocks without a commit record, ascending."""
        return sorted(set(range(self.manifest.num_blocks)) - self.commits().keys())

    def write_block(self, block: int, views: Sequence[Answers], facts: Mapping[str, Any]) -> None:
        """Write a block's chunks for all views, then commit it. Writing it twice changes nothing.

        facts: what the writer wants kept with it, as JSON (bad images, audit).
        """
        rows = self.manifest.rows_of_block(block)
        if len(views) != self.manifest.views.count or any(len(v) != len(rows) for v in views):
            raise ValueError(
                f"block {block}: {[len(v) for v in views]} rows by view found, expected "
                f"{self.manifest.views.count} times {len(rows)}"
            )
        digests = []
        with _disk_errors(self.path):
            for view, answers in enumerate(views):
                codes = self.quantise(answers)
                for name in ANSWER_ARRAYS:
                    self._array(name)[rows.start : rows.stop, view] = getattr(codes, name)
                digests.append(content_digest(codes))
            record = {
                "block": block,
                "rows": [rows.start, rows.stop],
                "content_sha256": digests,
                "host": socket.gethostname(),
                "committed_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                **facts,
            }
            # Where another writer was faster, its content is the same.
            with suppress(zarr.errors.ContainsGroupError):
                zarr.create_group(self.path / _commit_path(block), attributes=record)

    def finish(self, certificate: Mapping[str, Any]) -> dict[str, Any]:
        """Certify a store whose blocks are all committed.

        Raises:
            IncompleteStoreError: a block is missing.
        """
        commits = self.commits()
        missing = self.manifest.num_blocks - len(commits)
        if missing:
            raise IncompleteStoreError(f"{self.path}: {missing} blocks are missing; run it again")
        whole = {
            "content_sha256": [commits[b]["content_sha256"] for b in sorted(commits)],
            **certificate,
        }
        with _disk_errors(self.path):
            zarr.open_group(self.path, mode="r+").update_attributes({"certificate": whole})
        return whole

    def commits(self) -> dict[int, dict[str, Any]]:
        """The commit record of every committed block."""
        folder = self.path / "commits"
        found = {}
        for entry in sorted(folder.iterdir()) if folder.is_dir() else []:
            if entry.name.isdecimal() and (entry / "zarr.json").is_file():
                found[int(entry.name)] = self._checked(_attributes(entry), entry)
        return found

    def _checked(self, record: dict[str, Any], where: Path) -> dict[str, Any]:
        digests, bad = record.get("content_sha256"), record.get("bad")
        whole = isinstance(digests, list) and len(digests) == self.manifest.views.count
        if not whole or not isinstance(bad, list):
            raise CorruptStoreError(
                f"{where}: not a whole commit record, expected digests of "
                f"{self.manifest.views.count} views; delete it and run the same "
                "`distill precompute` again"
            )
        return record

    # -- reading ----------------------------------------------------------------------------------

    @cached_property
    def sample_ids(self) -> SampleIds:
        """[rows, 2] uint64, ascending."""
        with _damage(self.path, "sample_id"):
            ids: SampleIds = np.asarray(self._array("sample_id")[:])
        return ids

    @cached_property
    def labels(self) -> NDArray[np.int32]:
        """[rows] class index, -1 without a label."""
        with _damage(self.path, "label"):
            labels: NDArray[np.int32] = np.asarray(self._array("label")[:])
        return labels

    @property
    def hierarchy(self) -> dict[str, Any]:
        """The hierarchy as JSON."""
        return _attributes(self.path / "hierarchy")

    def read_codes(self, block: int, view: int, expected_digest: str | None = None) -> Codes:
        """A block of one view, as stored.

        Raises:
            CorruptStoreError: a chunk is damaged, or its content is not what was committed.
        """
        rows = self.manifest.rows_of_block(block)
        with _damage(self.path, f"block {block} of view {view}"):
            arrays = {
                name: np.asarray(self._array(name)[rows.start : rows.stop, view])
                for name in ANSWER_ARRAYS
            }
        codes = Codes(**arrays)
        if expected_digest is not None and content_digest(codes) != expected_digest:
            raise CorruptStoreError(
                f"{self.path}: block {block} of view {view} is not what was committed; "
                f"delete {_commit_path(block)} there and run the same `distill precompute` again"
            )
        return codes

    def quantise(self, answers: Answers) -> Codes:
        """What this store keeps of `answers`."""
        return quantise(
            answers, self.manifest.encoding, self.manifest.hierarchy.classes_per_hierarchy
        )

    def bytes_total(self) -> int:
        """Bytes of all files of the store."""
        return sum(f.stat().st_size for f in self.path.rglob("*") if f.is_file())

    def _array(self, name: str) -> zarr.Array[Any]:
        if name not in self._arrays:
            # By name: listing the group would stumble over files that another writer has in flight.
            if not (self.path / name / "zarr.json").is_file():
                raise CorruptStoreError(
                    f"{self.path}: the array {name!r} is missing, expected all of "
                    f"{', '.join(ANSWER_ARRAYS)}; restore it or precompute into another --store"
                )
            mode: Literal["r+", "r"] = "r+" if os.access(self.path, os.W_OK) else "r"
            with _damage(self.path, f"array {name!r}"):
                self._arrays[name] = zarr.open_array(self.path / name, mode=mode)
        return self._arrays[name]

    @cached_property
    def _arrays(self) -> dict[str, zarr.Array[Any]]:
        return {}


COMMITS_EXPLAINED = {
    "description": "One group for each committed block; its attributes are the commit record. "
    "A block without one has not been written whole."
}


def content_digest(codes: Codes) -> str:
    """SHA-256 over the stored values of a block of one view, array after array."""
    digest = hashlib.sha256()
    for name in ANSWER_ARRAYS:
        digest.update(np.ascontiguousarray(getattr(codes, name)).data)
    return digest.hexdigest()


def _commit_path(block: int) -> str:
    return f"commits/{block:08d}"


def _root_attributes(path: Path) -> dict[str, Any]:
    if not (path / "zarr.json").is_file():
        raise CorruptStoreError(
            f"{path}: no zarr.json found, expected a store that `distill precompute` wrote; "
            "choose another --store"
        )
    return _attributes(path)


def _attributes(path: Path) -> dict[str, Any]:
    with _damage(path, "zarr.json"):
        return dict(zarr.open_group(path, mode="r").attrs)


@contextmanager
def _damage(path: Path, what: str) -> Iterator[None]:
    """Whatever a codec or parser says of damaged bytes becomes one error."""
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        raise StoreError(f"{path}: {what} cannot be read: {error}; check the disk") from error
    except Exception as error:
        raise CorruptStoreError(
            f"{path}: {what} is damaged ({first_line(error)}); expected the bytes that were "
            "committed: delete its record under commits/ and run the same `distill precompute` "
            "again"
        ) from error


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"{path}: cannot be written ({error.strerror or error}); committed blocks are safe: "
            "free the disk or fix the permission, then run the same command again"
        ) from error
