"""The power fails after each single step of a run, and the disk has what it may have by then."""

import errno
import os
import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from power import Recorder
from small_store import HIERARCHY, IDS, LABELS, create, make_complete, make_manifest, write

from distill.errors import (
    CorruptStoreError,
    IncompleteStoreError,
    StoreError,
    StoreMismatchError,
)
from distill.store.format.root import COPY_KEY, ROOT_KEY
from distill.store.logit_store import LogitStore
from distill.store.places.objects import open_objects
from distill.store.upkeep.repair import Dataset, mend_root
from distill.store.upkeep.verify import verify

MANIFEST = make_manifest(block_rows=25)  # two blocks
DATASET = Dataset(ids=IDS, labels=LABELS, hierarchy=HIERARCHY.to_json())


def go_on(folder: Path) -> LogitStore:
    """What `distill precompute` does with what it finds."""
    mend_root(str(folder), MANIFEST, DATASET)
    store = create(folder, MANIFEST)
    while True:
        store.revoke([] if store.certificate else store.damaged_records())
        write(store, store.pending_blocks())
        with suppress(IncompleteStoreError):
            store.finish()
            return store


@pytest.mark.parametrize(
    "seed", [None, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)]
)
def test_whatever_a_power_cut_leaves_the_same_command_comes_to_the_same_end(
    tmp_path: Path, seed: int | None
) -> None:
    folder, crashed = tmp_path / "store", tmp_path / "crashed"
    expected = make_complete(tmp_path / "whole", MANIFEST).content_digests()
    with pytest.MonkeyPatch.context() as patch:
        recorder = Recorder(patch, folder)
        store = create(folder, MANIFEST)
        recorder.note("created")
        for block in range(2):
            write(store, [block])
            recorder.note(block)
        store.finish()
        recorder.note("finished")
    said: set[object] = set()
    every = range(len(recorder.steps) + 1)
    # Every step takes a minute: each third of them here, another third for each seed.
    for count in [n for n in every if n % 3 == (seed or 0) % 3 or n == every[-1]]:
        said = {step[1] for step in recorder.steps[:count] if step[0] == "note"}
        choose = None if seed is None else random.Random(f"{seed} {count}")
        shutil.rmtree(crashed, ignore_errors=True)
        crashed.mkdir()
        recorder.after(count, choose).write_to(crashed)
        if "created" in said:
            found = LogitStore.open(crashed)
            assert not {*found.pending_blocks()} & said, f"after step {count}"
            assert ("finished" not in said) or verify(str(crashed)).complete
        store = go_on(crashed)
        assert store.content_digests() == expected, f"after step {count}"
        assert verify(str(crashed)).ok, f"after step {count}"
    assert said == {"created", 0, 1, "finished"}
    assert len(recorder.steps) > 200


def test_chunks_that_a_disk_lost_under_their_commits_are_computed_again(tmp_path: Path) -> None:
    """A disk that does not flush when it is told to."""
    whole = make_complete(tmp_path / "whole", MANIFEST)
    for damage in ("empty", "torn", "gone"):
        store = create(tmp_path / damage, MANIFEST)
        write(store, [0, 1])
        chunk = tmp_path / damage / "index" / "c.1.0.0"
        content = chunk.read_bytes()
        chunk.write_bytes({"empty": b"", "torn": content[:-40], "gone": b""}[damage])
        if damage == "gone":
            chunk.unlink()
        assert store.damaged_blocks() == [1]
        assert go_on(tmp_path / damage).content_digests() == whole.content_digests()


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize("damage", [b"", b"{", None])
def test_a_lost_root_and_copy_are_written_again(
    tmp_path: Path, finished: bool, damage: bytes | None
) -> None:
    store = create(tmp_path / "store", MANIFEST)
    write(store, [0, 1] if finished else [1])
    certificate = store.finish() if finished else None
    digests = store.content_digests()
    for key in (ROOT_KEY, COPY_KEY):
        if damage is None:
            (tmp_path / "store" / key).unlink()
        else:
            (tmp_path / "store" / key).write_bytes(damage)
    with pytest.raises(CorruptStoreError):
        LogitStore.open(tmp_path / "store")
    mend_root(str(tmp_path / "store"), MANIFEST, DATASET)
    found = LogitStore.open(tmp_path / "store")
    assert found.pending_blocks() == ([] if finished else [0])  # nothing is computed twice
    assert found.content_digests() == digests
    if finished:
        assert go_on(tmp_path / "store").certificate == certificate
    assert verify(str(tmp_path / "store")).ok


