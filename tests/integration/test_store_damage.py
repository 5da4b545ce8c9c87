"""What happens to a store's files is noticed, and a kill loses only what was in flight."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from small_store import create, make_complete, write

from distill.errors import StoreError
from distill.store.format.codes import ANSWER_ARRAYS
from distill.store.logit_store import LogitStore
from distill.store.upkeep.reader import RowReader
from distill.store.upkeep.verify import verify
from distill.store.views.cache import Cache
from distill.store.views.resident import open_resident_view

CHILD = Path(__file__).parents[1] / "child.py"
FLIPS = 160
KILLS = 50


def read_all(location: Path, cache: Path) -> None:
    """What training and inspecting read, by the ordinary ways."""
    store = LogitStore.open(location)
    store.require_complete()
    assert store.labels is not None
    assert store.records()
    assert store.hierarchy
    for view in range(store.manifest.views.count):
        open_resident_view(store, view, Cache(cache))


def is_found_by_verify(folder: Path) -> bool:
    """Told in its report, or as an error of one line where nothing can be read."""
    try:
        return not verify(str(folder)).ok
    except StoreError as error:
        return str(folder) in str(error) and "\n" not in str(error)


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("finished", [pytest.param(True, marks=pytest.mark.slow), False])
def test_a_flipped_bit_anywhere_is_found_by_verify_and_by_reading(
    tmp_path: Path, finished: bool
) -> None:
    folder = tmp_path / "store"
    store = create(folder)
    write(store, range(4))
    if finished:
        store.finish()
        read_all(folder, tmp_path / "whole")
    assert verify(str(folder)).ok
    chance = random.Random(7)
    files = files_of(folder)
    for flip in range(FLIPS):
        # Every file at least twice, the rest by size, as bits do.
        path = (files * 2)[flip] if flip < 2 * len(files) else chance.choice(files)
        whole = path.read_bytes()
        place = chance.randrange(8 * len(whole))
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << (place % 8)
        path.write_bytes(damaged)
        where = f"bit {place} of {path.relative_to(folder)}"
        assert is_found_by_verify(folder), where
        is_copy = path.parent.name == "copy"  # read by `repair` alone
        in_index = path.parent.name in ANSWER_ARRAYS and place // 8 >= len(whole) - 2 * 16 - 4
        if not is_copy and not in_index:  # which Zarr's readers check, and ours do not need
            with pytest.raises(StoreError):  # noqa: PT012
                if finished:
                    read_all(folder, tmp_path / f"cache{flip}")
                else:
                    opened = LogitStore.open(folder)
                    commits = opened.block_commits()
                    assert opened.labels is not None
                    for block, commit in commits.items():
                        for view in range(2):
                            opened.read_codes(block, view, commit)
                pytest.fail(where)
        path.write_bytes(whole)
        shutil.rmtree(tmp_path / f"cache{flip}", ignore_errors=True)
    assert verify(str(folder)).ok


@pytest.mark.parametrize("damage", ["cut", "empty", "delete"])
def test_a_torn_or_missing_file_is_found_by_verify(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "store"
    make_complete(folder)
    for path in files_of(folder):
        whole = path.read_bytes()
        if damage == "delete":
            path.unlink()
        else:
            path.write_bytes(whole[:-3] if damage == "cut" else b"")
        assert is_found_by_verify(folder), path
        path.write_bytes(whole)
    assert verify(str(folder)).ok


def test_killed_at_any_moment_by_any_number_of_writers_nothing_is_lost(
    tmp_path: Path, tree_bytes: Callable[[Path], dict[str, bytes]]
) -> None:
    """Three writers of overlapping blocks, all killed at a random moment, fifty times and more."""
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    make_complete(whole)
    chance = random.Random(3)
    kills = rounds = 0
    while kills < KILLS:
        shutil.rmtree(folder, ignore_errors=True)
        store = create(folder)
        committed: set[int] = set()
        rounds += 1
        while store.pending_blocks():
            writers = [
                forked_writer(folder, chance.sample(range(4), 4), chance.random()) for _ in range(3)
            ]
            time.sleep(chance.random() * 0.012)
            for writer in writers:
                os.kill(writer, signal.SIGKILL)
            for writer in writers:
                _, status = os.waitpid(writer, 0)
                kills += os.WIFSIGNALED(status)
            now = set(store.content_digests())
            assert committed <= now  # no commit is ever lost
            committed = now
            for block in now:
                for view in range(2):
                    RowReader(store, view)  # its digests are whole
                    store.read_codes(block, view, store.block_commits()[block])
        store.finish()
        same = {
            name: content
            for name, content in tree_bytes(whole).items()
            if not name.startswith(("commits/", "zarr.json", "copy/"))
        }
        after = tree_bytes(folder)
        assert {name: after[name] for name in same} == same
        assert verify(str(folder)).ok
        assert store.content_digests() == LogitStore.open(whole).content_digests()
    assert rounds >= 1


def forked_writer(folder: Path, blocks: list[int], patience: float) -> int:
    """A process without Python's start-up time, so that kills fall into the writing."""
    child = os.fork()
    if child:
        return child
    try:
        time.sleep(patience * 0.003)
        write(LogitStore.open(folder), blocks)
        time.sleep(60)
    finally:
        os._exit(0)


