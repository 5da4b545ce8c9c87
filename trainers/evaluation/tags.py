"""Images with any number of tags each: a CSV, COCO annotations or a folder of VOC's.

Owns the files' forms; images and their keys are `distill.data.source`'s. An image is found by its
key or by the last part of it, where only one has that.
"""

import csv
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree.ElementTree import ParseError

import numpy as np
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import parse
from numpy.typing import NDArray

from distill.data.source import ImageSource
from distill.errors import DataError, first_line


@dataclass(frozen=True, eq=False)
class TagFile:
    """classes: all that are named, in order. tags: of each image, by key or file stem.

    unsure: tags that an image may have or not, such as those of VOC's difficult objects.
    """

    location: str
    classes: tuple[str, ...]
    tags: Mapping[str, Sequence[str]]
    unsure: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def present(self, source: ImageSource, classes: Sequence[str]) -> NDArray[np.int8]:
        """[images, classes]: 1 for tags that an image has, 0 for others, -1 where it is not sure.

        Raises:
            DataError: an image is not in the file, or has a tag that is not among `classes`.
        """
        column = {name: i for i, name in enumerate(classes)}
        matrix = np.zeros((len(source), len(classes)), np.int8)
        by_stem, absent = self._by_stem(source), []
        for row, sample in enumerate(source.samples):
            names = self.tags.get(sample.key, by_stem.get(_stem(sample.key)))
            if names is None:
                absent.append(sample.key)
                continue
            for name in names:
                if name not in column:
                    raise DataError(
                        f"{self.location}: {sample.key!r} has tag {name!r}, expected one of the "
                        f"{len(classes)} of the training images; leave it out, or add it there"
                    )
                matrix[row, column[name]] = 1
            for name in self.unsure.get(sample.key, self.unsure.get(_stem(sample.key), ())):
                if name in column and not matrix[row, column[name]]:
                    matrix[row, column[name]] = -1
        if absent:
            raise DataError(
                f"{self.location}: lacks {len(absent)} of the {len(source)} images in "
                f"{source.location} (first: {absent[0]!r}), expected a line for each, with or "
                "without tags"
            )
        return matrix

    def _by_stem(self, source: ImageSource) -> dict[str, Sequence[str]]:
        """Tags by the last part of a key, where only one image and one line have it."""
        images = Counter(_stem(sample.key) for sample in source.samples)
        lines = Counter(map(_stem, self.tags))
        return {
            _stem(key): names
            for key, names in self.tags.items()
            if images[_stem(key)] == lines[_stem(key)] == 1
        }


def _stem(key: str) -> str:
    return key.rpartition("/")[2]


def read_tags(path: Path) -> TagFile:
    """A CSV with columns key and tags (with ; between them), COCO's JSON, or a folder of VOC XML.

    Raises:
        DataError: it is none of them.
    """
    try:
        if path.is_dir():
            return _read_voc(path)
        return _read_coco(path) if path.suffix.lower() == ".json" else _read_csv(path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _unreadable(path, error) from error
    except (csv.Error, ParseError, DefusedXmlException) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(
        f"{path}: cannot be read as tags ({type(error).__name__}: {first_line(error)}), expected "
        "CSV with the columns key and tags, COCO's JSON, or a folder of VOC's XML"
    )


def _read_csv(path: Path) -> TagFile:
    rows: dict[str, list[str]] = {}
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, skipinitialspace=True)
        header = [name.strip() for name in reader.fieldnames or ()]
        if not {"key", "tags"} <= {*header}:
            raise DataError(
                f"{path}: columns {', '.join(header)[:200] or 'none'} found, expected key and tags "
                "with a comma between them, and ; between the tags of an image; name them so"
            )
        reader.fieldnames = header
        for row in reader:  # several lines of one image add up
            if None in row:  # what no column is for
                raise DataError(
                    f"{path}: line {reader.line_num} has more fields than the header, expected ; "
                    "between the tags of an image, or quotation marks around them; write it again"
                )
            names = [tag.strip() for tag in (row["tags"] or "").split(";") if tag.strip()]
            rows.setdefault((row["key"] or "").strip(), []).extend(names)
    return _tag_file(path, rows)


def _read_coco(path: Path) -> TagFile:
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if absent := [k for k in ("categories", "images", "annotations") if k not in document]:
        raise DataError(
            f"{path}: no {' and no '.join(absent)} found, expected COCO's annotations, which have "
            "categories, images and annotations; those of test images have none: pass others"
        )
    names = {each["id"]: str(each["name"]) for each in document["categories"]}
    if len({*names.values()}) < len(names):
        raise ValueError("two categories of one name")
    keys = {
        each["id"]: PurePosixPath(each["file_name"]).with_suffix("").as_posix()
        for each in document["images"]
    }
    rows: dict[str, list[str]] = {key: [] for key in keys.values()}
    for i, each in enumerate(document["annotations"]):
        for key, known in (("image_id", keys), ("category_id", names)):
            if each[key] not in known:
                raise DataError(
                    f"{path}: annotation {i} has {key} {each[key]!r}, which is none of the "
                    f"{len(known)} {'images' if known is keys else 'categories'}; expected "
                    "annotations of what the file lists: write it again"
                )
        rows[keys[each["image_id"]]].append(names[each["category_id"]])
    return _tag_file(path, rows, [names[number] for number in sorted(names)])


def _read_voc(path: Path) -> TagFile:
    """Objects that are marked as difficult count neither as there nor as not, as VOC judges."""
    rows, unsure = {}, {}
    for file in sorted(path.glob("*.xml")):
        objects = parse(file).getroot().findall("object")
        names = [(each.findtext("name") or "").strip() for each in objects]
        if not all(names):
            raise ValueError(f"{file.name}: an object without a name")
        difficult = [(each.findtext("difficult") or "").strip() == "1" for each in objects]
        pairs = list(zip(names, difficult, strict=True))
        rows[file.stem] = [name for name, hard in pairs if not hard]
        unsure[file.stem] = [name for name, hard in pairs if hard]
    return _tag_file(path, rows, unsure=unsure)


def _tag_file(
    path: Path,
    rows: Mapping[str, Sequence[str]],
    classes: Sequence[str] | None = None,
    unsure: Mapping[str, Sequence[str]] | None = None,
) -> TagFile:
    if classes is None:
        classes = sorted({name for names in rows.values() for name in names})
    if not classes:
        raise ValueError("no tags in it")
    return TagFile(str(path), tuple(classes), rows, unsure or {})
