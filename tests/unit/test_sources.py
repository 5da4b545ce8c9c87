"""The forms in which images lie; tars and folders are in test_data.py."""

import csv
import json
import os
from contextlib import suppress
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from small_images import CIRCLE, SQUARE, jpeg, write_folder, write_tar

from distill.data.formats import tars
from distill.data.images import read_bytes
from distill.data.source import ImageSource, has_split, label_indices, open_source
from distill.errors import DataError
from distill.files import write_csv
from distill.hierarchy.semantic import SemanticHierarchy


def contents(source: ImageSource) -> dict[str, bytes]:
    return {sample.key: read_bytes(sample) for sample in source.samples}


# -- Hugging Face ----------------------------------------------------------------------------------


def hugging_face(**columns: list[object]) -> datasets.Dataset:
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=[SQUARE, CIRCLE])}
    for name in columns:
        features.setdefault(name, datasets.Value("string"))
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def rows(count: int, *, names: bool = True) -> list[object]:
    """Their files are of different sizes, so that a wrong offset shows."""
    return [
        {"bytes": jpeg(i, 8 + i), "path": f"train/x{i}.jpg" if names else None}
        for i in range(count)
    ]


def test_hugging_face_images_are_read_out_of_their_arrow_files(
    tmp_path: Path, hierarchy: SemanticHierarchy
) -> None:
    images = rows(30)
    made = hugging_face(image=images, label=[i % 2 for i in range(30)])
    made.save_to_disk(tmp_path / "data", num_shards=3)
    source = open_source(tmp_path / "data")
    assert contents(source) == {f"x{i}": jpeg(i, 8 + i) for i in range(30)}
    labels = dict(
        zip((s.key for s in source.samples), label_indices(source, hierarchy), strict=True)
    )
    assert labels == {f"x{i}": hierarchy.index([SQUARE, CIRCLE][i % 2]) for i in range(30)}


def test_hugging_face_splits_and_key_columns(tmp_path: Path) -> None:
    made = hugging_face(image=rows(9), label=[0] * 9, key=[f"k{i}" for i in range(9)])
    splits = {"train": made.select(range(6)), "validation": made.select(range(6, 9))}
    flat = {name: each.flatten_indices() for name, each in splits.items()}
    datasets.DatasetDict(flat).save_to_disk(tmp_path / "data")
    assert has_split(tmp_path / "data", "val")
    assert contents(open_source(tmp_path / "data", "val")) == {
        f"k{i}": jpeg(i, 8 + i) for i in range(6, 9)
    }


def test_a_hugging_face_column_of_splits_is_not_mixed(tmp_path: Path) -> None:
    made = hugging_face(image=rows(4), label=[0] * 4, split=["train", "val"] * 2)
    made.save_to_disk(tmp_path / "data")
    with pytest.raises(DataError, match=r"column split holds train, val, expected one split"):
        open_source(tmp_path / "data")
    alone = made.filter(lambda row: row["split"] == "train").flatten_indices()
    alone.save_to_disk(tmp_path / "train")
    assert len(open_source(tmp_path / "train")) == 2
    datasets.DatasetDict({"train": made}).save_to_disk(tmp_path / "named")
    assert len(open_source(tmp_path / "named")) == 4


def test_what_lies_beside_a_hugging_face_data_set_is_counted(tmp_path: Path) -> None:
    hugging_face(image=rows(2), label=[0] * 2).save_to_disk(tmp_path / "data")
    (tmp_path / "data" / "more.jpg").write_bytes(jpeg(1))
    (tmp_path / "data" / "extra").mkdir()
    skipped = open_source(tmp_path / "data").layout.skipped
    assert str(skipped) == "2 beside the Hugging Face data set (extra, more.jpg)"


def test_hugging_face_rows_without_names_are_numbered(tmp_path: Path) -> None:
    hugging_face(image=rows(3, names=False), label=[0, 1, 0]).save_to_disk(tmp_path / "data")
    assert sorted(s.key for s in open_source(tmp_path / "data").samples) == [
        "000000000",
        "000000001",
        "000000002",
    ]


