"""Decoded views on this machine's disk: what is damaged there reaches nobody."""

import json
from pathlib import Path

import numpy as np
from small_store import VIEWS, make_complete

from distill.store.views import cache
from distill.store.views.cache import Cache
from distill.store.views.resident import open_resident_view


def test_flipped_bits_in_the_cache_do_not_reach_a_student(tmp_path: Path) -> None:
    store, folder = make_complete(tmp_path / "store"), tmp_path / "cache"
    whole = open_resident_view(store, 0, Cache(folder)).records.copy()
    (file,) = folder.glob("*.rows")
    content = file.read_bytes()
    chance = np.random.default_rng(0)
    for _ in range(200):
        place = int(chance.integers(8 * len(content)))
        damaged = bytearray(content)
        damaged[place // 8] ^= 1 << place % 8
        file.unlink()
        file.write_bytes(damaged)  # as another process finds it, which has not seen it before
        cache._checked.clear()
        assert (open_resident_view(store, 0, Cache(folder)).records == whole).all(), place
        assert file.read_bytes() == content


def test_cache_is_listed_checked_and_cleared(
    distill,  # type: ignore[no-untyped-def]
    tmp_path: Path,
) -> None:
    store, folder = make_complete(tmp_path / "store"), tmp_path / "cache"
    for view in range(VIEWS):
        open_resident_view(store, view, Cache(folder))
    held = open_resident_view(store, 0, Cache(folder))
    listed = json.loads(distill("cache", "list", "--cache", folder, "--json").out)
    assert sorted(file["in_use"] for file in listed["files"]) == [False, True]
    assert "decoded view" in distill("cache", "list", "--cache", folder).out
    assert distill("cache", "verify", "--cache", folder).code == 0
    idle = next(f for f in folder.glob("*.rows") if "view1" in f.name)
    idle.write_bytes(idle.read_bytes()[:-1] + b"x")
    ran = distill("cache", "verify", "--cache", folder)
    assert ran.code == 2
    assert f"damaged, and removed: {idle.stem}" in ran.out
    open_resident_view(store, 1, Cache(folder))
    (folder / "dead-view1.rows.building").write_bytes(bytes(5000))
    (folder / "folder.rows").mkdir()
    assert "freed" in distill("cache", "clear", "--cache", folder).out
    (folder / "folder.rows").rmdir()
    assert not list(folder.glob("*.building"))
    assert [f.name.rpartition("-")[2] for f in folder.glob("*.rows")] == ["view0.rows"]
    assert len(held.records) == 50
    assert distill("cache", "list", "--cache", tmp_path / "nowhere").code == 0
