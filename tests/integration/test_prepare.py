"""`distill prepare`: the raw release → ImageNet-21K-P."""

import csv
import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from raw_release import CLASSES, class_tars, photo, release, tar_of, write_release

from distill.curate.prepare.ledger import Ledger
from distill.curate.prepare.report import PUBLISHED, compare
from distill.curate.prepare.run import PrepareOptions
from distill.curate.prepare.run import prepare as prepare_release
from distill.curate.prepare.shrink import ShrinkRules, shrink
from distill.data.formats import tars
from distill.data.images import decode_image, read_bytes, squish
from distill.data.source import label_indices, open_source
from distill.errors import DataError
from distill.files import sole_writer
from distill.hierarchy.semantic import SemanticHierarchy

SMALL = ("--min-images", 5, "--val-images", 2, "--size", 16, "--workers", 0)
KEPT = [wnid for wnid, count in CLASSES.items() if count >= 5]


def listed(out: Path) -> dict[str, str]:
    with (out / "bad_images.csv").open(newline="", errors="surrogateescape") as file:
        return {row["name"]: row["reason"] for row in csv.DictReader(file)}


@pytest.fixture
def prepare(tmp_path: Path, distill) -> Callable[..., dict[str, Any]]:  # type: ignore[no-untyped-def]
    """Run it on a release, and give its report."""

    def run(raw: Path, *more: object, out: str = "out") -> dict[str, Any]:
        ran = distill("prepare", raw, "--out", tmp_path / out, *SMALL, "--json", *more)
        assert ran.code == 0, ran.err
        return json.loads(ran.out)  # type: ignore[no-any-return]

    return run


@pytest.mark.parametrize("form", ["folder", "webdataset"])
@pytest.mark.parametrize("raw", ["fall11", "winter21", "tars", "tree"])
def test_every_form_of_the_release_gives_the_same_data_set(
    raw: str, form: str, tmp_path: Path, prepare
) -> None:  # type: ignore[no-untyped-def]
    files = release()
    report = prepare(write_release(tmp_path, raw, files), "--format", form)
    assert report["complete"]
    assert (report["classes_found"], report["classes_kept"]) == (4, 3)
    assert report["images"] == {"train": 22 - 6, "val": 6}
    train, val = (open_source(tmp_path / "out", split) for split in ("train", "val"))
    expected = {name.removesuffix(".JPEG"): content for name, content in files.items()}
    for source in (train, val):
        for sample in source.samples:
            assert sample.label == sample.key.partition("/")[0]
            assert read_bytes(sample) == shrink(expected[sample.key], ShrinkRules(size=16))
    # As `LC_ALL=C ls n00000001/*.JPEG | head -n 2`.
    assert sorted(s.key for s in val.samples) == [f"{w}/{w}_{i}" for w in KEPT for i in (0, 1)]
    assert (tmp_path / "out" / "classes.txt").read_text().split() == KEPT


def test_validation_images_are_the_first_by_bytes_or_by_seed(tmp_path: Path, prepare) -> None:  # type: ignore[no-untyped-def]
    names = ["n1_10.JPEG", "n1_2.JPEG", "n1_1.JPEG", "N1_9.JPEG", "n1_1.jpeg.JPEG"]
    raw = write_release(tmp_path, "tree", {f"n1/{n}": photo(i) for i, n in enumerate(names)})
    prepare(raw)
    val = lambda out: sorted(s.key for s in open_source(tmp_path / out, "val").samples)  # noqa: E731
    assert val("out") == ["n1/N1_9", "n1/n1_1"]
    prepare(raw, "--seed", 3, out="a")
    prepare(raw, "--seed", 3, "--format", "webdataset", out="b")
    assert val("a") == val("b")
    chosen = {tuple(val("a"))}
    for seed in (4, 5):
        prepare(raw, "--seed", seed, out=f"s{seed}")
        chosen.add(tuple(val(f"s{seed}")))
    assert len(chosen) > 1