def test_hugging_face_rows_may_name_files(tmp_path: Path) -> None:
    (tmp_path / "outside.jpg").write_bytes(jpeg(7))
    image = {"bytes": None, "path": str(tmp_path / "outside.jpg")}
    hugging_face(image=[image], label=[0]).save_to_disk(tmp_path / "data")
    assert contents(open_source(tmp_path / "data")) == {"outside": jpeg(7)}


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("state.json", lambda content: content[:20]),
        ("state.json", lambda content: content.replace(b"data-0", b"../da")),
        ("data-00000-of-00001.arrow", lambda content: content[: len(content) // 2]),
        ("data-00000-of-00001.arrow", lambda content: b"x" * len(content)),
        ("data-00000-of-00001.arrow", lambda content: b""),
        ("dataset_info.json", lambda content: b"{}"),
        ("dataset_info.json", lambda content: content.replace(b'"Image"', b'"Value"')),
    ],
)
def test_damaged_hugging_face_data_is_one_line(tmp_path: Path, file: str, damage) -> None:  # type: ignore[no-untyped-def]
    hugging_face(image=rows(5), label=[0] * 5).save_to_disk(tmp_path / "data")
    path = tmp_path / "data" / file
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=r"; save it again|expected"):
        open_source(tmp_path / "data")


# -- tables of paths -------------------------------------------------------------------------------


def table(folder: Path) -> list[dict[str, object]]:
    write_folder(folder / "images")
    return [
        {"path": f"images/{wnid}/{wnid}_{i}.JPEG", "wnid": wnid, "split": "train" if i else "val"}
        for wnid in (SQUARE, CIRCLE)
        for i in range(3)
    ]


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_tables_name_images_labels_and_splits(
    tmp_path: Path, form: str, hierarchy: SemanticHierarchy
) -> None:
    listed = table(tmp_path)
    path = tmp_path / f"images.{form}"
    if form == "csv":
        write_csv(path, list(listed[0]), [list(row.values()) for row in listed])
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(listed), path)
    train, val = open_source(path), open_source(path, "val")
    assert (len(train), len(val), has_split(path, "val"), has_split(path, "test")) == (
        4,
        2,
        True,
        False,
    )
    assert {s.key for s in val.samples} == {f"images/{w}/{w}_0" for w in (SQUARE, CIRCLE)}
    assert set(contents(val).values()) == {jpeg(0)}
    assert sorted(label_indices(val, hierarchy)) == sorted(map(hierarchy.index, (SQUARE, CIRCLE)))


def test_a_table_may_give_keys_indices_and_absolute_paths(
    tmp_path: Path, hierarchy: SemanticHierarchy
) -> None:
    table(tmp_path)
    absolute = tmp_path / "images" / SQUARE / f"{SQUARE}_1.JPEG"
    write_csv(tmp_path / "t.csv", ["path", "label", "key"], [[absolute, 28, "ä key"]])
    (sample,) = (source := open_source(tmp_path / "t.csv")).samples
    assert (sample.key, sample.label) == ("ä key", 28)
    assert label_indices(source, hierarchy).tolist() == [28]
    assert read_bytes(sample) == jpeg(1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"key,wnid\na,b\n", "columns key, wnid found, expected path or file_name"),
        (b"path,wnid\nftp://x/a.jpg,n1\n", "expected a file, s3://"),
        (b"path,wnid\n", "no images found"),
        (b'path,wnid\n"' + b"x" * 200_000, "cannot be read as CSV"),
        (b"path\n" + b"x" * 5000 + b".jpg\n", "line 2 has no path"),
        (b"path\na.jpg\na.jpg\n", "the key 'a' appears twice"),
    ],
)
def test_wrong_tables_are_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(DataError, match=message):
        open_source(tmp_path / "t.csv")


def test_damaged_parquet_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        open_source(tmp_path / "t.parquet")


# -- labels ----------------------------------------------------------------------------------------


