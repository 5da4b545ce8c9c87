"""The raw release as it was downloaded: which images there are, of which class, and where.

fall11 is a tar of a tar for each class (n01440764.tar), winter21 a tar of directories; either may
also lie unpacked, as class tars in a folder or as a folder a class. Only headers are read, nothing
is unpacked: an image in a tar within a tar is a range of bytes of the outermost file.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import PurePosixPath

from distill.errors import DataError
from distill.progress import Ticker
from distill.samples import Sample, SampleTable
from distill.sources.folders import list_folders, split_image_name
from distill.sources.members import members
from distill.sources.places import Disk

CLASS = re.compile(r"[^/\0.][^/\0]*")
GZIP = b"\x1f\x8b"


@dataclass(frozen=True, eq=False)
class RawImages:
    """samples: labelled with their class; keys are class/stem, `name` is the file's own name.

    skipped: what was left out and why, by name.
    """

    location: str
    samples: SampleTable
    skipped: dict[str, str]


@dataclass
class _Listing:
    tick: Ticker
    skipped: dict[str, str] = field(default_factory=dict)

    def sample(
        self, of_class: str, path: str, place: str, offset: int, size: int
    ) -> Iterator[Sample]:
        """The image of that path within its tar, if it is one."""
        name = PurePosixPath(path).name
        parts = split_image_name(name)
        if parts is None:
            return
        if not CLASS.fullmatch(of_class) or "\0" in name:
            self.skipped[path] = "its name or its class cannot be the name of a file"
            return
        self.tick(1)
        stem = parts[0].replace(".", "_")  # in WebDataset a key ends at the first dot
        yield Sample(f"{of_class}/{stem}", of_class, place, parts[1], offset, size)


def list_raw(location: str, tick: Ticker) -> RawImages:
    """All images of a release; `tick` is told of each.

    A class tar that ends early gives the images before its end, and is named among the skipped.

    Raises:
        DataError: nothing is there, of no known form, or the outermost tar is not whole.
    """
    disk = Disk()
    kind = disk.kind(location)
    if "://" in location or kind is None:
        raise DataError(
            f"{location}: no such file or folder of this machine; expected fall11_whole.tar, a tar "
            "or folder of class directories, or a folder of class tars"
        )
    listing = _Listing(tick)
    if kind == "file":
        with disk.open(location) as file:
            samples = SampleTable.of(_of_tar(file, location, listing))
    else:
        tars = [name for name in disk.entries(location).files if name.endswith(".tar")]
        samples = (
            SampleTable.of(_of_class_tars(location, tars, listing))
            if tars
            else SampleTable.of(_of_folders(location, listing))
        )
    if not len(samples):
        raise DataError(
            f"{location}: no images of classes found; expected class tars as n01440764.tar, or "
            "directories of images as n01440764/"
        )
    return RawImages(location, samples, listing.skipped)


def _of_tar(file: BufferedReader, path: str, listing: _Listing) -> Iterator[Sample]:
    """A tar of class tars or of class directories, or of both."""
    if file.peek(2)[:2] == GZIP:
        raise DataError(
            f"{path}: compressed by gzip, expected a plain tar to read at random; gunzip it"
        )
    for member in members(file, path):
        inner = PurePosixPath(member.name)
        if inner.suffix == ".tar":
            here, end = file.tell(), member.offset + member.size
            yield from _of_class_tar(file, path, inner.stem, member.offset, end, listing)
            file.seek(here)
        else:
            yield from listing.sample(
                inner.parent.name, member.name, path, member.offset, member.size
            )


def _of_class_tars(folder: str, names: list[str], listing: _Listing) -> Iterator[Sample]:
    for name in names:
        path = f"{folder}/{name}"
        with Disk().open(path) as file:
            end = file.seek(0, 2)
            yield from _of_class_tar(file, path, PurePosixPath(name).stem, 0, end, listing)


def _of_class_tar(
    file: BufferedReader, path: str, of_class: str, start: int, end: int, listing: _Listing
) -> Iterator[Sample]:
    found = 0
    try:
        for member in members(file, f"{of_class}.tar", start=start, end=end):
            found += 1
            yield from listing.sample(of_class, member.name, path, member.offset, member.size)
    except DataError as error:
        listing.skipped[f"{of_class}.tar"] = f"damaged after {found} files: {error}"


def _of_folders(root: str, listing: _Listing) -> Iterator[Sample]:
    for sample in list_folders(root):
        name = f"{sample.key}{sample.suffix}"
        for found in listing.sample(str(sample.label), name, root, 0, -1):
            yield Sample(found.key, found.label, root, found.suffix, name=name)
