import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from child import DTYPE
from small_store import BLOCK, IDS, ROWS, answers_of, create, make_complete, make_manifest, write

from distill.data.order import SampleOrder
from distill.errors import CorruptStoreError, IncompleteStoreError, StoreError
from distill.store.format.codes import ANSWER_ARRAYS, Codes
from distill.store.logit_store import LogitStore
from distill.store.views.cache import Cache, Put
from distill.store.views.lookup import open_row_index
from distill.store.views.resident import open_resident_view, resident_bytes
from distill.store.views.stream import StreamedView

CHILD = Path(__file__).parents[1] / "child.py"


@pytest.fixture
def complete(tmp_path: Path) -> LogitStore:
    return make_complete(tmp_path / "store")


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def plain_rows(store: LogitStore, view: int) -> Any:
    """All rows of a view by the slow way round."""
    blocks = range(store.manifest.num_blocks)
    coding = store.manifest.coding
    return Codes.concatenate([coding.quantise(answers_of(store.manifest, b, view)) for b in blocks])


@pytest.mark.parametrize("kind", ["resident", "streamed of 2 blocks", "streamed of all"])
def test_views_gather_any_rows(
    complete: LogitStore, cache: Cache, random: np.random.Generator, kind: str
) -> None:
    if kind == "resident":
        view: Any = open_resident_view(complete, 1, cache)
    else:
        view = StreamedView(complete, 1, capacity=2 if "2" in kind else 9)
    everything = complete.manifest.coding.dequantise(plain_rows(complete, 1))
    for count in (1, 3, 200, 2):
        rows = random.integers(0, ROWS, count)
        gathered = view.gather(rows)
        for name in ANSWER_ARRAYS:
            assert (getattr(gathered, name) == getattr(everything, name)[rows]).all(), name
        assert gathered.prob.dtype == np.float32


def test_streaming_goes_on_after_a_damaged_block(complete: LogitStore) -> None:
    chunk = Path(complete.location, "prob", "c.1.0.0")
    whole = chunk.read_bytes()
    chunk.write_bytes(b"garbage")
    view = StreamedView(complete, 0, capacity=2)
    everything = complete.manifest.coding.dequantise(plain_rows(complete, 0))
    for rows in (np.arange(ROWS), np.array([20]), np.array([3, 20])):
        with pytest.raises(CorruptStoreError, match="block 1 of view 0"):
            view.gather(rows)
    assert (view.gather(np.array([3, 40])).prob == everything.prob[[3, 40]]).all()
    chunk.write_bytes(whole)
    assert (view.gather(np.arange(ROWS)).prob == everything.prob).all()


def test_resident_view_is_built_once_and_rebuilt_when_torn_or_foreign(
    complete: LogitStore, cache: Cache
) -> None:
    open_resident_view(complete, 0, cache)
    (built,) = cache.folder.glob("*.rows")
    inode, content = built.stat().st_ino, built.read_bytes()
    open_resident_view(complete, 0, cache)
    assert built.stat().st_ino == inode
    for foreign in (b"torn", bytes(len(content))):
        built.write_bytes(foreign)
        open_resident_view(complete, 0, cache)
        assert built.read_bytes() == content


def test_damaged_store_leaves_nothing_in_the_cache(complete: LogitStore, cache: Cache) -> None:
    Path(complete.location, "sq_norm", "c.1.0.0").unlink()
    with pytest.raises(CorruptStoreError, match="its chunk of sq_norm is missing"):
        open_resident_view(complete, 0, cache)
    assert {p.suffix for p in cache.folder.iterdir()} == {".lock"}


def test_views_that_are_not_there_are_named(complete: LogitStore, cache: Cache) -> None:
    with pytest.raises(StoreError, match="view 2 asked for, expected 0 to 1"):
        open_resident_view(complete, 2, cache)
    unfinished = create(cache.folder.parent / "unfinished")
    write(unfinished, [1])
    for opening in (
        lambda: open_resident_view(unfinished, 0, cache),
        lambda: StreamedView(unfinished, 0, capacity=4),
    ):
        with pytest.raises(IncompleteStoreError, match="3 of 4 blocks are missing"):
            opening()