def test_labels_may_be_names_of_classes(
    tmp_path: Path, hierarchy: SemanticHierarchy, wordnet: Path
) -> None:
    labels = ["square", "isosceles triangle", "Isosceles_Triangle", "square.n.01", SQUARE, 3, "3"]
    write_csv(
        tmp_path / "t.csv", ["path", "label"], [[f"{i}.jpg", x] for i, x in enumerate(labels)]
    )
    source = open_source(tmp_path / "t.csv")
    found = {
        s.key: i for s, i in zip(source.samples, label_indices(source, hierarchy), strict=True)
    }
    square, triangle = (
        hierarchy.index(SQUARE),
        hierarchy.index(hierarchy.find("isosceles triangle")[0]),
    )
    assert [found[str(i)] for i in range(7)] == [square, triangle, triangle, square, square, 3, 3]


def test_a_name_of_two_classes_is_no_label(tmp_path: Path) -> None:
    crane = SemanticHierarchy.from_chains(["n1", "n2"], {}, names={"n1": "crane", "n2": "crane"})
    write_csv(tmp_path / "t.csv", ["path", "wnid"], [["a.jpg", "crane"]])
    with pytest.raises(DataError, match="label 'crane', expected a synset or an index"):
        label_indices(open_source(tmp_path / "t.csv"), crane)


def test_a_taxonomy_of_ones_own_is_a_json_of_parents(tmp_path: Path) -> None:
    path = tmp_path / "fruit.json"
    parents = {"fruit": None, "apple": "fruit", "sku-7": "apple", "pear": "fruit", "bread": None}
    path.write_text(json.dumps({"parents": parents, "names": {"sku-7": "Granny Smith"}}))
    built = SemanticHierarchy.load(path)
    assert built.level_sizes == built.classes_per_hierarchy == (2, 2, 1)
    assert built.ancestors("sku-7") == ("apple", "fruit")
    assert built.display_name("sku-7") == "Granny Smith"
    write_folder(tmp_path / "data", ("granny smith", "pear", "bread"))
    assert set(label_indices(open_source(tmp_path / "data"), built)) == {2, 3, 4}
    path.write_text(json.dumps({"parents": {"a": "b", "b": "a"}}))
    with pytest.raises(Exception, match="circle"):
        SemanticHierarchy.load(path)


# -- the index of a tar ----------------------------------------------------------------------------


def test_a_tar_is_listed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    members = {f"{i}.jpg": jpeg(i) for i in range(5)} | {"3.wnid": SQUARE.encode(), "4.cls": b"9"}
    path = write_tar(tmp_path / "x.tar", members)
    first = open_source(path, indexes=tmp_path / "indexes")
    monkeypatch.setattr(tars, "list_tar", lambda *_: pytest.fail("listed again"))
    again = open_source(path, indexes=tmp_path / "indexes")
    assert list(again.samples) == list(first.samples)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["indexes", "x.tar"]


