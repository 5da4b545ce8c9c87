import io
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distill.data import (
    decode_image,
    has_split,
    label_indices,
    open_source,
    read_image,
)
from distill.errors import DataError
from distill.hierarchy import SemanticHierarchy
from distill.sample_id import samples_digest

SQUARE, CIRCLE = "n13878634", "n13873502"


def jpeg(shade: int = 0, side: int = 16) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (shade, 0, 0)).save(buffer, "JPEG")
    return buffer.getvalue()


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def write_folder(root: Path, wnids: tuple[str, ...] = (SQUARE, CIRCLE), images: int = 3) -> Path:
    for wnid in wnids:
        (root / wnid).mkdir(parents=True)
        for i in range(images):
            (root / wnid / f"{wnid}_{i}.JPEG").write_bytes(jpeg(i))
    return root


def test_folder_and_tars_of_the_same_keys_are_the_same_dataset(
    tmp_path: Path, hierarchy: SemanticHierarchy
) -> None:
    folder = open_source(write_folder(tmp_path / "folder"))
    members = {f"{s.key}.jpg": Path(s.path).read_bytes() for s in folder.samples}
    members |= {f"{s.key}.wnid": str(s.label).encode() for s in folder.samples}
    tars = open_source(write_tar(tmp_path / "one.tar", members))
    assert [s.key for s in tars.samples] == [s.key for s in folder.samples]
    digests = {samples_digest(s.ids, label_indices(s, hierarchy)) for s in (folder, tars)}
    assert len(digests) == 1
    for a, b in zip(folder.samples, tars.samples, strict=True):
        assert read_image(a).tobytes() == read_image(b).tobytes()


def test_splits_are_found_in_folders_and_tars(tmp_path: Path) -> None:
    write_folder(tmp_path / "a" / "train", images=3)
    write_folder(tmp_path / "a" / "val", images=1)
    write_tar(tmp_path / "b" / "train-0.tar", {"x.jpg": jpeg(), "y.jpg": jpeg()})
    write_tar(tmp_path / "b" / "val-0.tar", {"z.jpg": jpeg()})
    write_tar(tmp_path / "c" / "shard.tar", {"z.jpg": jpeg()})
    sizes = [(len(open_source(tmp_path / d)), has_split(tmp_path / d, "val")) for d in "abc"]
    assert sizes == [(6, True), (2, True), (1, False)]
    assert len(open_source(tmp_path / "a", "val")) == 2
    with pytest.raises(DataError, match="no images found"):
        open_source(tmp_path / "b", "test")


def test_cls_files_hold_class_indices(tmp_path: Path, hierarchy: SemanticHierarchy) -> None:
    members = {"a.jpg": jpeg(), "a.cls": b"28\n", "b.jpg": jpeg(), "b.cls": b"0"}
    source = open_source(write_tar(tmp_path / "x.tar", members))
    by_key = {
        s.key: i for s, i in zip(source.samples, label_indices(source, hierarchy), strict=True)
    }
    assert by_key == {"a": 28, "b": 0}
    with pytest.raises(DataError, match="expected a class index"):
        open_source(write_tar(tmp_path / "y.tar", {"a.jpg": jpeg(), "a.cls": b"-1"}))


def test_label_outside_the_set_is_an_error_unless_it_was_guessed(
    tmp_path: Path, hierarchy: SemanticHierarchy
) -> None:
    outside = open_source(write_folder(tmp_path / "folder", ("n01440764",)))
    with pytest.raises(DataError, match="has label 'n01440764', expected a synset"):
        label_indices(outside, hierarchy)
    guessed = {"n01440764_tench.JPEG": jpeg(), f"{SQUARE}_1.JPEG": jpeg(), "other.jpg": jpeg()}
    source = open_source(write_tar(tmp_path / "x.tar", guessed))
    found = sorted(label_indices(source, hierarchy).tolist())
    assert found == [-1, -1, hierarchy.index(SQUARE)]
    too_large = write_tar(tmp_path / "y.tar", {"a.jpg": jpeg(), "a.cls": b"29"})
    with pytest.raises(DataError, match="29 classes"):
        label_indices(open_source(too_large), hierarchy)


def test_limit_takes_a_fixed_fair_choice(tmp_path: Path) -> None:
    source = open_source(write_folder(tmp_path, images=40))
    few = source.limited(20)
    assert len(few) == 20
    assert (few.ids == source.ids[:20]).all()
    assert len({s.label for s in few.samples}) == 2
    assert len(source.limited(1000)) == 80


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: None, "no such file or folder"),
        (lambda p: p.mkdir(), "no images found"),
        (lambda p: (p / "n1").mkdir(parents=True), "no images found"),
        (lambda p: p.write_text("x"), "unknown form"),
        (lambda p: write_tar(p / "x.tar", {"a.txt": b""}), "no images found"),
        (lambda p: write_tar(p / "x.tar", {"a.jpg": jpeg(), "a.png": jpeg()}), "stands twice"),
    ],
)
def test_wrong_places_are_named(make, message: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    make(tmp_path / "data")
    with pytest.raises(DataError, match=message):
        open_source(tmp_path / "data")


def test_same_key_in_two_tars_is_an_error(tmp_path: Path) -> None:
    for shard in "01":
        write_tar(tmp_path / f"train-{shard}.tar", {"a.jpg": jpeg()})
    with pytest.raises(DataError, match="the key 'a' stands twice"):
        open_source(tmp_path)


@pytest.mark.parametrize("keep", [700, 2100, 2600])
def test_tar_that_ends_early_is_an_error(tmp_path: Path, keep: int) -> None:
    path = write_tar(tmp_path / "x.tar", {"a.jpg": jpeg(), "b.jpg": jpeg(side=64)})
    whole = path.read_bytes()
    path.write_bytes(whole[:keep])
    with pytest.raises(DataError, match=r"copy .* again"):
        open_source(path)


def test_links_and_devices_in_tars_are_not_followed(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        link = tarfile.TarInfo("a.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        info = tarfile.TarInfo("../../b.jpg")
        info.size = len(jpeg())
        tar.addfile(info, io.BytesIO(jpeg()))
    source = open_source(path)
    assert [s.key for s in source.samples] == ["../../b"]
    assert read_image(source.samples[0]).size == (16, 16)


def huge_png() -> bytes:
    """A header that promises 20,000 × 20,000 pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checked = kind + content
        return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))

    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b""))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a whole image"),
        (b"not an image", "not a whole image"),
        (jpeg(side=200)[:800], "not a whole image"),
        (huge_png(), "pixels|not a whole image"),
    ],
)
def test_bad_bytes_are_reasons_not_crashes(content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        decode_image(content)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1", "I;16"])
def test_images_of_any_mode_become_rgb(mode: str) -> None:
    buffer = io.BytesIO()
    Image.new(mode, (8, 8)).save(buffer, "TIFF")
    assert decode_image(buffer.getvalue()).mode == "RGB"


def test_vanished_image_is_a_reason(tmp_path: Path) -> None:
    source = open_source(write_folder(tmp_path))
    Path(source.samples[0].path).unlink()
    with pytest.raises(DataError, match="cannot be read: No such file"):
        read_image(source.samples[0])


def test_tiny_imagenet_opens_whole(shared: Path) -> None:
    data = shared / "tiny-imagenet-h"
    train, val = open_source(data), open_source(data, "val")
    labels = label_indices(train, SemanticHierarchy.load(data / "label_set.json"))
    assert (len(train), len(val)) == (20_000, 5_000)
    assert (labels >= 0).all()
    assert np.unique(labels).size > 300
