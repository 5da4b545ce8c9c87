import io
import os
import struct
import subprocess
import sys
import tarfile
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from small_images import SQUARE, jpeg, write_folder, write_tar

from distill.data.formats.samples import Sample, SampleTable
from distill.data.images import decode_image, read_image
from distill.data.sample_ids import samples_digest
from distill.data.source import has_split, label_indices, open_source
from distill.errors import DataError, DataUnavailableError
from distill.hierarchy.semantic import SemanticHierarchy


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
    with pytest.raises(DataError, match="no tars of split test found, only of train, val"):
        open_source(tmp_path / "b", "test")


def test_cls_files_hold_class_indices(tmp_path: Path, hierarchy: SemanticHierarchy) -> None:
    members = {"a.jpg": jpeg(), "a.cls": b"28\n", "b.jpg": jpeg(), "b.cls": b"0"}
    source = open_source(write_tar(tmp_path / "x.tar", members))
    by_key = {
        s.key: i for s, i in zip(source.samples, label_indices(source, hierarchy), strict=True)
    }
    assert by_key == {"a": 28, "b": 0}
    other = open_source(write_tar(tmp_path / "y.tar", {"a.jpg": jpeg(), "a.cls": b"-1"}))
    with pytest.raises(DataError, match="has label '-1', expected a synset or an index"):
        label_indices(other, hierarchy)


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
        (lambda p: p.write_text("x"), "unknown file format"),
        (lambda p: write_tar(p / "x.tar", {"a.txt": b""}), "no images found"),
        (
            lambda p: write_tar(p / "x.tar", {"a.jpg": jpeg(), "a.png": jpeg()}),
            "both images of the key 'a'",
        ),
    ],
)
def test_wrong_places_are_named(make, message: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    make(tmp_path / "data")
    with pytest.raises(DataError, match=message):
        open_source(tmp_path / "data")


def test_same_key_in_two_tars_is_an_error(tmp_path: Path) -> None:
    for shard in "01":
        write_tar(tmp_path / f"train-{shard}.tar", {"a.jpg": jpeg()})
    with pytest.raises(DataError, match="the key 'a' appears twice"):
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


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not an image: 0 bytes found"),
        (b"not an image", "not an image: of no supported format"),
        (jpeg(side=200)[:800], "undecodable image: "),
        (jpeg(side=200)[:20], "not an image: "),
        (huge_png(), "too many pixels: "),
    ],
)
def test_bad_bytes_are_reasons_not_crashes(content: bytes, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        decode_image(content)


def test_too_large_a_file_is_a_reason(tmp_path: Path) -> None:
    source = open_source(write_folder(tmp_path))
    with Path(source.samples[0].path).open("r+b") as file:
        file.truncate(2**26 + 1)
    with pytest.raises(DataError, match="too many bytes: 67108865 found"):
        read_image(source.samples[0])


@pytest.mark.parametrize("mode", ["L", "RGBA", "LA", "P", "CMYK", "1", "I;16"])
def test_images_of_any_mode_become_rgb(mode: str) -> None:
    buffer = io.BytesIO()
    Image.new(mode, (8, 8)).save(buffer, "TIFF")
    assert decode_image(buffer.getvalue()).mode == "RGB"


def test_cmyk_jpeg_keeps_its_colours() -> None:
    buffer = io.BytesIO()
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(buffer, "JPEG")
    assert decode_image(buffer.getvalue()).getpixel((4, 4)) == (255, 0, 0)


def test_sixteen_bits_keep_their_high_byte() -> None:
    """Pillow's own conversion makes everything above 255 white."""
    buffer = io.BytesIO()
    Image.fromarray(np.array([[0, 0x1234], [0x80FF, 0xFFFF]], np.uint16)).save(buffer, "PNG")
    decoded = np.asarray(decode_image(buffer.getvalue()))
    assert decoded[..., 0].tolist() == decoded[..., 2].tolist() == [[0, 0x12], [0x80, 0xFF]]


def test_palette_with_transparency_keeps_its_colours() -> None:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    buffer = io.BytesIO()
    image.save(buffer, "PNG", transparency=b"\x00\x10")
    assert decode_image(buffer.getvalue()).getpixel((3, 3)) == (10, 200, 30)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_pictures_are_set_upright(orientation: int, form: str, random: np.random.Generator) -> None:
    image = Image.fromarray(random.integers(0, 256, (8, 16, 3), np.uint8)).resize((48, 24))
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    image.save(buffer, form, exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(buffer.getvalue()))).convert("RGB")
    decoded = decode_image(buffer.getvalue())
    assert decoded.size == ((48, 24) if orientation < 5 else (24, 48))
    assert decoded.tobytes() == expected.tobytes()


@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"\xff" * 99])
def test_broken_exif_does_not_make_an_image_bad(exif: bytes) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "JPEG", exif=exif)
    assert decode_image(buffer.getvalue()).size == (8, 8)


