"""Samples as columns: what is known of each image, in some 80 bytes and one copy for all processes.

Eleven million Python objects would take gigabytes, and every worker process would copy them as it
counts references to them. Rows of NumPy arrays are shared as they are.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from distill.data.sample_ids import normal_key

# Of files that are images.
IMAGE_SUFFIXES: tuple[str, ...] = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".avif")
IMAGE_SUFFIXES += (".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
VIDEO_SUFFIXES: tuple[str, ...] = (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".mpg", ".mpeg")
VIDEO_SUFFIXES += (".ts", ".mts", ".3gp", ".flv", ".wmv", ".ogv")
FOLDER = "/"  # in place of a suffix: the frames of a clip lie in it
ROW = np.dtype(
    [
        ("key_start", np.int64),
        ("key_bytes", np.int32),
        ("name_bytes", np.uint16),
        ("label", np.int32),
        ("place", np.int32),
        ("suffix", np.uint8),
        ("guessed", np.bool_),
        ("offset", np.int64),
        ("size", np.int64),
    ]
)
ROWS_AT_ONCE = 2**16


@dataclass(frozen=True, slots=True)
class Sample:
    """One image: its key, its label as found, and where its bytes are.

    label: a wnid, or a class index from a .cls file; None without one.
    guessed: the label was read off the file's name, so it may lie outside the label set.
    place: a file that holds `size` bytes of it at `offset`, as a tar; or a folder, where `size` is
    -1 and the file's name is `name`, or else the key and `suffix`.
    """

    key: str
    label: str | int | None
    place: str
    suffix: str = ""
    offset: int = 0
    size: int = -1
    guessed: bool = False
    name: str = ""

    @property
    def path(self) -> str:
        """The file to open."""
        if self.size >= 0:
            return self.place
        name = self.name or f"{self.key}{self.suffix}"
        return f"{self.place}/{name}" if self.place else name


@dataclass(frozen=True, eq=False)
class SampleTable(Sequence[Sample]):
    """A sequence of samples. labels, places, suffixes: the distinct ones, which rows point at."""

    rows: NDArray[Any]  # of dtype ROW
    keys: bytes  # each followed by the sample's name, where it has one
    labels: tuple[str | int | None, ...]
    places: tuple[str, ...]
    suffixes: tuple[str, ...]

    @classmethod
    def of(cls, samples: Iterable[Sample]) -> "SampleTable":
        """Take them in one by one, with normal keys and labels (`normal_key`)."""
        labels: dict[str | int | None, int] = {}
        places: dict[str, int] = {}
        suffixes: dict[str, int] = {}
        keys, parts, filled = bytearray(), [np.empty(0, ROW)], 0
        for sample in samples:
            if filled % ROWS_AT_ONCE == 0:
                parts.append(np.empty(ROWS_AT_ONCE, ROW))
            normal = normal_key(sample.key)
            in_folder = sample.size < 0 and normal != sample.key
            stored_as = sample.name or (f"{sample.key}{sample.suffix}" if in_folder else "")
            label = sample.label
            if isinstance(label, str):
                label = normal_key(label)
            key = normal.encode("utf-8", "surrogatepass")
            name = stored_as.encode("utf-8", "surrogatepass")
            parts[-1][filled % ROWS_AT_ONCE] = (
                len(keys),
                len(key),
                len(name),
                labels.setdefault(label, len(labels)),
                places.setdefault(sample.place, len(places)),
                suffixes.setdefault(sample.suffix, len(suffixes)),
                sample.guessed,
                sample.offset,
                sample.size,
            )
            keys += key + name
            filled += 1
        rows = np.concatenate(parts)[:filled]
        return cls(rows, bytes(keys), tuple(labels), tuple(places), tuple(suffixes))

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> "SampleTable": ...
    def __getitem__(self, index: int | slice) -> "Sample | SampleTable":
        if isinstance(index, slice):
            return self.select(index)
        row = self.rows[index].item()
        start, size, named, label, place, suffix, guessed, offset, stored = row
        text = self.keys[start : start + size + named]
        return Sample(
            text[:size].decode("utf-8", "surrogatepass"),
            self.labels[label],
            self.places[place],
            self.suffixes[suffix],
            offset,
            stored,
            guessed,
            text[size:].decode("utf-8", "surrogatepass"),
        )

    @classmethod
    def concatenate(cls, tables: Sequence["SampleTable"]) -> "SampleTable":
        """The samples of all, one table after another."""
        if len(tables) == 1:
            return tables[0]
        labels: dict[str | int | None, int] = {}
        places: dict[str, int] = {}
        suffixes: dict[str, int] = {}
        parts, keys = [np.empty(0, ROW)], bytearray()
        for table in tables:
            rows = table.rows.copy()
            rows["key_start"] += len(keys)
            rows["label"] = _renumbered(rows["label"], table.labels, labels)
            rows["place"] = _renumbered(rows["place"], table.places, places)
            rows["suffix"] = _renumbered(rows["suffix"], table.suffixes, suffixes)
            parts.append(rows)
            keys += table.keys
        rows = np.concatenate(parts)
        return cls(rows, bytes(keys), tuple(labels), tuple(places), tuple(suffixes))

    def select(self, which: slice | NDArray[np.int64]) -> "SampleTable":
        """Those rows, in that order."""
        return replace(self, rows=self.rows[which])


def label_of_text(text: str) -> str | int | None:
    """A label as written: a number, or a name; None of an empty one."""
    if text.isascii() and text.isdecimal() and len(text) < 10:
        return int(text)
    return text or None


def _renumbered(
    numbers: NDArray[Any], values: Sequence[Any], known: dict[Any, int]
) -> NDArray[np.int64]:
    """What numbers of `values` are among `known`, which grows."""
    table = np.array([known.setdefault(value, len(known)) for value in values], np.int64)
    return table[numbers] if len(numbers) else np.empty(0, np.int64)