def test_a_block_of_another_store_counts_for_none(tmp_path: Path) -> None:
    """A writer that goes on after `rm -rf`, and a new store at the same place."""
    store = create(tmp_path / "store", MANIFEST)
    other = make_complete(
        tmp_path / "other", make_manifest(block_rows=25, encoding=MANIFEST.encoding)
    )
    teacher = make_manifest().teacher
    stranger = create(
        tmp_path / "stranger",
        make_manifest(
            block_rows=25, teacher=type(teacher)(**{**vars(teacher), "fingerprint": "0"})
        ),
    )
    write(stranger, [0, 1])
    write(store, [1])
    for name in ("index", "prob", "confidence", "sq_norm"):
        shutil.copy(tmp_path / "stranger" / name / "c.0.0.0", tmp_path / "store" / name)
    shutil.copytree(
        tmp_path / "stranger" / "commits" / "00000000", tmp_path / "store" / "commits" / "00000000"
    )
    with pytest.raises(CorruptStoreError, match=r"commits/00000000 is damaged .it is of another"):
        store.block_commits()
    with pytest.raises(IncompleteStoreError, match=r"1 committed blocks are damaged .first 0"):
        store.finish()
    shutil.copytree(
        tmp_path / "stranger" / "commits" / "00000000", tmp_path / "store" / "commits" / "00000000"
    )
    assert any("it is of another store" in problem for problem in verify(store.location).problems)
    assert go_on(tmp_path / "store").content_digests() == other.content_digests()
    open_objects(stranger.location).delete([ROOT_KEY, COPY_KEY])
    with pytest.raises(StoreMismatchError, match="all commits there are damaged or of another"):
        mend_root(stranger.location, MANIFEST, DATASET)


@pytest.mark.parametrize("finished", [False, True])
def test_commits_without_a_root_are_never_written_over(
    tmp_path: Path, finished: bool, tree_bytes: Callable[[Path], dict[str, bytes]]
) -> None:
    """Of another store, or of this one with another --block-rows."""
    other = create(tmp_path / "store", make_manifest(block_rows=10))
    write(other, range(5))
    if finished:
        other.finish()
    for key in (ROOT_KEY, COPY_KEY):
        (tmp_path / "store" / key).unlink()
    before = tree_bytes(tmp_path / "store")
    with pytest.raises(StoreMismatchError, match="or --block-rows"):
        mend_root(other.location, MANIFEST, DATASET)
    with pytest.raises(StoreError, match="holds commits, "):
        create(tmp_path / "store", MANIFEST)
    assert tree_bytes(tmp_path / "store") == before


def test_a_torn_root_of_a_store_without_a_block_is_made_anew(tmp_path: Path) -> None:
    create(tmp_path / "store", MANIFEST)
    for key in (ROOT_KEY, COPY_KEY):
        (tmp_path / "store" / key).write_bytes(b"")
    assert go_on(tmp_path / "store").certificate is not None


def test_disks_without_links_or_flushed_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    assert make_complete(tmp_path / "linkless", MANIFEST).certificate is not None
    again = create(tmp_path / "linkless", MANIFEST)
    assert not again.objects.write_new(ROOT_KEY, b"x")
    flush = os.fsync

    def broken(number: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{number}"):  # noqa: PTH112
            raise OSError(errno.EIO, "Input/output error")
        flush(number)

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(StoreError, match="Input/output error"):
        create(tmp_path / "broken", MANIFEST)


def test_a_writer_notices_that_its_place_holds_another_store(tmp_path: Path) -> None:
    store = create(tmp_path / "store", MANIFEST)
    shutil.rmtree(tmp_path / "store")
    create(tmp_path / "store", make_manifest(block_rows=10))
    with pytest.raises(StoreError, match="another store was put there"):
        write(store, [0])
    assert not np.any([p.name.startswith("c.") for p in (tmp_path / "store" / "prob").iterdir()])
