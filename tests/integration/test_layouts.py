"""Data sets as people have them, and what each is taken for: the table in docs/data.md.

`DISTILL_RECORD=1 pytest tests/integration/test_layouts.py` writes the table anew.
"""

import io
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from small_images import jpeg

from distill.data.source import has_split, open_source
from distill.errors import DataError

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "data.md"
BEGIN, END = "<!-- layouts: made by tests/integration/test_layouts.py -->\n", "<!-- /layouts -->\n"
Content = Mapping[str, bytes | Mapping[str, bytes] | str]


def folders(*paths: str) -> dict[str, bytes]:
    """Two images in each folder."""
    return {f"{path}/{i}.jpg": jpeg(i) for path in paths for i in range(2)}


def samples(*keys: str, label: str = "cls") -> dict[str, bytes]:
    """An image and a label for each key."""
    names = ((f"{key}.jpg", f"{key}.{label}", i) for i, key in enumerate(keys))
    return {n: c for image, tag, i in names for n, c in ((image, jpeg(i)), (tag, b"1"))}


LAYOUTS: dict[str, tuple[str, Content]] = {
    "ImageFolder": (
        "train/cat/0.jpg, train/dog/…, val/…",
        folders("train/cat", "train/dog", "val/cat"),
    ),
    "class folders without splits": ("cat/0.jpg, dog/…", folders("cat", "dog")),
    "Kaggle": (
        "Training/glioma/…, Testing/glioma/…",
        folders("Training/glioma", "Training/notumor", "Testing/glioma"),
    ),
    "Roboflow": (
        "train/a/…, valid/a/…, test/a/…, README.txt",
        {**folders("train/a", "train/b", "valid/a", "test/a"), "README.txt": b""},
    ),
    "the authors' ImageNet-21K": (
        "imagenet21k_train/n01440764/…, imagenet21k_val/…",
        folders("imagenet21k_train/n01440764", "imagenet21k_val/n01440764"),
    ),
    "COCO's years": ("train2017/0.jpg, val2017/0.jpg", folders("train2017", "val2017")),
    "Kaggle's sets": (
        "training_set/cats/…, test_set/cats/…",
        folders("training_set/cats", "test_set/cats"),
    ),
    "unpacked into its own name": (
        "train/train/cat/…",
        folders("train/train/cat", "train/train/dog"),
    ),
    "one folder around all": (
        "archive/train/cat/…, archive/dev/…",
        folders("archive/train/cat", "archive/dev/cat"),
    ),
    "splits below images": (
        "images/train/cat/…, images/val/…, annotations/…",
        {**folders("images/train/cat", "images/val/cat"), "annotations/a.xml": b""},
    ),
    "Kaggle's ImageNet": (
        "ILSVRC/Data/CLS-LOC/train/n01440764/…, ILSVRC/Annotations/…, labels.csv",
        {
            **folders(
                "ILSVRC/Data/CLS-LOC/train/n01440764",
                "ILSVRC/Data/CLS-LOC/train/n01443537",
                "ILSVRC/Data/CLS-LOC/val/n01440764",
            ),
            "ILSVRC/Annotations/a.xml": b"",
        },
    ),
    "Kaggle's twice": (
        "seg_train/seg_train/sea/…, seg_test/seg_test/sea/…",
        folders("seg_train/seg_train/sea", "seg_train/seg_train/street", "seg_test/seg_test/sea"),
    ),
    "CUB, Stanford Dogs": (
        "images/cat/…, images/dog/…, annotations/…",
        {**folders("images/cat", "images/dog"), "annotations/a.txt": b""},
    ),
    "splits below each class": (
        "cat/train/0.jpg, cat/val/…, dog/train/…",
        folders("cat/train", "cat/val", "dog/train", "dog/val"),
    ),
    "an empty class": ("cat/…, dog/", {**folders("cat"), "dog/.keep": b""}),
    "YOLO": (
        "train/images/0.jpg, train/labels/0.txt",
        {**folders("train/images"), "train/labels/0.txt": b""},
    ),
    "a class called like a folder of images": (
        "photos/alice/…, photos/carol/…, paintings/bob/…",
        folders("photos/alice", "photos/carol", "paintings/bob"),
    ),
    "pictures, masks and edges": (
        "images/0.jpg, masks/0.jpg, edges/0.jpg",
        folders("images", "masks", "edges"),
    ),
    "pictures and masks": (
        "images/0.jpg, masks/0.jpg",
        folders("images", "masks"),
    ),
    "loose images": ("0.jpg, 1.jpg", {"0.jpg": jpeg(), "1.jpg": jpeg(1)}),
    "loose images beside classes": (
        "cat/0.jpg, stray.jpg",
        {**folders("cat"), "stray.jpg": jpeg()},
    ),
    "left behind by programs": (
        "cat/…, .ipynb_checkpoints/…, __MACOSX/…, @eaDir/…, cat/.DS_Store",
        {
            **folders("cat", "dog", ".ipynb_checkpoints", "__MACOSX/cat", "@eaDir"),
            "cat/.DS_Store": b"",
            "cat/._0.jpg": b"",
        },
    ),
    "many suffixes": (
        "cat/a.jfif, b.tif, c.gif, d.webp, e.avif, f.txt",
        {
            f"cat/{name}": jpeg()
            for name in ("a.jfif", "b.tif", "c.gif", "d.webp", "e.avif", "f.txt")
        },
    ),
    "a table among its images": (
        "0.jpg, 1.jpg, labels.csv",
        {"0.jpg": jpeg(), "1.jpg": jpeg(), "labels.csv": b"path,wnid\n0.jpg,cat\n"},
    ),
    "a class called like a split": (
        "cat/…, train/… (the vehicle)",
        folders("cat", "train", "truck"),
    ),
    "a class whose name has a split's word": (
        "bullet_train/…, test_tube/…",
        folders("bullet_train", "test_tube"),
    ),
    "two folders for one split, one of them plain": (
        "train/a/…, train_images/a/…",
        folders("train/a", "train_images/a"),
    ),
    "two folders for one split": (
        "train/a/…, dev/a/…, valid/a/…",
        folders("train/a", "dev/a", "valid/a"),
    ),
    "timm's WebDataset": (
        "imagenet1k-train-0000.tar, imagenet1k-validation-00.tar",
        {
            "imagenet1k-train-0000.tar": samples("n01440764_1", "n01440764_2"),
            "imagenet1k-validation-00.tar": samples("n01440764_3"),
        },
    ),
    "underscores": (
        "train_0000.tar, val_0000.tar",
        {"train_0000.tar": samples("a", "b"), "val_0000.tar": samples("c")},
    ),
    "tars in a folder per split": (
        "train/000.tar, validation/000.tar",
        {"train/000.tar": samples("a"), "validation/000.tar": samples("b")},
    ),
    "validation shards among training ones": (
        "train/000.tar, train/val-000.tar",
        {"train/000.tar": samples("a"), "train/val-000.tar": samples("b")},
    ),
    "tars of no split beside others": (
        "train-0.tar, extra-0.tar",
        {"train-0.tar": samples("a"), "extra-0.tar": samples("b")},
    ),
    "tar cf x.tar .": ("./a.jpg, ./a.cls in one tar", {"x.tar": samples("./a", "./b")}),
    "dots in keys": (
        "IMG.07.jpg, IMG.07.cls, IMG.08.jpg, …",
        {"x.tar": samples("IMG.07", "IMG.08")},
    ),
    "parts of a sample": (
        "a.jpg, a.seg.png, a.cls, a.json",
        {"x.tar": {**samples("a"), "a.seg.png": jpeg(), "a.json": b"{}"}},
    ),
    "two images of one sample": (
        "a.left.jpg, a.right.jpg, a.cls",
        {"x.tar": {"a.left.jpg": jpeg(), "a.right.jpg": jpeg(1), "a.cls": b"1"}},
    ),
    "two archives in one": (
        "cat one.tar two.tar > both.tar",
        {"both.tar": {**samples("a"), "": b""}},
    ),
    "a table with splits": (
        "images.csv: path, wnid, split (Training, Testing)",
        {
            **folders("i"),
            "images.csv": "path,wnid,split\ni/0.jpg,n01440764,Training\n"
            "i/1.jpg,n01440764,Testing\n",
        },
    ),
    "a table with other columns": (
        "images.csv: path, category",
        {**folders("i"), "images.csv": "path,category\ni/0.jpg,cat\n"},
    ),
    "a table saved by Excel": (
        "images.csv in UTF-16",
        {"images.csv": "path,wnid\n".encode("utf-16")},
    ),
    "a table with an open quotation mark": (
        'images.csv: i/0.jpg,"cat',
        {**folders("i"), "images.csv": 'path,wnid\ni/0.jpg,"cat\ni/1.jpg,dog\n'},
    ),
    "a column twice": (
        "images.csv: path, label, label",
        {"images.csv": "path,label,label\na.jpg,cat,dog\n"},
    ),
    "a table with semicolons": (
        "images.csv: path;wnid",
        {"images.csv": "path;wnid\na.jpg;n1\n"},
    ),
}