def test_an_index_of_another_tar_does_not_count(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", {f"{i}.jpg": jpeg(i) for i in range(5)})
    open_source(path, indexes=tmp_path / "indexes")
    stamp = path.stat()
    write_tar(path, {f"{i}.jpg": jpeg(i + 1) for i in range(5)})
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert path.stat().st_size == stamp.st_size  # and time
    assert contents(open_source(path, indexes=tmp_path / "indexes"))["0"] == jpeg(1)


@pytest.mark.parametrize("damage", ["cut", "text", "offset", "label"])
def test_an_index_that_makes_no_sense_is_made_again(tmp_path: Path, damage: str) -> None:
    path = write_tar(tmp_path / "x.tar", {"a.jpg": jpeg(), "a.wnid": b"n1"})
    expected = contents(open_source(path, indexes=tmp_path / "indexes"))
    (index,) = (tmp_path / "indexes").iterdir()
    content = index.read_bytes()
    if damage in ("cut", "text"):
        index.write_bytes(content[:100] if damage == "cut" else b"x")
    else:
        with np.load(index) as found:
            parts = dict(found)
        parts["rows"][damage] = 2**30
        with index.open("wb") as file:
            np.savez(file, **parts)
    assert contents(open_source(path, indexes=tmp_path / "indexes")) == expected


def test_without_the_right_to_write_an_index_the_tar_is_read_all_the_same(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", {"a.jpg": jpeg()})
    (tmp_path / "taken").write_text("a file where the folder should be")
    assert len(open_source(path, indexes=tmp_path / "taken")) == 1


def test_a_tar_without_an_end_mark_is_not_whole(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", {"a.jpg": jpeg()})
    whole = path.read_bytes()
    path.write_bytes(whole[: 512 + -(-len(jpeg()) // 512) * 512])
    with pytest.raises(DataError, match="without a tar's end mark"):
        open_source(path)


def test_csv_of_strange_names_finds_its_files(tmp_path: Path) -> None:
    odd = 'a\udcff, "b"\n.jpg'
    (tmp_path / odd).write_bytes(jpeg(3))
    with (tmp_path / "t.csv").open("w", errors="surrogateescape", newline="") as file:
        csv.writer(file).writerows([["path"], [odd]])
    (sample,) = open_source(tmp_path / "t.csv").samples
    assert read_bytes(sample) == jpeg(3)


# -- hostile bytes ---------------------------------------------------------------------------------


def test_a_damaged_header_in_the_middle_is_not_the_end(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", {f"{i}.jpg": jpeg(i) for i in range(9)})
    content = bytearray(path.read_bytes())
    content[content.index(b"5.jpg") + 3] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="damaged at byte"):
        open_source(path)


@pytest.mark.parametrize("size", [-512, -1024, -1])
def test_a_member_of_negative_size_is_not_read_for_ever(tmp_path: Path, size: int) -> None:
    path = write_tar(tmp_path / "x.tar", {"a.jpg": jpeg(), "a.wnid": b"n1", "b.jpg": jpeg()})
    content = bytearray(path.read_bytes())
    at = content.index(b"a.wnid")
    content[at + 124 : at + 136] = b"\xff" + size.to_bytes(11, "big", signed=True)
    content[at + 148 : at + 156] = b" " * 8
    content[at + 148 : at + 156] = b"%06o\0 " % sum(content[at : at + 512])
    path.write_bytes(content)
    with pytest.raises(DataError, match="copy"):
        open_source(path)


@pytest.mark.parametrize("kind", [b"x", b"g", b"L", b"K"])
def test_a_header_that_promises_gigabytes_is_not_read(tmp_path: Path, kind: bytes) -> None:
    path = write_tar(tmp_path / "x.tar", {"a.jpg": jpeg(), "b.jpg": jpeg()})
    content = bytearray(path.read_bytes())
    at = content.index(b"b.jpg")
    content[at + 124 : at + 136] = b"\x80" + (50 * 2**30).to_bytes(11, "big")
    content[at + 156 : at + 157] = kind
    content[at + 148 : at + 156] = b" " * 8
    content[at + 148 : at + 156] = b"%06o\0 " % sum(content[at : at + 512])
    path.write_bytes(content)
    with pytest.raises(DataError, match="copy"):
        open_source(path)


@pytest.mark.parametrize("seed", range(12))
def test_flipped_bytes_in_arrow_and_parquet_are_one_line_or_nothing(
    tmp_path: Path, seed: int
) -> None:
    random = np.random.default_rng(seed)
    hugging_face(image=rows(5), label=[0] * 5).save_to_disk(tmp_path / "data")
    listed = pyarrow.Table.from_pylist([{"path": f"{i}.jpg", "wnid": "n1"} for i in range(50)])
    pyarrow.parquet.write_table(listed, tmp_path / "t.parquet")
    for path in (tmp_path / "data" / "data-00000-of-00001.arrow", tmp_path / "t.parquet"):
        content = bytearray(path.read_bytes())
        for at in random.integers(0, len(content), 6):
            content[at] = random.integers(0, 256)
        path.write_bytes(content)
    for place in (tmp_path / "data", tmp_path / "t.parquet"):
        with suppress(DataError):
            open_source(place)


def test_arrow_labels_that_are_no_classes_are_one_line(tmp_path: Path) -> None:
    made = hugging_face(image=rows(2), label=[0, 1])
    made.save_to_disk(tmp_path / "data")
    info = tmp_path / "data" / "dataset_info.json"
    document = json.loads(info.read_text())
    document["features"]["label"]["names"] = ["n1"]
    info.write_text(json.dumps(document))
    with pytest.raises(DataError, match="label 1 found, expected a name or a number below 1"):
        open_source(tmp_path / "data")


def test_compressed_arrow_is_one_line(tmp_path: Path) -> None:
    made = hugging_face(image=rows(5), label=[0] * 5)
    made.save_to_disk(tmp_path / "data")
    (path,) = (tmp_path / "data").glob("*.arrow")
    with pyarrow.memory_map(str(path)) as file:
        content = pyarrow.ipc.open_stream(file).read_all().combine_chunks()
        options = pyarrow.ipc.IpcWriteOptions(compression="lz4")
        with pyarrow.ipc.new_stream(str(path) + ".new", content.schema, options=options) as writer:
            writer.write_table(content)
    Path(f"{path}.new").replace(path)
    with pytest.raises(DataError, match="compressed, expected plain Arrow"):
        open_source(tmp_path / "data")


def test_arrow_keys_that_are_numbers_begin_at_0_and_stand_once(tmp_path: Path) -> None:
    hugging_face(image=rows(3), label=[0] * 3, key=["0", "1", "2"]).save_to_disk(tmp_path / "a")
    assert {s.key for s in open_source(tmp_path / "a").samples} == {"0", "1", "2"}
    hugging_face(image=rows(2), label=[0] * 2, key=["x", "x"]).save_to_disk(tmp_path / "b")
    with pytest.raises(DataError, match="the key 'x' appears twice"):
        open_source(tmp_path / "b")


def test_a_link_to_itself_does_not_stop_the_listing(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / SQUARE / "loop.jpg").symlink_to(tmp_path / SQUARE / "loop.jpg")
    source = open_source(tmp_path)
    (loop,) = (sample for sample in source.samples if sample.key.endswith("loop"))
    with pytest.raises(DataError, match="cannot be read: Too many levels"):
        read_bytes(loop)


def test_an_index_is_made_again_when_the_tar_was_written_later(tmp_path: Path) -> None:
    """A correction of a wnid in the middle changes neither size nor beginning nor end."""
    members = {
        f"{i:03d}.{kind}": jpeg() if kind == "jpg" else b"n00000001"
        for i in range(200)
        for kind in ("jpg", "wnid")
    }
    path = write_tar(tmp_path / "x.tar", members)
    open_source(path, indexes=tmp_path / "indexes")
    write_tar(path, members | {"100.wnid": b"n00000002"})
    source = open_source(path, indexes=tmp_path / "indexes")
    assert {s.key: s.label for s in source.samples}["100"] == "n00000002"


def test_negative_numbers_are_no_classes(tmp_path: Path, hierarchy: SemanticHierarchy) -> None:
    """-1 is Hugging Face's word for none; Python would count the others from the end."""
    for name, label in (("a", -1), ("b", -5)):
        listed = pyarrow.Table.from_pylist([{"path": "x.jpg", "label": label}])
        pyarrow.parquet.write_table(listed, tmp_path / f"{name}.parquet")
    assert label_indices(open_source(tmp_path / "a.parquet"), hierarchy).tolist() == [-1]
    with pytest.raises(DataError, match="has label -5, expected"):
        label_indices(open_source(tmp_path / "b.parquet"), hierarchy)


def test_numbers_are_names_where_classes_are_numbers(tmp_path: Path) -> None:
    classes = SemanticHierarchy.from_chains([str(i) for i in (0, 10, 2, 7)], {})
    (tmp_path / "folders" / "7").mkdir(parents=True)
    (tmp_path / "folders" / "7" / "x.jpg").write_bytes(jpeg())
    write_csv(tmp_path / "t.csv", ["path", "label"], [["x.jpg", 7]])
    tar = write_tar(tmp_path / "t.tar", {"x.jpg": jpeg(), "x.cls": b"7"})
    for data in (tmp_path / "folders", tmp_path / "t.csv", tar):
        assert label_indices(open_source(data), classes).tolist() == [3]


def test_names_of_files_cannot_forge_lines(tmp_path: Path) -> None:
    folder = tmp_path / "a\ndata: val: 100 images\x1b[31m"
    for each in (folder, tmp_path / "b"):
        each.mkdir()
        (each / "x.jpg").write_bytes(jpeg())
    (line,) = open_source(tmp_path).describe()
    assert "a\\ndata: val: 100 images\\x1b[31m" in line