@pytest.mark.parametrize("form", ["WEBP", "PNG", "GIF"])
def test_of_an_animation_the_first_picture_counts(form: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
    buffer = io.BytesIO()
    frames[0].save(buffer, form, save_all=True, append_images=frames[1:], lossless=True)
    red, green, _ = decode_image(buffer.getvalue()).getpixel((4, 4))  # type: ignore[misc]
    assert red > 250
    assert green < 5


def test_text_file_named_jpg_is_a_reason(tmp_path: Path) -> None:
    source = open_source(write_folder(tmp_path))
    Path(source.samples[0].path).write_text("see the other folder\n")
    with pytest.raises(DataError, match="not an image: of no supported format"):
        read_image(source.samples[0])


def test_folder_that_cannot_be_listed_is_an_error_not_fewer_images(tmp_path: Path) -> None:
    """As another user: root may list anything."""
    write_folder(tmp_path / "data")
    (tmp_path / "data" / SQUARE / "closed").mkdir(mode=0o000)
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.getuid() and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o055)
    code = (
        "import os, sys\n"
        "from distill.data.source import open_source\n"
        "from distill.errors import DataError\n"
        "if os.getuid() == 0: os.setuid(65534)\n"
        "try: open_source(sys.argv[1])\n"
        "except DataError as error: print(error)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "data")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout.count("\n") == 1
    assert f"{SQUARE}/closed: cannot be listed (Permission denied)" in ran.stdout


def test_samples_as_columns_are_the_same_samples(tmp_path: Path) -> None:
    samples = [
        Sample("a/ä\udcff", "n1", str(tmp_path), ".JPEG"),
        Sample("b", 7, "x.tar", offset=512, size=9),
        Sample("", None, "y.tar", offset=2**40, size=2**33, guessed=True),
        Sample("c", "7", "x.tar", offset=1024, size=0),
    ]
    table = SampleTable.of(iter(samples))
    assert list(table) == samples
    assert list(table.select(np.array([2, 0]))) == [samples[2], samples[0]]
    assert list(table[1:3]) == samples[1:3]
    assert table[0].path == f"{tmp_path}/a/ä\udcff.JPEG"
    assert [s.path for s in table[1:]] == ["x.tar", "y.tar", "x.tar"]


@pytest.mark.slow
def test_a_sample_takes_few_bytes() -> None:
    import tracemalloc

    count = 60_000
    tracemalloc.start()
    try:
        names = (f"n{i % 1000:08d}/n{i % 1000:08d}_{i}" for i in range(count))
        table = SampleTable.of(Sample(name, name[:9], "/data/train", ".JPEG") for name in names)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(table) == count
    assert held / count < 80


def test_vanished_image_is_a_reason(tmp_path: Path) -> None:
    source = open_source(write_folder(tmp_path))
    Path(source.samples[0].path).unlink()
    with pytest.raises(DataError, match="cannot be read: No such file"):
        read_image(source.samples[0])


@pytest.mark.slow
def test_tiny_imagenet_opens_whole(shared: Path) -> None:
    data = shared / "tiny-imagenet-h"
    train, val = open_source(data), open_source(data, "val")
    labels = label_indices(train, SemanticHierarchy.load(data / "label_set.json"))
    assert (len(train), len(val)) == (20_000, 5_000)
    assert (labels >= 0).all()
    assert np.unique(labels).size > 300


def test_pipe_named_jpg_is_a_reason_and_does_not_wait(tmp_path: Path) -> None:
    write_folder(tmp_path)
    os.mkfifo(tmp_path / SQUARE / "pipe.jpg")
    source = open_source(tmp_path)
    (pipe,) = (sample for sample in source.samples if sample.key.endswith("pipe"))
    with pytest.raises(DataError, match="cannot be read: not a regular file"):
        read_image(pipe)


def test_trouble_that_passes_is_no_damage_of_the_image(tmp_path: Path) -> None:
    """Out of file descriptors, for real."""
    import resource

    source = open_source(write_folder(tmp_path))
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(map(int, os.listdir("/proc/self/fd")))  # noqa: PTH208
    held = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 8, before[1]))
        with suppress(OSError):
            while True:
                held.append(os.open("/dev/null", os.O_RDONLY))
        with pytest.raises(DataUnavailableError, match=r"cannot be read now \(Too many open files"):
            read_image(source.samples[0])
    finally:
        for number in held:
            os.close(number)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_postscript_named_jpg_runs_no_program() -> None:
    with pytest.raises(DataError, match="not an image: of no supported format"):
        decode_image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n")


def test_sixteen_bits_are_set_upright_as_well() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((30, 40), np.uint16)).save(buffer, "PNG", exif=exif)
    assert decode_image(buffer.getvalue()).size == (30, 40)


def test_tar_that_promises_more_bytes_than_numbers_hold_is_an_error(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", {"a.jpg": jpeg(), "b.jpg": jpeg()})
    content = bytearray(path.read_bytes())
    content[124:136] = b"\x80" + b"\xff" * 11  # the size, in base 256
    checksum = sum(content[:148]) + 8 * 32 + sum(content[156:512])
    content[148:156] = b"%06o\0 " % checksum
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"copy .* again"):
        open_source(path)


def test_a_tar_without_images_is_said_to_have_none(tmp_path: Path) -> None:
    tarfile.open(tmp_path / "empty.tar", "w").close()
    with pytest.raises(DataError, match="no images found; expected class folders with"):
        open_source(tmp_path / "empty.tar")