def write(root: Path, content: Content) -> Path:
    """The data set; the path to pass as --data."""
    for name, what in content.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(what, str):
            path.write_text(what)
        elif isinstance(what, bytes):
            path.write_bytes(what)
        else:
            with tarfile.open(path, "w") as tar:
                for member, data in what.items():
                    if member:
                        info = tarfile.TarInfo(member)
                        info.size = len(data)
                        tar.addfile(info, io.BytesIO(data))
            if "" in what:
                path.write_bytes(2 * path.read_bytes())
    table = root / "images.csv"
    return table if table.exists() else root


def understood(root: Path, data: Path) -> str:
    """What is said of the training images, and whether anything validates."""
    lines: list[str] = []
    try:
        lines += open_source(data).describe()
        if has_split(data, "val"):
            lines.append(f"validation: {len(open_source(data, 'val'))} images")
    except DataError as error:
        lines.append(f"refused: {error}")
    return "<br>".join(lines).replace(str(root), "DATA").replace("|", "\\|")


def test_the_table_of_layouts_is_what_they_are_taken_for(tmp_path: Path) -> None:
    rows = ["| data set | files | taken for |\n", "| --- | --- | --- |\n"]
    for number, (name, (files, content)) in enumerate(LAYOUTS.items()):
        root = tmp_path / str(number)
        rows.append(f"| {name} | `{files}` | {understood(root, write(root, content))} |\n")
    text = DOCUMENT.read_text()
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    table = "".join(rows)
    if os.environ.get("DISTILL_RECORD"):
        DOCUMENT.write_text(before + BEGIN + table + END + after)
    else:
        assert rest.split(END)[0] == table