def test_images_are_squished_with_antialiasing_and_small_ones_stay(tmp_path: Path) -> None:
    stripes = np.zeros((64, 640, 3), np.uint8)
    stripes[:, ::2] = 255
    buffer = io.BytesIO()
    Image.fromarray(stripes).save(buffer, "PNG")
    small = decode_image(shrink(buffer.getvalue(), ShrinkRules(size=32)))
    assert small.size == (32, 32)
    pixels = np.asarray(small).astype(int)
    assert np.abs(pixels - 127).max() < 6  # every second column would be black or white
    tiny = photo(1, (15, 9))
    assert shrink(tiny, ShrinkRules(size=16)) == tiny
    square = photo(1, (16, 9))
    assert decode_image(shrink(square, ShrinkRules(size=16))).size == (16, 16)
    large = Image.fromarray(np.uint8(np.random.default_rng(2).integers(0, 256, (30, 40, 3))))
    buffer = io.BytesIO()
    large.resize((1600, 1200), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=95)
    reduced = np.asarray(decode_image(shrink(buffer.getvalue(), ShrinkRules(size=64))), int)
    whole = io.BytesIO()
    squish(decode_image(buffer.getvalue()), (64, 64)).save(whole, "JPEG", quality=95)
    assert np.abs(reduced - np.asarray(Image.open(whole), int)).mean() < 2
    coarse = [len(shrink(photo(2, (300, 200)), ShrinkRules(quality=q))) for q in (50, 95)]
    assert coarse[0] < coarse[1] / 2


@pytest.mark.parametrize("form", ["folder", "webdataset"])
def test_bad_images_are_listed_and_the_rest_goes_on(form: str, tmp_path: Path, prepare) -> None:  # type: ignore[no-untyped-def]
    bad = {
        "n00000001/n00000001_empty.JPEG": b"",
        "n00000001/n00000001_cut.JPEG": photo(1, (200, 200))[:900],
        "n00000001/n00000001_text.jpg": b"404 not found",
        "n00000001/n00000001_3.jpg": photo(5),
        f"n00000001/{'x' * 250}.JPEG": photo(6),
    }
    good = {
        "n00000002/n00000002_MIXED.JpEg": photo(7),
        'n00000002/odd, "name"\n\'ä\udcff .JPG': photo(8),
        "n00000002/n00000002_dot.ted.png": photo(9),
        "n00000002/README.txt": b"no image",
        "n00000002/.hidden.JPEG": b"no image",
    }
    raw = write_release(tmp_path, "winter21", release(bad | good))
    report = prepare(raw, "--format", form)
    assert report["bad"] == 5
    reasons = listed(tmp_path / "out")
    assert reasons == {
        "n00000001/n00000001_empty": "not an image: 0 bytes found",
        "n00000001/n00000001_cut": reasons["n00000001/n00000001_cut"],
        "n00000001/n00000001_text": reasons["n00000001/n00000001_text"],
        "n00000001/n00000001_3": "its name appears twice",
        f"n00000001/{'x' * 250}": "its name is too long for a file",
    }
    keys = {
        s.key for split in ("train", "val") for s in open_source(tmp_path / "out", split).samples
    }
    assert {k for k in keys if "_" not in k or not k[-1].isdigit()} == {
        "n00000002/n00000002_MIXED",
        'n00000002/odd, "name"\n\'ä\udcff ',
        "n00000002/n00000002_dot_ted",
    }


def test_nothing_is_ever_written_outside(tmp_path: Path, prepare, tree_bytes) -> None:  # type: ignore[no-untyped-def]
    """Links, devices, absolute names and .. in tars; class names that are none."""
    buffer = io.BytesIO(tar_of(release()))
    with tarfile.open(fileobj=buffer, mode="a") as tar:
        for name in ("n00000001/../../../evil.JPEG", "/n00000001/absolute.JPEG", "../up/a.JPEG"):
            info = tarfile.TarInfo(name)
            info.size = len(photo(1))
            tar.addfile(info, io.BytesIO(photo(1)))
        for kind, name in (
            (tarfile.SYMTYPE, "link"),
            (tarfile.LNKTYPE, "hard"),
            (tarfile.FIFOTYPE, "pipe"),
        ):
            info = tarfile.TarInfo(f"n00000001/{name}.JPEG")
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        for i in range(6):
            info = tarfile.TarInfo(f"../{i}.JPEG")
            info.size = len(photo(1))
            tar.addfile(info, io.BytesIO(photo(1)))
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "raw.tar").write_bytes(buffer.getvalue())
    before = set(tree_bytes(tmp_path))
    report = prepare(tmp_path / "here" / "raw.tar", out="here/out")
    assert all(name.startswith("here/out/") for name in set(tree_bytes(tmp_path)) - before)
    assert report["images"]["train"] + report["images"]["val"] == 22 + 1
    assert sum("cannot be the name" in reason for reason in listed(tmp_path / "here/out").values())


