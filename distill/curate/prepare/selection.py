"""Which images of a release are taken, and which of them are for validation.

Section 2.1 of "ImageNet-21K Pretraining for the Masses" (Ridnik et al. 2021, arXiv 2104.10972):
classes with fewer than 500 images are dropped, and 50 images of each other class are set apart.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distill.data.formats.samples import SampleTable
from distill.errors import DataError


@dataclass(frozen=True, kw_only=True)
class SelectionRules:
    """label_set: synsets to keep alone; None for all. seed: None takes the first by name."""

    min_images: int = 500
    val_images: int = 50
    seed: int | None = None
    label_set: frozenset[str] | None = None


@dataclass(frozen=True, eq=False)
class Selection:
    """images: of each class found. train, val: rows by class, and by name within it.

    twice: rows whose name another row has in its class; they are left out.
    """

    images: dict[str, int]
    kept: tuple[str, ...]
    train: NDArray[np.int64]
    val: NDArray[np.int64]
    twice: NDArray[np.int64]

    def rows(self, split: str) -> NDArray[np.int64]:
        """Return the rows of split train or val."""
        return self.train if split == "train" else self.val


def select(samples: SampleTable, rules: SelectionRules) -> Selection:
    """Apply the rules; which images are chosen depends on their names alone.

    Images of a class are sorted by file name, by bytes as `LC_ALL=C ls` does, and the first
    `val_images` are for validation; with a seed, those whose names hash lowest.

    Raises:
        DataError: no class is left.
    """
    order = np.argsort(samples.rows["label"], kind="stable")
    starts = np.flatnonzero(np.diff(samples.rows["label"][order], prepend=-1))
    classes = {
        str(samples.labels[samples.rows["label"][rows[0]]]): rows
        for rows in np.split(order, starts[1:])
    }
    images: dict[str, int] = {}
    parts: dict[str, list[NDArray[np.int64]]] = {"train": [], "val": []}
    kept, twice = [], []
    for name in sorted(classes):
        rows, repeated = _by_name(samples, classes[name])
        twice.append(repeated)
        images[name] = len(rows)
        wanted = rules.label_set is None or name in rules.label_set
        if not wanted or len(rows) < rules.min_images:
            continue
        kept.append(name)
        chosen = np.zeros(len(rows), np.bool_)
        chosen[_first(samples, rows, rules)] = True
        parts["val"].append(rows[chosen])
        parts["train"].append(rows[~chosen])
    if not kept:
        of_set = {n: c for n, c in images.items() if n in (rules.label_set or images)}
        if not of_set:
            raise DataError(
                f"none of {len(images)} classes (first: {min(images)!r}) is in the label set, "
                "expected some; pass another --label-set"
            )
        most = max(of_set, key=lambda name: of_set[name])
        raise DataError(
            f"no class is kept of {len(of_set)}: the largest, {most}, has {of_set[most]} images, "
            f"expected {rules.min_images} or more; lower --min-images"
        )
    train, val = (np.concatenate(parts[split]) for split in ("train", "val"))
    return Selection(images, tuple(kept), train, val, np.concatenate(twice))


def _by_name(
    samples: SampleTable, rows: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows sorted by file name, and those whose key was there already."""
    keys = [_file_name(samples, row) for row in rows]
    order = sorted(range(len(rows)), key=keys.__getitem__)
    seen: set[bytes] = set()
    first: list[np.int64] = []
    again: list[np.int64] = []
    for i in order:
        stem = keys[i].rpartition(b".")[0]
        (again if stem in seen else first).append(rows[i])
        seen.add(stem)
    return np.array(first, np.int64), np.array(again, np.int64)


def _first(samples: SampleTable, rows: NDArray[np.int64], rules: SelectionRules) -> Sequence[int]:
    if rules.seed is None:
        return range(min(rules.val_images, len(rows)))
    salt = hashlib.sha256(str(rules.seed).encode()).digest()
    hashes = [
        hashlib.blake2b(_file_name(samples, row), key=salt, digest_size=16).digest() for row in rows
    ]
    return sorted(range(len(rows)), key=hashes.__getitem__)[: rules.val_images]


def _file_name(samples: SampleTable, row: np.int64) -> bytes:
    sample = samples[int(row)]
    return f"{sample.key}{sample.suffix}".encode("utf-8", "surrogatepass")