def test_splits_below_any_class_folder_are_an_error(tmp_path: Path) -> None:
    data = write(tmp_path, folders("a", "b/train", "b/val"))
    with pytest.raises(DataError, match=r"train, val found below b, expected splits above"):
        open_source(data)


def test_links_to_folders_below_a_class_are_counted(tmp_path: Path) -> None:
    data = write(tmp_path, folders("a", "b"))
    (data / "a" / "again").symlink_to(data / "b")
    assert str(open_source(data).layout.skipped) == (
        "1 links to folders below a class, which are not followed (a/again)"
    )


@pytest.mark.parametrize(
    ("pattern", "images"),
    [("train-{0000..0002}.tar", 3), ("train-*.tar", 3), ("*.tar", 3), ("train-000[01].tar", 2)],
)
def test_patterns_of_tars(tmp_path: Path, pattern: str, images: int) -> None:
    tars = {f"train-000{i}.tar": samples(f"a{i}") for i in range(3)}
    write(tmp_path, {**tars, "val-0000.tar": samples("v")})
    assert len(open_source(tmp_path / pattern)) == images
    assert has_split(tmp_path / pattern, "val") == (pattern == "*.tar")


def test_a_pattern_names_tars_that_are_not_there(tmp_path: Path) -> None:
    write(tmp_path, {"train-0000.tar": samples("a")})
    with pytest.raises(DataError, match=r"3 of 4 tars are not there \(first: train-0001\.tar\)"):
        open_source(tmp_path / "train-{0000..0003}.tar")
    with pytest.raises(DataError, match="stands for more than"):
        open_source(tmp_path / "train-{0..99999999}.tar")


def test_a_split_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    data = write(tmp_path, folders("Training/a", "Testing/a"))
    with pytest.raises(DataError, match=r"no split val found, only Testing \(test\), Training"):
        open_source(data, "val")
