"""Labelled images or clips behind one `ImageSource`, whatever form they lie in.

`distill.data.layout` recognises form and split, `distill.data.formats` lists each form; here labels
become class indices. Every form becomes the same table of keys, labels and places of bytes,
so views, resume and every command work on all of them. A sample's key is its name without split,
shard or extension, so moving data does not change it.
"""

import re
from collections.abc import Sequence, Sized
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from distill.data.clips import is_video, require_decoder
from distill.data.formats.arrow import list_arrow
from distill.data.formats.folders import list_folders
from distill.data.formats.samples import IMAGE_SUFFIXES, VIDEO_SUFFIXES, SampleTable
from distill.data.formats.tables import USUAL, Columns, columns_of_manifest, list_manifest
from distill.data.formats.tars import WNID_IN_NAME, list_tars
from distill.data.layout import (
    COMPANIONS,
    CONTAINERS,
    Layout,
    find_layout,
    listed_splits,
    splits_there,
)
from distill.data.sample_ids import SampleIds, ascending, sample_ids
from distill.data.splits import canonical
from distill.data.view_policy import ViewPolicy
from distill.errors import DataError, StoreMismatchError, printable
from distill.hierarchy.semantic import SemanticHierarchy

SPLITS = ("train", "val", "test")
OUTSIDE = -2  # a label that is not of the label set
WNID = re.compile(r"n\d{8}(?=_|$)")
WNID_IN_KEYS = re.compile(rb"n\d{8}_")  # as WNID_IN_NAME, anywhere in many keys
SHOWN = 3  # names of each list
UNLABELLED = ("unlabelled", "unlabeled", "unsup", "unsupervised")


@dataclass(frozen=True, eq=False)
class ImageSource:
    """The samples of one split, in ascending order of sample id.

    layout: where they lie, and what beside. notes: what else a user should know of them. frames: of
    each clip that a view shows; 0 of images.
    """

    location: str
    samples: SampleTable
    ids: SampleIds  # [n, 2], ascending
    layout: Layout
    notes: tuple[str, ...] = ()
    frames: int = 0

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def things(self) -> str:
        """What they are called."""
        return "clips" if self.frames else "images"

    def require_frames(self, frames: int) -> None:
        """That views of so many frames can be drawn of it, 0 for those of images.

        Raises:
            StoreMismatchError: they cannot.
        """
        if frames != self.frames:
            raise StoreMismatchError(
                f"{self.location}: {_shown(self.frames)} found, expected {_shown(frames)}, which "
                f"the views are of; {f'pass --frames {frames}' if frames else 'leave out --frames'}"
            )

    def limited(self, limit: int | None) -> "ImageSource":
        """The `limit` smallest ids: a fair and repeatable choice from the whole."""
        if limit is None or limit >= len(self):
            return self
        return replace(self, samples=self.samples[:limit], ids=self.ids[:limit])

    def select(self, rows: NDArray[np.int64]) -> "ImageSource":
        """Those rows, which must be ascending."""
        return replace(self, samples=self.samples.select(rows), ids=self.ids[rows])

    def describe(self) -> list[str]:
        """What the data was taken for, in a few lines."""
        known, things = self.layout, self.things
        labels = [str(label) for label in self.samples.labels if label is not None]
        without = np.array([label is None for label in self.samples.labels], np.bool_)
        unlabelled = int(without[self.samples.rows["label"]].sum())
        more = ", …" if len(labels) > SHOWN else ""
        classes = f"{_count(labels, 'label')} ({', '.join(labels[:SHOWN])}{more})"
        form = known.form if labels or known.form != "class folders" else "files"
        lines = [
            f"{known.split or 'no splits, all taken'}: {_count(self, things[:-1])}, "
            f"{classes if labels else 'no labels'}; {form} in {known.root}"
        ]
        if labels and unlabelled:
            lines.append(f"without a label: {unlabelled} {things}")
        mine = canonical(known.split or "")
        if others := {name: of for name, of in known.splits.items() if of != mine}:
            lines.append(f"other splits there: {listed_splits(others)}")
        if known.skipped.total:
            lines.append(f"skipped: {known.skipped}")
        if self.frames:
            lines.append(f"each view is of {self.frames} frames, from equal parts of its clip")
        return [printable(line) for line in (*lines, *self.notes)]


