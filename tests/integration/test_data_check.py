"""`distill data check`: counts, damage, duplicates, tagging."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from raw_release import photo
from small_images import CIRCLE, SQUARE, jpeg

from distill.curate.duplicates import equal_groups, near_groups
from distill.files import write_csv
from distill.hierarchy.semantic import SemanticHierarchy


@pytest.fixture
def data(tmp_path: Path, hierarchy: SemanticHierarchy) -> Path:
    """Squares, circles, an ancestor of squares; damage, duplicates, a foreign class."""
    above = hierarchy.ancestors(SQUARE)[0]
    files = {
        f"train/{SQUARE}/a.JPEG": photo(1),
        f"train/{SQUARE}/b.jpg": photo(2),
        f"train/{above}/c.JPEG": photo(2),  # b, tagged more generally
        f"train/{CIRCLE}/d.png": photo(3),
        f"train/{SQUARE}/e.JPEG": photo(3),  # d, contradicting
        f"val/{SQUARE}/f.JPEG": photo(1),  # a, in two splits
        f"val/{CIRCLE}/g.JPEG": b"",
        f"val/{CIRCLE}/h.JPEG": photo(4, (99, 99))[:500],
        "train/n01440764/i.JPEG": photo(5),
        "train/n01440764/j.JPEG": photo(6),
    }
    for name, content in files.items():
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "data"


def check(distill, data: Path, *more: object) -> dict[str, object]:  # type: ignore[no-untyped-def]
    command = ("data", "check", "--data", data, "--label-set", "plane-figures", "--json")
    ran = distill(*command, "--workers", 0, *more)
    assert ran.code == 0, ran.err
    return json.loads(ran.out)  # type: ignore[no-any-return]


def test_everything_about_a_small_data_set(
    data: Path,
    distill,
    hierarchy: SemanticHierarchy,  # type: ignore[no-untyped-def]
) -> None:
    report = check(distill, data)
    assert report["images"] == {"train": 7, "val": 3}
    assert report["outside"] == {"n01440764": 2}
    assert report["unlabelled"] == 0
    assert report["classes_present"] == 3
    assert report["images_per_class"] == {"min": 1.0, "median": 3.0, "max": 4.0}
    assert report["unreadable_by_kind"] == {"not an image": 1, "undecodable image": 1}
    assert report["inner"] == 1
    levels = [level["tagged_here"] for level in report["per_hierarchy"]]  # type: ignore[attr-defined]
    above, square, circle = (
        int(hierarchy.levels[hierarchy.index(c)])
        for c in (hierarchy.ancestors(SQUARE)[0], SQUARE, CIRCLE)
    )
    tagged = [square] * 4 + [above] + [circle] * 3
    assert levels == [tagged.count(k) for k in range(hierarchy.num_hierarchies)]
    assert report["duplicates"] == {
        "pairs": 3,
        "same": 1,
        "general": 1,
        "contradicting": 1,
        "unknown": 0,
        "across_splits": 1,
    }
    assert report["near_duplicates"] is None


def test_table_and_lists_say_the_same(data: Path, tmp_path: Path, distill) -> None:  # type: ignore[no-untyped-def]
    command = ("data", "check", "--data", data, "--label-set", "plane-figures", "--near", 3)
    ran = distill(*command, "--out", tmp_path / "lists", "--workers", 2)
    assert ran.code == 0
    assert "10 images (7 train, 3 val)" in ran.out
    assert "NOT in the label set: 1 labels of 2 images" in ran.out
    assert "unreadable: 2 images" in ran.out
    assert "3 pairs are the same bytes, 1 of them in two splits" in ran.out
    assert "1 images (12.5%) are tagged with a class that has subclasses" in ran.out
    lists = {}
    for path in (tmp_path / "lists").iterdir():
        with path.open(newline="") as file:
            lists[path.name] = [*csv.DictReader(file)]
    assert {row["key"] for row in lists["outside.csv"]} == {"n01440764/i", "n01440764/j"}
    assert {row["key"] for row in lists["unreadable.csv"]} == {f"{CIRCLE}/g", f"{CIRCLE}/h"}
    assert len(lists["duplicates.csv"]) == 6
    assert len(lists["near.csv"]) >= 6


def test_lists_that_are_cut_say_so(data: Path, tmp_path: Path, distill) -> None:  # type: ignore[no-untyped-def]
    for i in range(5):
        (data / "train" / CIRCLE / f"torn{i}.png").write_bytes(b"torn")
    ran = distill("data", "check", "--data", data, "--label-set", "plane-figures")
    assert "unreadable: 7 images" in ran.out
    assert "  2 more; unreadable.csv of --out FOLDER has all\n" in ran.out


def test_one_split_alone(data: Path, distill) -> None:  # type: ignore[no-untyped-def]
    assert check(distill, data, "--split", "val")["images"] == {"val": 3}


def test_pictures_that_look_alike_are_found_and_others_are_not(tmp_path: Path, distill) -> None:  # type: ignore[no-untyped-def]
    random = np.random.default_rng(1)
    for i in range(12):
        low = Image.fromarray(random.integers(0, 256, (6, 6, 3), np.uint8))
        image = low.resize((96, 96), Image.Resampling.BICUBIC)
        folder = tmp_path / "data" / SQUARE
        folder.mkdir(parents=True, exist_ok=True)
        image.save(folder / f"{i}.png")
        if i < 4:  # smaller, and compressed hard
            image.resize((60, 50)).save(folder / f"{i}-again.jpg", quality=40)
    assert check(distill, tmp_path / "data")["duplicates"]["pairs"] == 0  # type: ignore[index]
    near = check(distill, tmp_path / "data", "--near", 8)["near_duplicates"]
    assert near["pairs"] == 4  # type: ignore[index]
    assert near["same"] == 4  # type: ignore[index]


@pytest.mark.parametrize("bits", [0, 1, 3, 7])
def test_near_groups_are_those_that_comparing_all_pairs_gives(bits: int) -> None:
    random = np.random.default_rng(bits)
    centres = random.integers(0, 2**64, 40, np.uint64)
    flips = np.zeros(400, np.uint64)
    for _ in range(3):
        flips ^= np.uint64(1) << random.integers(0, 64, 400).astype(np.uint64)
    hashes = centres[random.integers(0, 40, 400)] ^ np.where(random.random(400) < 0.7, flips, 0)
    hashes = hashes.astype(np.uint64)
    rows = np.arange(1000, 1400)
    found = {tuple(group) for group in near_groups(hashes, rows, bits)}
    near = np.bitwise_count(hashes[:, None] ^ hashes[None, :]) <= bits
    reach = near.copy()
    for _ in range(9):
        reach = (reach.astype(np.int64) @ near.astype(np.int64)) > 0
    groups = {tuple(rows[np.flatnonzero(row)]) for row in reach}
    assert found == {group for group in groups if len(group) > 1}


def test_equal_groups_of_nothing_and_of_one() -> None:
    assert equal_groups(np.zeros((0, 2), np.uint64)) == []
    assert equal_groups(np.zeros((1, 2), np.uint64)) == []
    (group,) = equal_groups(np.zeros((3, 2), np.uint64))
    assert group.tolist() == [0, 1, 2]
    assert near_groups(np.zeros(0, np.uint64), np.zeros(0, np.int64), 3) == []


def test_near_without_imagehash_says_what_to_install(
    data: Path,
    fails,
    monkeypatch: pytest.MonkeyPatch,  # type: ignore[no-untyped-def]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "imagehash", None)
    message = fails("data", "check", "--data", data, "--near", 3, "--label-set", "plane-figures")
    assert "pip install 'distill-kd[near]'" in message


@pytest.mark.slow
def test_share_of_general_tags_of_tiny_imagenet_is_the_planted_one(
    shared: Path,
    distill,  # type: ignore[no-untyped-def]
) -> None:
    """30% of its training images are tagged with an ancestor of their true class."""
    data = shared / "tiny-imagenet-h"
    ran = distill(
        *("data", "check", "--data", data, "--split", "train", "--json", "--workers", 2),
        *("--label-set", data / "label_set.json"),
    )
    report = json.loads(ran.out)
    assert report["images"] == {"train": 20_000}
    assert report["unreadable"] == 0
    assert report["inner"] / 20_000 == pytest.approx(0.3, abs=0.01)


def test_images_of_a_data_set_without_labels(tmp_path: Path, distill) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "x.jpg").write_bytes(jpeg())
    (tmp_path / "y.jpg").write_bytes(io.BytesIO(jpeg(9)).getvalue())
    report = check(distill, tmp_path)
    assert report["unlabelled"] == 2
    assert report["classes_present"] == 0


def test_every_split_of_a_table_counts_whatever_it_is_called(tmp_path: Path, distill) -> None:  # type: ignore[no-untyped-def]
    rows = [
        [f"{i}.jpg", SQUARE, split] for i, split in enumerate(("train", "VAL", "Extra", "extra"))
    ]
    for name, *_ in rows:
        (tmp_path / name).write_bytes(jpeg(int(name[0])))
    write_csv(tmp_path / "t.csv", ["path", "wnid", "split"], rows)
    assert check(distill, tmp_path / "t.csv")["images"] == {"extra": 2, "train": 1, "val": 1}