def test_who_waits_for_another_process_says_so(
    complete: LogitStore,
    cache: Cache,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("distill.store.views.cache.SAY_EVERY_LOOKS", 2)
    open_resident_view(complete, 0, cache)
    (lock,) = cache.folder.glob("*view0.lock")
    with ThreadPoolExecutor(1) as pool:
        with lock.open("w") as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            waiting = pool.submit(open_resident_view, complete, 0, cache)
            time.sleep(0.5)
            assert not waiting.done()
        waiting.result(timeout=10)
    said = capsys.readouterr().err
    assert f"{cache.folder}: waiting for another process, which makes {lock.stem}" in said


def test_cache_that_cannot_be_written_is_named(complete: LogitStore, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="pass another --cache"):
        open_resident_view(complete, 0, Cache(tmp_path / "file"))


def test_cache_keeps_its_limit_and_drops_the_least_recently_used(
    complete: LogitStore, tmp_path: Path
) -> None:
    size = resident_bytes(complete) + 32 + 4
    other = make_complete(tmp_path / "other", make_manifest(block_rows=25))
    cache = Cache(tmp_path / "cache", limit_bytes=2 * size)
    for store, view in ((complete, 0), (complete, 1), (complete, 0), (other, 0)):
        open_resident_view(store, view, cache)
        time.sleep(0.02)  # file times are coarse
    names = [p.name for p in cache.folder.glob("*.rows")]
    assert sum(name.endswith("view0.rows") for name in names) == 2
    assert len(names) == 2
    # What is in use stays, and what cannot fit says so.
    kept = [open_resident_view(complete, 0, cache), open_resident_view(other, 0, cache)]
    with pytest.raises(StoreError, match=r"0 bytes are available of .* allowed.*--cache-gib"):
        open_resident_view(complete, 1, cache)
    assert len(kept) == 2
    del kept
    open_resident_view(complete, 1, cache)


def test_full_disk_is_named_and_nothing_is_left(complete: LogitStore, tmp_path: Path) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(folder)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        free = os.statvfs(folder).f_bfree * os.statvfs(folder).f_frsize
        (folder / "filler").write_bytes(bytes(free))
        with pytest.raises(StoreError, match="free them or pass another --cache"):
            open_resident_view(complete, 0, Cache(folder))
        assert not [*folder.glob("*.rows*")]
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_of_several_processes_one_builds(tmp_path: Path) -> None:
    command = [sys.executable, CHILD, "build", tmp_path / "cache", tmp_path / "log", "0.3"]
    builders = [subprocess.Popen(command) for _ in range(4)]
    assert [builder.wait() for builder in builders] == [0] * 4
    assert (tmp_path / "log").read_text() == "built\n"


def test_builder_killed_in_the_middle_leaves_nothing_trusted(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    builder = subprocess.Popen([sys.executable, CHILD, "build", folder, tmp_path / "log", "60"])
    while not (tmp_path / "log").exists():
        time.sleep(0.01)
        assert builder.poll() is None
    os.kill(builder.pid, signal.SIGKILL)
    builder.wait()
    assert [p.suffix for p in folder.glob("shared.rows*")] == [".building"]

    def fill(put: Put) -> None:
        put(0, np.full(1000, 3, DTYPE))

    assert (Cache(folder).open("shared", DTYPE, 1000, fill)["a"] == 3).all()
    assert [p.suffix for p in folder.glob("shared.rows*")] == [".rows"]


def test_rows_are_found_without_a_dictionary(
    complete: LogitStore, cache: Cache, random: np.random.Generator
) -> None:
    index = open_row_index(complete, cache)
    wanted = random.permutation(ROWS)
    assert (index.rows(IDS[wanted]) == wanted).all()
    assert index.rows(np.array([[1, 2]], np.uint64)).tolist() == [-1]


def test_whole_shuffles_are_pinned() -> None:
    """A change here breaks the resume of every run under way."""
    assert sorted(SampleOrder(1000, 7).epoch(3)) == list(range(1000))
    assert SampleOrder(8, 0).epoch(0).tolist() == [0, 2, 1, 5, 4, 3, 6, 7]
    order = SampleOrder(10, 0, block_rows=3, window=2)
    assert order.epoch(0).tolist() == [8, 7, 1, 0, 2, 6, 4, 9, 5, 3]


def test_block_shuffles_hold_few_blocks_at_a_time() -> None:
    order = SampleOrder(ROWS, 5, block_rows=BLOCK, window=2).epoch(1)
    assert sorted(order) == list(range(ROWS))
    first = order[: len(order) // 2]
    assert len(np.unique(first[:18] // BLOCK)) <= 2
    assert (np.diff(first) != 1).any()


@pytest.mark.parametrize("blocks", [{}, {"block_rows": BLOCK, "window": 2}])
def test_resume_does_not_depend_on_batch_size_or_world_size(blocks: dict[str, int]) -> None:
    order = SampleOrder(ROWS, 3, **blocks)

    def consume(position: int, stop: int, batch: int, world: int) -> list[tuple[int, int]]:
        """What `world` ranks with `batch` samples each see, in the order of positions."""
        seen = []
        while position < stop:
            count = min(batch * world, stop - position)
            parts = [(epoch, int(row)) for epoch, rows in order.at(position, count) for row in rows]
            ranks = [parts[rank::world] for rank in range(world)]
            seen += [ranks[i % world][i // world] for i in range(count)]
            position += count
        return seen

    whole = consume(0, 130, 130, 1)
    assert [row for epoch, row in whole if epoch == 1] == order.epoch(1).tolist()
    for stop in (1, 37, 50, 99):
        for batch, world in ((8, 4), (5, 1), (7, 3)):
            assert consume(0, stop, 10, 2) + consume(stop, 130, batch, world) == whole


def test_two_views_built_at_once_keep_the_limit_together(tmp_path: Path) -> None:
    """Each fits alone; both do not: one of them has to say so."""
    cache = Cache(tmp_path / "cache", limit_bytes=6000)
    begun = threading.Barrier(2, timeout=10)

    def fill(put: Put) -> None:
        begun.wait()
        put(0, np.full(1000, 1, DTYPE))

    def build(name: str) -> str:
        try:
            return str(cache.open(name, DTYPE, 1000, fill)["a"].min())
        except StoreError as error:
            begun.wait()  # lets the other one go on
            return str(error)

    with ThreadPoolExecutor(2) as pool:
        said = sorted(pool.map(build, ["one", "other"]))
    assert "bytes are available" in said[0] or "bytes are available" in said[1]
    assert "1" in (said[0], said[1])
    assert sum(p.stat().st_size for p in cache.folder.glob("*.rows*")) <= 6000


def test_a_file_evicted_before_it_was_mapped_is_built_again(
    complete: LogitStore, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_resident_view(complete, 0, cache)
    evictions = 0

    def is_whole_but_evicted_at_once(path: Path, size: int) -> bool:
        nonlocal evictions
        if evictions == 0:
            evictions += 1
            path.unlink()
            return True
        return path.exists()

    monkeypatch.setattr("distill.store.views.cache._is_whole", is_whole_but_evicted_at_once)
    assert len(open_resident_view(complete, 0, cache).records) == ROWS
    assert evictions == 1