def open_source(
    location: str | Path,
    split: str = "train",
    *,
    indexes: Path | None = None,
    columns: Columns = USUAL,
    frames: int = 0,
) -> ImageSource:
    """Recognise what `location` holds, a path or s3://…, and list one split of it.

    A tar, or a pattern of them (train-{0000..0127}.tar); a CSV or Parquet table of paths; a folder
    of tars, of which those named after the split where any is; a Hugging Face data set; a folder of
    one folder per class, or of images without labels; or a folder that holds such a folder named
    after the split. Data without splits is one split, whichever is asked for.

    indexes: folder to keep the indexes of tars in, so that each is listed once. frames: take clips
    instead of images, and show so many frames of each: videos, or folders of images below those of
    the classes; in folders or tables.

    Raises:
        ConfigError: what decodes videos is not installed, or frames are too many.
        DataError: nothing is there, nothing of a known form, no such split, names that contradict
        each other, or a key that appears twice.
        DataUnavailableError: the disk or the network does not answer now.
    """
    frames = ViewPolicy(frames=frames).frames
    path = _path_of(location)
    layout = find_layout(path, split, columns)
    if frames and layout.form not in ("class folders", "table"):
        raise DataError(
            f"{layout.root}: {layout.form} found with --frames, expected clips: class folders of "
            "videos or of folders of frames, or a table of paths"
        )
    listed = _listed(layout, indexes, columns, clips=frames > 0)
    if frames:
        require_decoder(listed)
    elif layout.form == "table" and len(listed) and is_video(listed[0]):
        raise DataError(
            f"{layout.root}: {listed[0].path} found, a video, expected images; --frames takes clips"
        )
    if layout.form == "class folders":
        _require_classes(listed.labels, layout.root)
    samples, notes = _without_labels(listed, layout.root)
    if not len(samples):
        raise DataError(_nothing_in(layout, clips=frames > 0))
    if layout.form in ("table", "Hugging Face data set") and {*samples.labels} == {None}:
        there = columns_of_manifest(path)[:12] if layout.form == "table" else []
        among = f" among {', '.join(there)}" if there else ""
        notes += (f"no label found in wnid, label or labels{among}; --label-column names another",)
    ids = sample_ids(s.key for s in samples)
    order = ascending(ids)
    ids = ids[order]
    twice = np.flatnonzero((ids[1:] == ids[:-1]).all(axis=1))
    if len(twice):
        one, other = (samples[int(order[twice[0] + i])] for i in (0, 1))
        raise DataError(
            f"{layout.root}: the key {one.key!r} appears twice, in {one.path} and {other.path}; "
            "expected every sample's key once"
        )
    return ImageSource(path, samples.select(order), ids, layout, notes, frames)


def has_split(location: str | Path, split: str, columns: Columns = USUAL) -> bool:
    """Whether there is a split of that name, apart from the others."""
    return canonical(split) in splits_there(_path_of(location), columns).values()


def split_names(location: str | Path, columns: Columns = USUAL) -> list[str]:
    """The splits that are there apart from each other; "train" where all is one."""
    there = {*splits_there(_path_of(location), columns).values()}
    return [name for name in SPLITS if name in there] + sorted(there - {*SPLITS}) or ["train"]


