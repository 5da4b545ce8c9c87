"""Labelled images behind one `ImageSource`, whatever form they lie in.

Recognises the form (`distill.data.formats` lists each), and turns labels into class indices. Every
form becomes the same table of keys, labels and places of bytes, so views, resume and every command
work on all of them. A sample's key is its name without split, shard or extension, so moving data
does not change it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distill.data.formats.arrow import is_arrow, list_arrow
from distill.data.formats.folders import list_folders, list_loose
from distill.data.formats.samples import IMAGE_SUFFIXES, SampleTable
from distill.data.formats.tables import is_manifest, list_manifest, splits_of_manifest
from distill.data.formats.tars import list_tars
from distill.data.sample_ids import SampleIds, ascending, sample_ids
from distill.errors import DataError
from distill.hierarchy.semantic import SemanticHierarchy
from distill.storage import Entries, place_of

SPLITS = {"train": ("train",), "val": ("val", "validation"), "test": ("test",)}
# `distill prepare` writes it first and renames it last.
UNFINISHED = "prepare-unfinished.jsonl"
OUTSIDE = -2  # a label that is not of the label set


@dataclass(frozen=True, eq=False)
class ImageSource:
    """The samples of one split, in ascending order of sample id."""

    location: str
    samples: SampleTable
    ids: SampleIds  # [n, 2], ascending

    def __len__(self) -> int:
        return len(self.samples)

    def limited(self, limit: int | None) -> "ImageSource":
        """The `limit` smallest ids: a fair and repeatable choice from the whole."""
        if limit is None or limit >= len(self):
            return self
        return ImageSource(self.location, self.samples[:limit], self.ids[:limit])

    def select(self, rows: NDArray[np.int64]) -> "ImageSource":
        """Those rows, which must be ascending."""
        return ImageSource(self.location, self.samples.select(rows), self.ids[rows])


def open_source(
    location: str | Path, split: str = "train", *, indexes: Path | None = None
) -> ImageSource:
    """Recognise what `location` holds, a path or s3://…, and list one split of it.

    A tar; a CSV or Parquet table of paths; a folder of tars, of which those named after the split
    where any is; a Hugging Face data set; a folder of one folder per class, or of images without
    labels; or a folder that holds such a folder named after the split.

    indexes: folder to keep the indexes of tars in, so that each is listed once.

    Raises:
        DataError: nothing is there, nothing of a known form, or a key appears twice.
        DataUnavailableError: the disk or the network does not answer now.
    """
    path = _path_of(location)
    kind = place_of(path).kind(path)
    if kind is None:
        raise DataError(f"{path}: no such file or folder; expected images for --data")
    root, list_samples = (_of_file if kind == "file" else _of_folder)(path, split, indexes)
    samples = list_samples()
    if not len(samples):
        raise DataError(
            f"{root}: no images found; expected class folders with {' '.join(IMAGE_SUFFIXES)} "
            "files, or WebDataset tars of key.jpg with key.wnid or key.cls"
        )
    ids = sample_ids(s.key for s in samples)
    order = ascending(ids)
    ids = ids[order]
    twice = np.flatnonzero((ids[1:] == ids[:-1]).all(axis=1))
    if len(twice):
        key = samples[int(order[twice[0]])].key
        raise DataError(f"{root}: the key {key!r} appears twice; expected every sample's key once")
    return ImageSource(path, samples.select(order), ids)


def has_split(location: str | Path, split: str) -> bool:
    """Whether there is a split of that name, apart from the others."""
    path = _path_of(location)
    place = place_of(path)
    if place.kind(path) != "folder":
        return is_manifest(path) and bool(splits_of_manifest(path) & {*_names_of(split)})
    listing = place.entries(path)
    return bool({*_names_of(split)} & {*listing.folders} or _tars_of(listing, split))


def split_names(location: str | Path) -> list[str]:
    """The splits that are there apart from each other; "train" where all is one."""
    path = _path_of(location)
    if is_manifest(path) and place_of(path).kind(path) == "file":
        return sorted(splits_of_manifest(path)) or ["train"]
    return [name for name in SPLITS if has_split(path, name)] or ["train"]


def label_indices(source: ImageSource, hierarchy: SemanticHierarchy) -> NDArray[np.int64]:
    """[n]: each sample's class index, -1 where it has none.

    A label is a synset, a class index, WordNet's name of a synset (swan.n.01), or the name of just
    one class. One that was only guessed from a file name and lies outside the label set counts as
    none.

    Raises:
        DataError: a label lies outside the label set.
    """
    labels = labels_or_outside(source, hierarchy)
    outside = np.flatnonzero(labels == OUTSIDE)
    if len(outside):
        sample = source.samples[int(outside[0])]
        raise DataError(
            f"{source.location}: sample {sample.key!r} has label {sample.label!r}, expected a "
            f"synset or an index of label set {hierarchy.name} ({hierarchy.num_classes} classes), "
            "or a name that only one class has; pass the --label-set that the data was tagged "
            "with; `distill data check` lists all such labels"
        )
    return labels


def labels_or_outside(source: ImageSource, hierarchy: SemanticHierarchy) -> NDArray[np.int64]:
    """`label_indices`, but -2 where a label lies outside the label set."""
    samples = source.samples
    known = np.array([_class_of(label, hierarchy) for label in samples.labels], np.int64)
    labels: NDArray[np.int64] = known[samples.rows["label"]]
    return np.where((labels == OUTSIDE) & samples.rows["guessed"], -1, labels)


def _class_of(label: str | int | None, hierarchy: SemanticHierarchy) -> int:
    if label is None:
        return -1
    if isinstance(label, int) or (label not in hierarchy and label.isdecimal()):
        return int(label) if 0 <= int(label) < hierarchy.num_classes else OUTSIDE
    synsets: tuple[str, ...] = (label,)
    if label not in hierarchy and ".n." in label:
        from distill.hierarchy.wordnet import wnid_of

        synsets = (wnid_of(label),)
    elif label not in hierarchy:
        synsets = hierarchy.named(label)
    return hierarchy.index(*synsets) if len(synsets) == 1 and synsets[0] in hierarchy else OUTSIDE


def _path_of(location: str | Path) -> str:
    text = str(location)
    return text if text.endswith("://") else text.rstrip("/") or "/"


# -- recognising -----------------------------------------------------------------------------------

# The place that errors name, and what lists the samples there.
_Found = tuple[str, Callable[[], SampleTable]]


def _of_file(path: str, split: str, indexes: Path | None) -> _Found:
    if path.endswith(".tar"):
        return path, lambda: list_tars([path], indexes)
    if is_manifest(path):
        return path, lambda: SampleTable.of(list_manifest(path, _names_of(split)))
    raise DataError(
        f"{path}: unknown file format; expected a folder, a .tar, or a .csv or .parquet table "
        "with the columns path and wnid"
    )


def _of_folder(path: str, split: str, indexes: Path | None) -> _Found:
    place = place_of(path)
    listing = place.entries(path)
    parent = place.kind(f"{path}/../{UNFINISHED}") if "://" not in path else None
    if UNFINISHED in listing.files or parent:
        raise DataError(
            f"{path}: `distill prepare` has not finished here, expected a complete data set; run "
            "the same `distill prepare` again"
        )
    inside = next((name for name in _names_of(split) if name in listing.folders), None)
    root = f"{path}/{inside}" if inside else path
    if inside:
        listing = place.entries(root)
    elif not _tar_names(listing):
        others = [name for names in SPLITS.values() for name in names if name in listing.folders]
        if others:
            raise DataError(
                f"{path}: no split {split} found, only {', '.join(others)}; expected a folder of "
                "that name: make one, or pass one of these folders"
            )
    if is_arrow(listing.files):
        return root, lambda: list_arrow(root)
    if _tar_names(listing):
        return root, lambda: list_tars(
            [f"{root}/{name}" for name in _tars_of(listing, split, all_of_one=bool(inside))],
            indexes,
        )

    def list_images() -> SampleTable:
        of_classes = SampleTable.of(list_folders(root))
        return of_classes if len(of_classes) else SampleTable.of(list_loose(root, listing))

    return root, list_images


def _names_of(split: str) -> tuple[str, ...]:
    return SPLITS.get(split, (split,))


def _tar_names(listing: Entries) -> list[str]:
    return [name for name in listing.files if name.endswith(".tar") and not name.startswith(".")]


def _tars_of(listing: Entries, split: str, *, all_of_one: bool | None = None) -> list[str]:
    """The tars of a split. all_of_one: whether those without a split's name count; None: never."""
    tars = _tar_names(listing)
    named = [t for t in tars if any(t.startswith(f"{name}-") for name in _names_of(split))]
    if all_of_one is None:
        return named
    every = [name for names in SPLITS.values() for name in names]
    by_split = any(tar.startswith(f"{name}-") for tar in tars for name in every)
    return tars if all_of_one or not by_split else named
