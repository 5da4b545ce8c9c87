"""A unit of work: some images, shrunk and written, by a process of its own.

A unit counts when its result has been recorded (`ledger`), and is done anew if not. Shards are
written in a folder for the parts of this run and moved from there when they are on the disk, so one
in its right place is whole; class folders are refused as data until all units are done.
"""

import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from distill.curate.prepare.shrink import ShrinkRules, shrink
from distill.data.formats.samples import Sample, SampleTable
from distill.data.formats.skipped import Skipped
from distill.data.formats.tars import identity_of, index_of, index_path
from distill.data.images import read_bytes
from distill.errors import DataError, DataUnavailableError

Form = Literal["folder", "webdataset"]
MAX_NAME_BYTES = 240  # of the 255 that a file name may have


@dataclass(frozen=True, kw_only=True)
class Unit:
    """The images of one shard, or of some class folders.

    parts: where shards are written. name: of the shard, without its suffix.
    """

    out: str
    parts: str
    split: str
    name: str
    form: Form
    samples: list[Sample]
    rules: ShrinkRules


@dataclass(frozen=True, kw_only=True)
class UnitDone:
    """bytes_in, bytes_out: of the images that were written. file_bytes: of the shard; else 0.

    bad: the reason for each image that was left out, by key.
    """

    name: str
    images: int
    bytes_in: int
    bytes_out: int
    file_bytes: int
    bad: dict[str, str]

    @property
    def split(self) -> str:
        """Split that the unit belongs to."""
        return self.name.partition("-")[0]


def do_unit(unit: Unit) -> UnitDone:
    """Read, shrink and write the images of a unit.

    Raises:
        DataUnavailableError: the release cannot be read now.
        OSError: the result cannot be written.
    """
    shrunk = _Shrunk(unit)
    write = _write_shard if unit.form == "webdataset" else _write_files
    file_bytes = write(unit, shrunk)
    return UnitDone(
        name=unit.name,
        images=shrunk.images,
        bytes_in=shrunk.bytes_in,
        bytes_out=shrunk.bytes_out,
        file_bytes=file_bytes,
        bad=shrunk.bad,
    )


class _Shrunk:
    """The shrunk images one by one; counts them, and keeps what is wrong with the others."""

    def __init__(self, unit: Unit) -> None:
        self.unit, self.bad = unit, dict[str, str]()
        self.images = self.bytes_in = self.bytes_out = 0

    def __iter__(self) -> Iterator[tuple[Sample, bytes]]:
        for sample in self.unit.samples:
            try:
                if len(os.fsencode(sample.key.rpartition("/")[2])) > MAX_NAME_BYTES:
                    raise DataError("its name is too long for a file")
                content = read_bytes(sample)
                small = shrink(content, self.unit.rules)
            except DataUnavailableError:
                raise
            except DataError as error:
                self.bad[sample.key] = str(error)
                continue
            self.images += 1
            self.bytes_in += len(content)
            self.bytes_out += len(small)
            yield sample, small


def _write_files(unit: Unit, shrunk: _Shrunk) -> int:
    made = ""
    for sample, content in shrunk:
        folder = f"{unit.out}/{unit.split}/{sample.label}"
        if folder != made:
            Path(folder).mkdir(parents=True, exist_ok=True)
            made = folder
        # Not renamed from another name: that doubles what the file system has to do.
        with open(f"{unit.out}/{unit.split}/{sample.key}.JPEG", "wb") as file:
            file.write(content)
    return 0


def _write_shard(unit: Unit, shrunk: _Shrunk) -> int:
    path, part = f"{unit.out}/{unit.name}.tar", Path(unit.parts, f"{unit.name}.tar")
    listed: list[Sample] = []
    with part.open("wb") as file:
        for sample, content in shrunk:
            head = _head(f"{sample.key}.jpg", content)
            stored = replace(sample, place=path, suffix="", name="", offset=file.tell() + len(head))
            listed.append(replace(stored, size=len(content)))
            label = str(sample.label).encode()
            file.write(head + content + _padding(content))
            file.write(_head(f"{sample.key}.wnid", label) + label + _padding(label))
        file.write(bytes(2 * tarfile.BLOCKSIZE))  # the end mark
    with part.open("rb") as shard:
        index = index_of(SampleTable.of(listed), identity_of(shard), Skipped())
    Path(index_path(path)).write_bytes(index)  # one that is torn counts as none
    return part.stat().st_size


def _head(name: str, content: bytes) -> bytes:
    """The header of a member. `TarFile.addfile` takes twice as long for header and content."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    return member.tobuf(tarfile.GNU_FORMAT)


def _padding(content: bytes) -> bytes:
    return bytes(-len(content) % tarfile.BLOCKSIZE)
