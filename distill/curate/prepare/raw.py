"""The raw release as it was downloaded: which images there are, of which class, and where.

fall11 is a tar of a tar for each class (n01440764.tar), winter21 a tar of directories; either may
also lie unpacked, as class tars in a folder or as one folder per class. Only headers are read,
nothing is unpacked: an image in a tar within a tar is a range of bytes of the outermost file.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import PurePosixPath

from distill.data.formats.folders import list_folders, split_image_name
from distill.data.formats.samples import Sample, SampleTable
from distill.data.formats.tar_members import members, open_tar
from distill.errors import DataError, DataUnavailableError
from distill.process_pool import map_in_processes
from distill.progress import Ticker
from distill.storage.disk import Disk

MAX_CLASS_BYTES = 240
GZIP = b"\x1f\x8b"
TARS_A_UNIT = 8
TARS_FOR_PROCESSES = 200  # fewer are listed before processes have started
LISTED_AT_ONCE = 1000


@dataclass(frozen=True, eq=False)
class RawImages:
    """samples: labelled with their class; keys are class/stem, `name` is the file's own name.

    skipped: what was left out and why, by name.
    """

    location: str
    samples: SampleTable
    skipped: dict[str, str]


@dataclass(frozen=True)
class ClassTar:
    """The tar of one class: from `start` to `end` of a file; of all of it where `end` is None."""

    of_class: str
    path: str
    start: int = 0
    end: int | None = None


@dataclass(frozen=True)
class ClassTars:
    """A unit of work, by its number."""

    number: int
    tars: tuple[ClassTar, ...]


@dataclass
class _Listing:
    """The images found so far, and what was skipped."""

    skipped: dict[str, str] = field(default_factory=dict)

    def sample(
        self, of_class: str, path: str, place: str, offset: int, size: int
    ) -> Iterator[Sample]:
        """The image of that path within its tar, if it is one."""
        name = PurePosixPath(path).name
        parts = split_image_name(name)
        if parts is None:
            return
        if not _is_class(of_class) or "\0" in name:
            self.skipped[path] = "its name or its class cannot be the name of a file"
            return
        stem = parts[0].replace(".", "_")  # in WebDataset a key ends at the first dot
        yield Sample(f"{of_class}/{stem}", of_class, place, parts[1], offset, size)


def list_raw(location: str, tick: Ticker, workers: int = 0) -> RawImages:
    """All images of a release; `tick` is told of them. Class tars are listed by processes.

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
    listing, tars = _Listing(), list[ClassTar]()
    if kind == "file":
        with open_tar(location) as file:
            top = SampleTable.of(_counted(_of_tar(file, location, listing, tars.append), tick))
    else:
        names = [n for n in disk.entries(location).files if n.lower().endswith(".tar")]
        tars += [ClassTar(PurePosixPath(name).stem, f"{location}/{name}") for name in names]
        top = SampleTable.of(_counted(_of_folders(location, listing), tick))
    tables = {-1: (top, listing.skipped)}
    few = len(tars) < TARS_FOR_PROCESSES
    for number, table, skipped in map_in_processes(
        list_class_tars, _units(tars), 0 if few else workers
    ):
        tables[number] = table, skipped
        tick(len(table))
    parts = [tables[number] for number in sorted(tables)]
    samples = SampleTable.concatenate([table for table, _ in parts])
    if not len(samples):
        raise DataError(
            f"{location}: no images of classes found; expected class tars as n01440764.tar, or "
            "directories of images as n01440764/"
        )
    skipped = {name: reason for _, some in parts for name, reason in some.items()}
    return RawImages(location, samples, skipped)


def list_class_tars(unit: ClassTars) -> tuple[int, SampleTable, dict[str, str]]:
    """The number of the unit, its images, and what was skipped."""
    listing = _Listing()
    images = (sample for tar in unit.tars for sample in _of_class_tar(tar, listing))
    return unit.number, SampleTable.of(images), listing.skipped


def _is_class(name: str) -> bool:
    """Whether a folder and a line of a list can be called so."""
    plain = name.isprintable() and not name.startswith(".") and "/" not in name
    return bool(name) and plain and len(name.encode()) <= MAX_CLASS_BYTES


def _units(tars: list[ClassTar]) -> Iterator[ClassTars]:
    for number, start in enumerate(range(0, len(tars), TARS_A_UNIT)):
        yield ClassTars(number, tuple(tars[start : start + TARS_A_UNIT]))


def _counted(samples: Iterable[Sample], tick: Ticker) -> Iterator[Sample]:
    """A call for each would take as long as to list it."""
    for number, sample in enumerate(samples, 1):
        yield sample
        if number % LISTED_AT_ONCE == 0:
            tick(LISTED_AT_ONCE)


def _of_tar(
    file: BufferedReader, path: str, listing: _Listing, on_class_tar: Callable[[ClassTar], None]
) -> Iterator[Sample]:
    """The images in class directories; class tars are `found`."""
    if file.peek(2)[:2] == GZIP:
        raise DataError(
            f"{path}: compressed by gzip, expected a plain tar to read at random; gunzip it"
        )
    for member in members(file, path):
        inner = PurePosixPath(member.name)
        if inner.suffix.lower() == ".tar":
            on_class_tar(ClassTar(inner.stem, path, member.offset, member.offset + member.size))
        else:
            yield from listing.sample(
                inner.parent.name, member.name, path, member.offset, member.size
            )


def _of_class_tar(tar: ClassTar, listing: _Listing) -> Iterator[Sample]:
    listed, name = 0, f"{tar.of_class}.tar"
    try:
        with Disk().open(tar.path) as file:
            for member in members(file, name, start=tar.start, end=tar.end):
                listed += 1
                yield from listing.sample(
                    tar.of_class, member.name, tar.path, member.offset, member.size
                )
    except DataUnavailableError:
        raise
    except DataError as error:
        listing.skipped[name] = f"damaged after {listed} files: {error}"


def _of_folders(root: str, listing: _Listing) -> Iterator[Sample]:
    for sample in (each for each in list_folders(root) if each.label is not None):
        name = f"{sample.key}{sample.suffix}"
        for image in listing.sample(str(sample.label), name, root, 0, -1):
            yield Sample(image.key, image.label, root, image.suffix, name=name)