def test_links_in_an_unpacked_tree_are_read_not_followed_up(tmp_path: Path, prepare) -> None:  # type: ignore[no-untyped-def]
    raw = write_release(tmp_path, "tree", release())
    (raw / "n00000001" / "up").symlink_to(raw)
    (raw / "n00000001" / "gone.JPEG").symlink_to(tmp_path / "nothing")
    prepare(raw)
    assert listed(tmp_path / "out") == {
        "n00000001/gone": "cannot be read: No such file or directory"
    }


def test_a_class_tar_that_ends_early_is_named(tmp_path: Path, prepare) -> None:  # type: ignore[no-untyped-def]
    inside = class_tars(release())
    inside["n00000001.tar"] = inside["n00000001.tar"][:8000]
    (tmp_path / "raw.tar").write_bytes(tar_of(inside))
    prepare(tmp_path / "raw.tar")
    (reason,) = listed(tmp_path / "out").values()
    assert reason.startswith("damaged after 3 files: n00000001.tar: ends inside")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda whole: whole[: len(whole) // 2], "ends inside"),
        (lambda whole: whole[: len(whole) // 2 // 512 * 512], "ends inside"),
        (lambda whole: b"\x1f\x8b" + whole, "compressed by gzip"),
        (lambda whole: b"", "not a complete uncompressed tar"),
        (lambda whole: tar_of({"notes.txt": b"x"}), "no images of classes found"),
    ],
)
def test_a_release_that_is_not_whole_is_one_line(
    content, message: str, tmp_path: Path, fails
) -> None:  # type: ignore[no-untyped-def]
    raw = write_release(tmp_path, "fall11", release())
    raw.write_bytes(content(raw.read_bytes()))
    assert message in fails("prepare", raw, "--out", tmp_path / "out", *SMALL)
    assert not (tmp_path / "out").exists()


def test_wrong_places_and_settings_are_one_line(tmp_path: Path, fails, prepare) -> None:  # type: ignore[no-untyped-def]
    raw = write_release(tmp_path, "tree", release())
    assert "expected fall11_whole.tar" in fails("prepare", tmp_path / "x", "--out", tmp_path / "o")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep")
    assert "'mine.txt' found in it" in fails("prepare", raw, "--out", tmp_path / "full", *SMALL)
    none = fails("prepare", raw, "--out", tmp_path / "o", "--min-images", 60)
    assert "the largest, n00000001, has 9 images, expected 60" in none
    prepare(raw)
    again = fails("prepare", raw, "--out", tmp_path / "out", *SMALL, "--quality", 50)
    assert "begun with quality 95, this command has 50" in again


@pytest.mark.parametrize("form", ["folder", "webdataset"])
@pytest.mark.slow
def test_killed_at_any_moment_the_same_command_goes_on(
    form: str,
    tmp_path: Path,
    prepare,
    fails,
    tree_bytes,  # type: ignore[no-untyped-def]
) -> None:
    more = {f"n00000001/n00000001_{i}.JPEG": photo(i, (300, 300)) for i in range(100, 400)}
    raw = write_release(tmp_path, "fall11", release(more))
    options = ("--format", form, "--shard-images", 40, "--workers", 2)
    command = ["prepare", raw, "--out", tmp_path / "out", *SMALL[:-2], *options]
    if form == "folder":  # so that there are several units
        code = "import distill.cli.curate.prepare as p; p.FOLDER_UNIT = 40\n"
        code += "import distill.cli.main as m; m.run()"
        start = [sys.executable, "-c", code]
    else:
        start = [sys.executable, "-m", "distill.cli.main"]
    ledger = tmp_path / "out" / "prepare-unfinished.jsonl"
    kills = 0
    while kills < 2:
        running = subprocess.Popen(
            [*start, *map(str, command)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        begun = ledger.read_bytes().count(b"\n") if ledger.exists() else 0
        while running.poll() is None:
            if ledger.exists() and ledger.read_bytes().count(b"\n") > begun + 1:
                os.kill(running.pid, signal.SIGKILL)
            time.sleep(0.005)
        running.wait()
        if running.returncode == 0:
            break
        kills += 1
        with pytest.raises(DataError, match="has not finished here"):
            open_source(tmp_path / "out")
    assert kills
    if ledger.exists():
        subprocess.run([*start, *map(str, command)], check=True, capture_output=True)
    prepare(raw, "--format", form, "--shard-images", 40, out="whole")
    found, whole = (tree_bytes(tmp_path / name) for name in ("out", "whole"))
    ignored = ("prepare.jsonl", "report.json")
    assert {n: c for n, c in found.items() if n not in ignored} == {
        n: c for n, c in whole.items() if n not in ignored
    }


def test_a_finished_folder_is_left_as_it_is_unless_a_shard_is_missing(
    tmp_path: Path,
    prepare,
    tree_bytes,  # type: ignore[no-untyped-def]
) -> None:
    raw = write_release(tmp_path, "winter21", release())
    options = ("--format", "webdataset", "--shard-images", 4)
    report = prepare(raw, *options)
    whole = tree_bytes(tmp_path / "out")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("distill.curate.prepare.run.list_raw", lambda *_: pytest.fail("listed again"))
        assert prepare(raw, *options) == report
    assert tree_bytes(tmp_path / "out") == whole
    (tmp_path / "out" / "train-000001.tar").unlink()
    prepare(raw, *options)
    shards = {n: c for n, c in tree_bytes(tmp_path / "out").items() if n.endswith(".tar")}
    assert shards == {n: c for n, c in whole.items() if n.endswith(".tar")}


def test_two_at_once_on_one_folder_is_one_line(tmp_path: Path, fails) -> None:  # type: ignore[no-untyped-def]
    raw = write_release(tmp_path, "tree", release())
    with sole_writer(tmp_path / "out", cure="wait"):
        message = fails("prepare", raw, "--out", tmp_path / "out", *SMALL)
    assert "writes here already; wait for it, or give another --out" in message


def test_full_disk_is_one_line_and_what_is_done_stays(tmp_path: Path, fails, distill) -> None:  # type: ignore[no-untyped-def]
    more = {f"n00000001/n00000001_{i}.JPEG": photo(i, (100, 100)) for i in range(100, 180)}
    raw = write_release(tmp_path, "tree", release(more))
    disk = tmp_path / "disk"
    disk.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    if subprocess.run(mounting, capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        command = ("prepare", raw, "--out", disk / "out", *SMALL[:-4], "--size", 64)
        command += ("--workers", 2, "--format", "webdataset", "--shard-images", 20)
        assert "No space left" in fails(*command)
        shards = [path.name for path in (disk / "out").glob("*.tar")]
        assert shards
        subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True)
        ran = distill(*command)
        assert ran.code == 0, ran.err
        assert len(open_source(disk / "out")) == 22 - 6 + 80
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_ctrl_c_finishes_the_shards_in_hand(tmp_path: Path) -> None:
    more = {f"n00000001/n00000001_{i}.JPEG": photo(i, (300, 300)) for i in range(100, 400)}
    raw = write_release(tmp_path, "tree", release(more))
    command = [sys.executable, "-m", "distill.cli.main", "prepare", raw, "--out", tmp_path / "out"]
    command += [*SMALL[:-2], "--workers", 1, "--format", "webdataset", "--shard-images", 20]
    running = subprocess.Popen([*map(str, command)], stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    ledger = tmp_path / "out" / "prepare-unfinished.jsonl"
    while not (ledger.exists() and ledger.read_bytes().count(b"\n") > 1):
        time.sleep(0.01)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate()
    assert running.returncode == 75
    assert b"stopped by SIGINT; finished work is kept" in err
    done = ledger.read_bytes().count(b"\n") - 1
    assert len([*(tmp_path / "out").glob("*.tar")]) == done < 16


def test_listing_is_stopped_at_once(tmp_path: Path) -> None:
    raw = write_release(tmp_path, "fall11", release())
    with pytest.raises(KeyboardInterrupt):
        prepare_release(str(raw), tmp_path / "out", PrepareOptions(), stopping=lambda: True)
    assert not (tmp_path / "out").exists()


def test_dry_run_reports_and_writes_nothing(tmp_path: Path, distill) -> None:  # type: ignore[no-untyped-def]
    raw = write_release(tmp_path, "winter21", release())
    ran = distill("prepare", raw, "--out", tmp_path / "out", *SMALL, "--dry-run")
    assert ran.code == 0
    assert "3 classes would be kept, 1 dropped, of 25 images found" in ran.out
    assert not (tmp_path / "out").exists()


def test_shards_come_with_their_index(tmp_path: Path, prepare, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    prepare(write_release(tmp_path, "tree", release()), "--format", "webdataset")
    monkeypatch.setattr(tars, "list_tar", lambda *_: pytest.fail("listed again"))
    assert len(open_source(tmp_path / "out")) == 16


def test_label_set_keeps_its_classes_alone(tmp_path: Path, prepare) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "set.json"
    path.write_text(json.dumps({"parents": {"n00000001": None, "n00000003": None, "n9": None}}))
    report = prepare(write_release(tmp_path, "tree", release()), "--label-set", path)
    assert report["classes_kept"] == 2
    source = open_source(tmp_path / "out")
    assert set(label_indices(source, SemanticHierarchy.load(path))) == {0, 1}


# -- the published counts --------------------------------------------------------------------------


def like(release: str, **changes: Any) -> dict[str, Any] | None:
    """What the report says of a release of those classes."""
    published = PUBLISHED[release]
    synsets = SemanticHierarchy.bundled(published.hierarchy).synsets
    found = dict.fromkeys(synsets, 1000)
    found |= changes.get("found", {})
    kept = [c for c, n in found.items() if n >= 500]
    images = {"train": published.train, "val": 50 * len(kept)} | changes.get("images", {})
    return compare(
        images_by_class=found,
        kept=kept,
        images=images,
        bad=changes.get("bad", {}),
        min_images=500,
        val_images=50,
    )


def test_winter21_as_published_matches_and_fall11_is_explained() -> None:
    winter, fall = like("winter21"), like("fall11")
    assert winter
    assert fall
    assert (winter["release"], winter["matches"], winter["why"]) == ("winter21", True, [])
    assert (fall["release"], fall["matches"]) == ("fall11", False)
    assert fall["val"] == {"found": 561_050, "published": 561_052}
    assert "50 validation images of each of 11221 classes are 561050" in fall["why"][0]


def test_a_mismatch_is_explained() -> None:
    some = SemanticHierarchy.bundled("imagenet21k-p-winter21").synsets[:2]
    found = {some[0]: 499, "n99999999": 500}
    report = like("winter21", found=found, bad={"a/b": "x"}, images={"train": 5})
    assert report
    assert not report["matches"]
    assert report["classes"] == {"found": 10_450, "published": 10_450}
    assert report["why"] == [
        f"1 class ({some[0]}) of it have fewer than 500 images here",
        "1 class (n99999999) are kept here that the published label set lacks",
        "1 class (n99999999) of those have 500 images: the paper drops classes with fewer, the "
        "authors' script keeps those with more; --min-images 501 is the script's rule",
        "1 images are left out, see bad_images.csv",
    ]


def test_another_data_set_is_compared_with_nothing(tmp_path: Path, prepare) -> None:  # type: ignore[no-untyped-def]
    assert prepare(write_release(tmp_path, "tree", release()))["against"] is None


def test_a_finished_folder_of_another_release_is_not_taken_for_this_one(
    tmp_path: Path,
    prepare,  # type: ignore[no-untyped-def]
    fails,  # type: ignore[no-untyped-def]
    tree_bytes,  # type: ignore[no-untyped-def]
) -> None:
    raw = write_release(tmp_path, "tree", release())
    prepare(raw)
    other = write_release(tmp_path, "winter21", release({"n00000001/x.JPEG": photo(77)}))
    assert "begun with" in fails("prepare", other, "--out", tmp_path / "out", *SMALL)
    whole = tree_bytes(tmp_path / "out" / "train")
    shutil.rmtree(tmp_path / "out" / "train" / "n00000002")
    (tmp_path / "out/train/n00000001/n00000001_5.JPEG").write_bytes(b"")
    # Killed while it mends, it still knows what is missing.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ledger, "record", lambda *_: os._exit(9))
        if not os.fork():
            prepare(raw)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.wait()[1]) == 9
    prepare(raw)
    assert tree_bytes(tmp_path / "out" / "train") == whole


def test_trouble_that_passes_is_no_damaged_class(
    tmp_path: Path,
    fails,  # type: ignore[no-untyped-def]
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A stale mount while a class tar is listed."""
    raw = write_release(tmp_path, "tars", release())
    monkeypatch.setattr("os.open", _failing(os.open, "n00000002.tar", errno.ESTALE))
    out = tmp_path / "out"
    assert "cannot be read now" in fails("prepare", raw, "--out", out, *SMALL, code=75)
    assert not out.exists()


def _failing(real: Callable[..., int], name: str, number: int) -> Callable[..., int]:
    def open_file(path: object, *more: object, **named: object) -> int:
        if str(path).endswith(name):
            raise OSError(number, os.strerror(number), str(path))
        return real(path, *more, **named)

    return open_file


def test_names_that_cannot_be_class_folders_are_listed(tmp_path: Path, prepare) -> None:  # type: ignore[no-untyped-def]
    odd = ["x" * 300, "surro\udcffgate", "new\nline", "..", "."]
    files = {f"{name}/{i}.JPEG": photo(i) for name in odd for i in range(6)}
    (tmp_path / "raw.tar").write_bytes(tar_of(release() | files))
    assert prepare(tmp_path / "raw.tar", "--format", "webdataset")["classes_kept"] == 3
    assert len(listed(tmp_path / "out")) == 6 * len(odd)


def test_class_tars_and_class_folders_count_beside_each_other(tmp_path: Path, prepare) -> None:  # type: ignore[no-untyped-def]
    raw = write_release(tmp_path, "tree", {f"n00000009/{i}.JPEG": photo(i) for i in range(6)})
    for name, content in class_tars(release()).items():
        (raw / name.upper()).write_bytes(content)
    assert prepare(raw)["classes_kept"] == 4


def test_an_output_inside_the_release_is_refused(tmp_path: Path, fails) -> None:  # type: ignore[no-untyped-def]
    raw = write_release(tmp_path, "tree", release())
    assert "inside the release" in fails("prepare", raw, "--out", raw / "out", *SMALL)
    assert "RAW is empty" in fails("prepare", "", "--out", tmp_path / "out", *SMALL)
    few = fails("prepare", raw, "--out", tmp_path / "out", "--min-images", 3, "--val-images", 3)
    assert "expected fewer than --min-images" in few


@pytest.mark.skipif(os.getuid() != 0, reason="limits the size of files in a process of its own")
def test_a_write_that_is_cut_short_is_no_whole_image(tmp_path: Path) -> None:
    raw = write_release(tmp_path, "tree", release())
    command = f"ulimit -f 1; exec {sys.executable} -m distill.cli.main prepare {raw}"
    command += f" --out {tmp_path / 'out'} --min-images 5 --val-images 2 --workers 0"
    ran = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert ran.returncode != 0
    assert not (tmp_path / "out" / "prepare.jsonl").exists()