def label_indices(source: ImageSource, hierarchy: SemanticHierarchy) -> NDArray[np.int64]:
    """[n]: each sample's class index, -1 where it has none.

    A label is a synset, a class index, WordNet's name of a synset (swan.n.01), or names of just one
    class ("goldfish, Carassius auratus"). A number is the class of that name where the label set
    has classes that are numbers. A label that was only guessed from a file name and lies outside
    the label set counts as none.

    Raises:
        DataError: a label lies outside the label set, or the name of a file says another class than
        the index beside it.
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
    _require_same_indices(source, hierarchy, labels)
    return labels


def labels_or_outside(source: ImageSource, hierarchy: SemanticHierarchy) -> NDArray[np.int64]:
    """`label_indices`, but -2 where a label lies outside the label set, and no word of indices."""
    samples = source.samples
    known = np.array([_class_of(label, hierarchy) for label in samples.labels], np.int64)
    labels: NDArray[np.int64] = known[samples.rows["label"]]
    return np.where((labels == OUTSIDE) & samples.rows["guessed"], -1, labels)


def _class_of(label: str | int | None, hierarchy: SemanticHierarchy) -> int:
    if label is None:
        return -1
    if isinstance(label, int) or (label not in hierarchy and label.isdecimal()):
        numbered = hierarchy.numbered
        if numbered:
            return numbered.get(int(label), OUTSIDE)
        return int(label) if 0 <= int(label) < hierarchy.num_classes else OUTSIDE
    synsets: tuple[str, ...] = (label,)
    if label not in hierarchy and ".n." in label:
        from distill.hierarchy.wordnet import wnid_of

        synsets = (wnid_of(label),)
    elif label not in hierarchy:
        synsets = hierarchy.named(label)
    return hierarchy.index(*synsets) if len(synsets) == 1 and synsets[0] in hierarchy else OUTSIDE


def _require_same_indices(
    source: ImageSource, hierarchy: SemanticHierarchy, labels: NDArray[np.int64]
) -> None:
    """ImageNet's files are called after their class, and indices count in some label set."""
    samples = source.samples
    if not WNID_IN_KEYS.search(samples.keys):
        return  # as of most data: millions of keys need not be read one by one
    indexed = np.array([isinstance(label, int) for label in samples.labels], np.bool_)
    agree: set[tuple[int, str]] = set()
    for row in np.flatnonzero(indexed[samples.rows["label"]] & (labels >= 0)):
        sample, synset = samples[int(row)], hierarchy.synsets[labels[row]]
        wnid = WNID_IN_NAME.match(PurePosixPath(sample.key).name)
        if not wnid or (int(labels[row]), wnid[1]) in agree:
            continue
        if wnid[1] not in (synset, *hierarchy.ancestors(synset)) and WNID.match(synset):
            raise DataError(
                f"{source.location}: sample {sample.key!r} is {wnid[1]} by its name, but its class "
                f"index {sample.label} is {synset} ({hierarchy.display_name(synset)}) in "
                f"{hierarchy.name}, expected one class: indices count in one label set, and those "
                "of ImageNet-1K, fall11 and winter21 differ; pass the --label-set that they count "
                "in, or leave out the indices"
            )
        agree.add((int(labels[row]), wnid[1]))


def _count(things: Sized, name: str) -> str:
    return f"{len(things)} {name}{'' if len(things) == 1 else 's'}"


def _shown(frames: int) -> str:
    return f"clips of {frames} frames" if frames else "images"


def _path_of(location: str | Path) -> str:
    text = str(location)
    return text if text.endswith("://") else text.rstrip("/") or "/"


def _listed(layout: Layout, indexes: Path | None, columns: Columns, *, clips: bool) -> SampleTable:
    skipped = layout.skipped
    if layout.form == "table":
        return SampleTable.of(list_manifest(layout.root, layout.files, columns, skipped))
    if layout.form == "WebDataset tars":
        return list_tars(layout.files, indexes, skipped)
    if layout.form == "Hugging Face data set":
        return list_arrow(layout.root, columns, layout.split)
    return SampleTable.of(list_folders(layout.root, skipped, clips=clips))


def _require_classes(folders: Sequence[object], root: str) -> None:
    """Folders called images and masks are parts of a data set, and no classes."""
    names = [str(folder) for folder in folders]
    whole = [name for name in names if name.casefold() in CONTAINERS]
    parts = [name for name in names if name.casefold() in COMPANIONS]
    if parts and len(whole) + len(parts) > 1:
        found = [*whole, *parts]
        shown = " and ".join(f"{name}/" for name in found)
        raise DataError(
            f"{root}: {shown} found, expected class folders; pass the one to be read, such as "
            f"{root}/{found[0]}; if they are classes, rename them"
        )


def _without_labels(samples: SampleTable, root: str) -> tuple[SampleTable, tuple[str, ...]]:
    """Folders that are no class: one called images that holds all, and those called unlabelled."""
    notes = []
    labels = list(samples.labels)
    only = labels[0] if len(labels) == 1 else None
    if isinstance(only, str) and only.casefold() in CONTAINERS:
        labels = [None]
        notes.append(f"{root}/{only} holds all images, so it was taken for no class")
    for i, label in enumerate(labels):
        if isinstance(label, str) and label.casefold() in UNLABELLED:
            labels[i] = None
            notes.append(f"{label} was taken for images without a label")
    return replace(samples, labels=tuple(labels)), tuple(notes)


def _nothing_in(layout: Layout, *, clips: bool) -> str:
    instead = f", only {layout.skipped}" if layout.skipped.total else ""
    if clips:
        return (
            f"{layout.root}: no clips found{instead}; expected class folders with "
            f"{' '.join(VIDEO_SUFFIXES)} files, or with a folder of frames for each clip"
        )
    return (
        f"{layout.root}: no images found{instead}; expected class folders with "
        f"{' '.join(IMAGE_SUFFIXES)} files, or WebDataset tars of key.jpg with key.wnid or "
        "key.cls"
    )
