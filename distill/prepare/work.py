"""A unit of work: some images, shrunk and written, by a process of its own.

A unit counts when its result has been recorded (`ledger`), and is done anew if not. Shards are
written under another name in OUT/partial and renamed, so one that has its right name is whole;
class folders are refused as data until all units are done.
"""

import io
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from distill.errors import DataError, DataUnavailableError
from distill.images import read_bytes
from distill.prepare.shrink import ShrinkRules, shrink
from distill.samples import Sample, SampleTable
from distill.sources.tars import identity_of, index_of, index_path

Form = Literal["folder", "webdataset"]
PARTIAL = "partial"
MAX_NAME_BYTES = 240  # of the 255 that a file name may have


@dataclass(frozen=True, kw_only=True)
class Unit:
    """The images of one shard, or of some class folders."""

    out: str
    split: str
    number: int
    form: Form
    samples: list[Sample]
    rules: ShrinkRules

    @property
    def name(self) -> str:
        """Of the shard, without its suffix."""
        return f"{self.split}-{self.number:06d}"


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
        # Not renamed from another name: that would cost a tenth of shrinking it.
        with open(f"{unit.out}/{unit.split}/{sample.key}.JPEG", "wb", buffering=0) as file:
            file.write(content)
    os.sync()  # once a unit; to flush each file alone would take longer than to shrink it
    return 0


def _write_shard(unit: Unit, shrunk: _Shrunk) -> int:
    path = Path(unit.out, f"{unit.name}.tar")
    partial = Path(unit.out, PARTIAL, f"{path.name}-{os.getpid()}")
    partial.parent.mkdir(parents=True, exist_ok=True)
    listed: list[Sample] = []
    try:
        with partial.open("wb") as file:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
                for sample, content in shrunk:
                    offset = _add(tar, f"{sample.key}.jpg", content)
                    _add(tar, f"{sample.key}.wnid", str(sample.label).encode())
                    stored = replace(sample, place=str(path), suffix="", name="")
                    listed.append(replace(stored, offset=offset, size=len(content)))
            file.flush()
            os.fsync(file.fileno())
        with partial.open("rb") as whole:
            index = index_of(SampleTable.of(listed), identity_of(whole))
        Path(index_path(str(path))).write_bytes(index)  # one that is torn counts as none
        partial.replace(path)
        return path.stat().st_size
    finally:
        partial.unlink(missing_ok=True)


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> int:
    """Where its bytes begin."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
    return tar.offset - -(-len(content) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
