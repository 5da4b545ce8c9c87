"""Stopped before each single write and removal, in turn: afterwards everything goes on.

A kill falls between two operations of the place where the bytes lie, for each of them is atomic. So
stopping before the first, the second and so on to the last covers every instant that matters.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from power import CHANGES
from small_store import create, make_complete, write

from distill.errors import StoreError
from distill.files import PARTIAL
from distill.store.logit_store import LogitStore, has_store
from distill.store.upkeep.algebra import subset
from distill.store.upkeep.repair import restore, revoke_bad
from distill.store.upkeep.verify import verify


class Stopped(BaseException):
    """The kill."""


class Operations:
    """Counts what changes the place, and stops before number `allowed`."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.count, self.allowed = 0, 10**9
        patch.setattr(os, "fsync", lambda number: None)  # what a kill leaves needs no flush
        for name in CHANGES:
            patch.setattr(os, name, self.guarded(getattr(os, name)))

    def guarded(self, operation: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **keywords: Any) -> Any:
            if self.count >= self.allowed:
                raise Stopped
            self.count += 1
            return operation(*arguments, **keywords)

        return run

    def stop_everywhere(self, task: Callable[[], Any], before: Callable[[], Any]) -> Any:
        """Yields after each stop, and at last when the task was done."""
        allowed = 0
        while True:
            before()
            self.count, self.allowed = 0, allowed
            try:
                task()
                done = True
            except (Stopped, StoreError):
                done = False
            self.allowed = 10**9
            yield done
            if done:
                return
            allowed += 1


@pytest.fixture
def operations(monkeypatch: pytest.MonkeyPatch) -> Operations:
    return Operations(monkeypatch)


@pytest.fixture
def whole(tmp_path: Path) -> LogitStore:
    return make_complete(tmp_path / "whole")


@pytest.mark.slow
def test_creating_and_writing_and_finishing(
    tmp_path: Path, operations: Operations, whole: LogitStore
) -> None:
    folder = tmp_path / "store"
    stops = 0
    for _done in operations.stop_everywhere(
        lambda: make_complete(folder), lambda: shutil.rmtree(folder, ignore_errors=True)
    ):
        stops += 1
        if has_store(folder):
            store = LogitStore.open(folder)
            for block, commit in store.block_commits().items():
                for view in range(2):
                    store.read_codes(block, view, commit)
        make_complete(folder)
        assert verify(str(folder)).ok
        assert LogitStore.open(folder).content_digests() == whole.content_digests()
        # A half-written file goes later, and an empty folder says nothing.
        whole_files = [
            p for p in (folder / "commits").rglob("*") if p.suffix != PARTIAL and p.is_file()
        ]
        left = sorted({p.relative_to(folder / "commits").parts[0] for p in whole_files})
        assert [name[0] for name in left] == ["g", "z"]
        assert not (folder / "claim" / "zarr.json").exists()
    assert stops > 60


@pytest.mark.slow
def test_taking_blocks_back_and_computing_them_again(
    tmp_path: Path, operations: Operations, whole: LogitStore
) -> None:
    folder = tmp_path / "store"

    def damaged() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(whole.location, folder)
        (folder / "prob" / "c.2.0.0").write_bytes(b"no")

    def mend() -> None:
        restore(str(folder), None)
        revoke_bad(str(folder))
        store = LogitStore.open(folder)
        write(store, store.pending_blocks())
        store.finish()

    for _ in operations.stop_everywhere(mend, damaged):
        pending = LogitStore.open(folder).pending_blocks()
        assert pending in ([], [2])
        mend()
        assert verify(str(folder)).ok
        assert LogitStore.open(folder).content_digests() == whole.content_digests()


@pytest.mark.parametrize("lost", ["zarr.json", "prob/zarr.json", "commits/g*/records/zarr.json"])
def test_restoring(tmp_path: Path, operations: Operations, whole: LogitStore, lost: str) -> None:
    folder = tmp_path / "store"

    def damaged() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(whole.location, folder)
        next(folder.glob(lost)).unlink()

    def mend() -> None:
        restore(str(folder), None)
        store = LogitStore.open(folder)
        if store.certificate is None:
            store.finish()

    for _ in operations.stop_everywhere(mend, damaged):
        mend()
        assert verify(str(folder)).ok
        assert LogitStore.open(folder).content_digests() == whole.content_digests()


@pytest.mark.slow
def test_making_a_store_from_a_store(
    tmp_path: Path, operations: Operations, whole: LogitStore
) -> None:
    folder = tmp_path / "subset"
    rows = np.arange(5, 50)
    expected = subset(tmp_path / "expected", whole, rows=rows).content_digests()
    for _ in operations.stop_everywhere(
        lambda: subset(folder, whole, rows=rows), lambda: shutil.rmtree(folder, ignore_errors=True)
    ):
        assert subset(folder, whole, rows=rows).content_digests() == expected
        assert verify(str(folder)).ok


def test_a_finish_beside_another_is_one_finish(tmp_path: Path, operations: Operations) -> None:
    """At each moment of one process's finish another one reads, and finishes too."""
    folder = tmp_path / "store"

    def ready() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        write(create(folder), range(4))

    for _ in operations.stop_everywhere(lambda: LogitStore.open(folder).finish(), ready):
        other = LogitStore.open(folder)
        assert len(other.content_digests()) == 4
        assert other.pending_blocks() == []
        assert other.finish()["bad_images"] == 0
        assert verify(str(folder)).ok
