"""A unit of work: some images, shrunk and written, by a process of its own.

Files are written under another name in OUT/partial and renamed, so whatever has its right name is
whole; a unit counts when its result has been recorded (`ledger`), and is done anew if not.
"""

import io
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from distill.errors import DataError, DataUnavailableError
from distill.images import read_bytes
from distill.prepare.shrink import ShrinkRules, shrink
from distill.samples import Sample, SampleTable
from distill.sources.tars import identity_of, index_of, index_path, list_tar

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
    partial = Path(unit.out, PARTIAL, f"{unit.name}-{os.getpid()}")
    partial.parent.mkdir(parents=True, exist_ok=True)
    folder = None
    try:
        for sample, content in shrunk:
            path = Path(unit.out, unit.split, f"{sample.key}.JPEG")
            if path.parent != folder:
                folder = path.parent
                folder.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(content)
            partial.replace(path)
        os.sync()  # once a unit; to flush each file alone would take longer than to shrink it
        return 0
    finally:
        partial.unlink(missing_ok=True)


def _write_shard(unit: Unit, shrunk: _Shrunk) -> int:
    path = Path(unit.out, f"{unit.name}.tar")
    partial = Path(unit.out, PARTIAL, f"{path.name}-{os.getpid()}")
    partial.parent.mkdir(parents=True, exist_ok=True)
    try:
        with partial.open("wb") as file:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
                for sample, content in shrunk:
                    _add(tar, f"{sample.key}.jpg", content)
                    _add(tar, f"{sample.key}.wnid", str(sample.label).encode())
            file.flush()
            os.fsync(file.fileno())
        with partial.open("rb") as whole:
            listed = SampleTable.of(list_tar(whole, str(path)))
            index = index_of(listed, identity_of(whole))
        Path(index_path(str(path))).write_bytes(index)  # one that is torn counts as none
        partial.replace(path)
        return path.stat().st_size
    finally:
        partial.unlink(missing_ok=True)


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