def test_full_disk_loses_nothing_and_the_same_command_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        store = create(folder / "store")
        write(store, [0])
        filler = folder / "filler"
        free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
        filler.write_bytes(bytes(free - 8192))
        with pytest.raises(StoreError, match=r"No space left .* committed blocks are safe"):
            write(store, [1, 2, 3])
        pending = LogitStore.open(folder / "store").pending_blocks()
        assert 0 not in pending
        assert pending
        filler.unlink()
        write(store, pending)
        store.finish()
        assert verify(str(folder / "store")).ok
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """One that every user may enter; pytest keeps its own to itself."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def test_folder_that_may_not_be_written_is_named(open_folder: Path) -> None:
    """As root nothing is forbidden, so the writer becomes another user."""
    if os.getuid() != 0:
        pytest.skip("needs to be root to become somebody else")
    store = create(open_folder / "store")
    write(store, [0])
    script = (
        "import os, sys; sys.path.insert(0, sys.argv[2])\n"
        "from distill.errors import StoreError\n"
        "from distill.store.logit_store import LogitStore\n"
        "from distill.store.upkeep.verify import verify\n"
        "from small_store import write\n"
        "write(LogitStore.open(sys.argv[1]), [1])  # whatever is imported late is imported\n"
        "os.setuid(65534)\n"
        "assert verify(sys.argv[1]).ok\n"
        "try: write(LogitStore.open(sys.argv[1]), [2])\n"
        "except StoreError as error: print(error)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script, str(open_folder / "store"), str(CHILD.parent)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Permission denied" in ran.stdout, ran.stderr
    assert "fix the permission, then run the same command again" in ran.stdout
    assert LogitStore.open(open_folder / "store").pending_blocks() == [2, 3]


def test_verify_lists_every_problem_and_its_json_says_the_same(
    distill,  # type: ignore[no-untyped-def]
    tmp_path: Path,
) -> None:
    folder = tmp_path / "store"
    make_complete(folder)
    ran = distill("store", "verify", folder)
    assert ran.code == 0
    assert "nothing wrong; 4 blocks × 2 views read, complete" in ran.out
    (folder / "prob" / "c.2.0.0").unlink()
    (folder / "index" / "c.0.0.0").write_bytes(b"no")
    (folder / "label" / "zarr.json").unlink()
    ran = distill("store", "verify", folder)
    assert ran.code == 2
    assert "block 0 of view 0 is damaged" in ran.out
    assert "its chunk of prob is missing" in ran.out
    assert "label/zarr.json is missing" in ran.out
    report: Any = json.loads(distill("store", "verify", folder, "--json").out)
    assert (report["ok"], report["bad_blocks"]) == (False, [0, 2])
