"""Where the images of one split lie, and in what form: read off names, before any image is.

What contradicts itself is an error here: a split among class folders, two folders for one split,
validation shards in a folder of training shards. What stands beside the images is counted.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal

import bracex

from distill.data.formats.arrow import INFO, STATE, is_arrow
from distill.data.formats.folders import split_image_name, split_video_name
from distill.data.formats.skipped import (
    BESIDE_ARROW,
    BESIDE_CONTAINER,
    BESIDE_SPLITS,
    BESIDE_TARS,
    HIDDEN,
    Skipped,
)
from distill.data.formats.tables import Columns, is_manifest, splits_of_manifest
from distill.data.splits import (
    canonical,
    has_word,
    is_hidden,
    is_split_name,
    named_folder,
    split_folders,
    split_of,
)
from distill.errors import DataError
from distill.storage.locations import place_of
from distill.storage.place import Entries
from distill.storage.web import HTTP

Form = Literal["class folders", "WebDataset tars", "Hugging Face data set", "table"]
# `distill prepare` writes it first and renames it last.
UNFINISHED = "prepare-unfinished.jsonl"
# Folders that hold all images of a data set are called so, classes hardly ever.
CONTAINERS = {"images", "image", "imgs", "img", "jpegimages", "jpegs", "photos", "data"}
CONTAINERS |= {"videos", "video", "clips"}
# What lies beside them, of the same things.
COMPANIONS = {"frames", "flow", "masks", "mask", "labels", "annotations", "segmentation", "depth"}
COMPANIONS |= {"segmentations", "edges", "gt", "ground_truth", "groundtruth"}
MAX_WRAPPERS = 4
MAX_TARS = 1_000_000
FOLDERS_LOOKED_INTO = 20
PATTERN = re.compile(r"[{*?\[]")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One split. root: a folder or a file. files: tars, or the table's values of the split.

    split: as asked for; None where the data has no splits, and this is all of it. splits: all that
    are there, by the name they have there. skipped: what stands beside them.
    """

    root: str
    form: Form
    files: tuple[str, ...] = ()
    split: str | None = None
    splits: Mapping[str, str] = field(default_factory=dict)
    skipped: Skipped = field(default_factory=Skipped)


def find_layout(path: str, split: str, columns: Columns) -> Layout:
    """Recognise what `path` holds, and find one split of it; data without splits is one split.

    Raises:
        DataError: nothing is there, nothing of a known form, no such split, or names that
        contradict each other.
        DataUnavailableError: the disk or the network does not answer now.
    """
    folder, _, name = path.rpartition("/")
    if is_pattern(path):
        return _of_tars(path, folder, _expanded(path), split)
    kind = place_of(path).kind(path)
    if kind is None:
        raise DataError(f"{path}: no such file or folder; expected images for --data")
    if kind == "folder":
        return _of_folder(path, split)
    if path.lower().endswith(".tar"):
        return Layout(root=path, form="WebDataset tars", files=(path,))
    if is_manifest(path):
        return _of_table(path, split, columns)
    raise DataError(
        f"{name}: unknown file format; expected a folder, an uncompressed .tar, or a .csv or "
        ".parquet table with the columns path and wnid"
    )


def splits_there(path: str, columns: Columns) -> dict[str, str]:
    """All splits, by the name that they have there; empty where the data has none.

    Raises:
        DataError: as `find_layout`.
    """
    if is_pattern(path):
        return _tar_splits(_expanded(path))
    kind = place_of(path).kind(path)
    if kind == "folder":
        path, listing, _ = _unwrapped(path)
        return split_folders(listing.folders) or _tar_splits(_tar_names(listing))
    return _table_splits(path, columns) if kind == "file" and is_manifest(path) else {}


def is_pattern(path: str) -> bool:
    """Whether a path stands for several tars: train-{0000..0127}.tar, or *.tar."""
    return path.endswith(".tar") and bool(PATTERN.search(path.rpartition("/")[2]))


# -- folders ---------------------------------------------------------------------------------------


def _of_folder(path: str, split: str) -> Layout:
    path, listing, beside = _unwrapped(path)
    folders = split_folders(listing.folders)
    if split in listing.folders:
        folders.setdefault(split, split)
    inside = named_folder(folders, split, path)
    hidden = [name for name in (*listing.folders, *listing.files) if is_hidden(name)]
    skipped = Skipped()
    skipped.add(BESIDE_CONTAINER, *beside)
    if inside:
        others = [name for name in _visible(listing) if name not in folders]
        root, inner = _inner(path, inside, folders[inside])
        _require_no_class(path, inside, inner, others)
        skipped.add(BESIDE_SPLITS, *others, *_readable(listing.files))
        skipped.add(HIDDEN, *hidden)
        _require_no_splits(root, inner)
        return _whole(root, inner, skipped, split, folders)
    tars = _tar_names(listing)
    if folders and not tars:
        raise DataError(
            f"{path}: no split {split} found, only {listed_splits(folders)}; expected a folder of "
            "that name: make one, or pass one of these folders"
        )
    if tars and not is_arrow(listing.files):
        _count_beside_tars(listing, skipped)
        return _of_tars(path, path, tars, split, skipped)
    return _whole(path, listing, skipped, None, {})


def _whole(
    root: str, listing: Entries, skipped: Skipped, split: str | None, splits: Mapping[str, str]
) -> Layout:
    """All that lies in a folder."""
    tars: tuple[str, ...] = ()
    form: Form = "class folders"
    if is_arrow(listing.files):
        form = "Hugging Face data set"
        others = (n for n in listing.files if n not in (STATE, INFO) and not n.endswith(".arrow"))
        skipped.add(BESIDE_ARROW, *_visible(listing), *(n for n in others if not is_hidden(n)))
    elif names := _tar_names(listing):
        form, tars = "WebDataset tars", tuple(f"{root}/{name}" for name in names)
        _count_beside_tars(listing, skipped)
        wrong = [n for n in names if split and split_of(n) not in (None, canonical(split))]
        if split and wrong:
            raise DataError(
                f"{root}: {wrong[0]} found among the tars of the split {split}, expected tars of "
                "that split alone; move it"
            )
    if form == "class folders":
        _require_no_splits_below(root, listing)
    return Layout(
        root=root,
        form=form,
        files=tars,
        split=split,
        splits=splits,
        skipped=skipped,
    )


def _unwrapped(path: str) -> tuple[str, Entries, list[str]]:
    """The folder that splits, tars or classes lie in, where folders are around all.

    And its entries, and the folders beside one of images that was stepped into.
    """
    first = listing = place_of(path).entries(path)
    _require_finished(path, listing)
    inside, beside = path, list[str]()
    for _ in range(MAX_WRAPPERS):
        folders = _visible(listing)
        if inside != path and (split_folders(folders) or _tar_names(listing)):
            return inside, listing, beside
        if _readable(listing.files) or is_arrow(listing.files) or split_folders(folders):
            break
        container = next((name for name in folders if name.casefold() in CONTAINERS), None)
        wrapper = folders[0] if len(folders) == 1 else container
        others = [name for name in folders if name != wrapper]
        if not wrapper or _hold_classes(inside, others):
            break
        beside += others
        inside = f"{inside}/{wrapper}"
        listing = place_of(inside).entries(inside)
        holds_classes = container and _visible(listing) and not split_folders(listing.folders)
        if is_arrow(listing.files) or holds_classes:
            inside, listing, more = _unwrapped(inside)
            return inside, listing, beside + more
    return path, first, []


def _hold_classes(path: str, folders: Sequence[str]) -> bool:
    """Whether those folders hold images or clips of their own: then one beside is a class too."""
    place = place_of(path)
    for name in folders[:FOLDERS_LOOKED_INTO]:
        if name.casefold() in COMPANIONS:
            continue
        here = place.entries(f"{path}/{name}")
        below = (place.entries(f"{path}/{name}/{each}").files for each in _visible(here)[:3])
        if any(_shown(files) for files in (here.files, *below)):
            return True
    return False


def _inner(path: str, name: str, split: str) -> tuple[str, Entries]:
    """The folder of a split; an archive that was unpacked into its own name is stepped into."""
    root = f"{path}/{name}"
    for _ in range(MAX_WRAPPERS):
        listing = place_of(root).entries(root)
        folders = _visible(listing)
        alone = len(folders) == 1 and not _readable(listing.files)
        again = alone and (folders[0] == name or is_split_name(folders[0]))
        if not (again and split_of(folders[0]) == split):
            return root, listing
        root = f"{root}/{folders[0]}"
    return root, place_of(root).entries(root)


def _require_no_class(path: str, inside: str, inner: Entries, others: Sequence[str]) -> None:
    """A class may be called train: then its images lie beside those of other classes."""
    if not _images(inner.files) or _visible(inner):
        return
    place = place_of(path)
    if any(_images(place.entries(f"{path}/{other}").files) for other in others[:3]):
        raise DataError(
            f"{path}: {inside} looks like a split, but lies beside {', '.join(others[:3])} and "
            "holds images like a class; expected split folders alone, or class folders alone: put "
            "the classes into a folder of their split, as train/"
        )


def _require_no_splits(root: str, listing: Entries) -> None:
    folders = _visible(listing)
    strange = [name for name in folders if is_split_name(name)]
    if strange:
        raise DataError(
            f"{root}: {', '.join(strange[:3])} look like splits, but lie where class folders are "
            "expected; move or rename them, or name the images and their classes in a table"
        )


def _require_no_splits_below(root: str, listing: Entries) -> None:
    """Splits below class folders would be mixed; a few folders tell, spread over all."""
    folders = _visible(listing)
    for each in folders[:: max(1, len(folders) // FOLDERS_LOOKED_INTO)]:
        inside = split_folders(place_of(root).entries(f"{root}/{each}").folders)
        if any(is_split_name(name) for name in inside):
            raise DataError(
                f"{root}: {', '.join(inside)} found below {each}, expected splits above the class "
                f"folders, as {next(iter(inside))}/{each}; move them, or pass a table"
            )


def _count_beside_tars(listing: Entries, skipped: Skipped) -> None:
    skipped.add(BESIDE_TARS, *_visible(listing))
    skipped.add(BESIDE_TARS, *(n for n in listing.files if not (_is_tar(n) or is_hidden(n))))


def _require_finished(path: str, listing: Entries) -> None:
    parent = "://" not in path and place_of(path).kind(f"{path}/../{UNFINISHED}")
    if UNFINISHED in listing.files or parent:
        raise DataError(
            f"{path}: `distill prepare` has not finished here, expected a complete data set; run "
            "the same `distill prepare` again"
        )


def _visible(listing: Entries) -> list[str]:
    return [name for name in listing.folders if not is_hidden(name)]


def _images(files: Sequence[str]) -> list[str]:
    return [name for name in files if split_image_name(name)]


def _shown(files: Sequence[str]) -> bool:
    return any(split_image_name(name) or split_video_name(name) for name in files)


def _readable(files: Sequence[str]) -> list[str]:
    return [name for name in files if split_image_name(name) or _is_tar(name)]


# -- tars ------------------------------------------------------------------------------------------


def _of_tars(
    where: str, folder: str, names: Sequence[str], split: str, skipped: Skipped | None = None
) -> Layout:
    """Tars of one folder: of those named after splits, the ones of this; or all."""
    skipped = skipped or Skipped()
    splits = _tar_splits(names)
    chosen = [name for name in names if _is_of(name, split)]
    if splits and not chosen:
        found = ", ".join(sorted({*splits.values()}))
        raise DataError(
            f"{where}: no tars of split {split} found, only of {found}; expected names such as "
            f"{split}-000000.tar: pass --split, or the tars themselves"
        )
    if splits:
        skipped.add(BESIDE_SPLITS, *(name for name in names if name not in splits))
    return Layout(
        root=where,
        form="WebDataset tars",
        files=tuple(f"{folder}/{name}" if folder else name for name in chosen or names),
        split=split if splits else None,
        splits={each: each for each in splits.values()},
        skipped=skipped,
    )


def _is_of(tar: str, split: str) -> bool:
    stem = tar[: -len(".tar")]
    return split_of(stem) == canonical(split) or has_word(stem, split)


def _tar_splits(names: Sequence[str]) -> dict[str, str]:
    found = ((name, split_of(name[: -len(".tar")])) for name in names)
    return {name: split for name, split in found if split}


def _is_tar(name: str) -> bool:
    return name.lower().endswith(".tar") and not is_hidden(name)


def _tar_names(listing: Entries) -> list[str]:
    return [name for name in listing.files if _is_tar(name)]


def _expanded(pattern: str) -> list[str]:
    """The names that a pattern in the last part of a path stands for, in its order.

    Raises:
        DataError: one that braces name is not there, or a wildcard matches none.
    """
    folder, _, last = pattern.rpartition("/")
    where = folder or "."
    if where.startswith(HTTP):
        return _named_one_by_one(pattern, folder, last)
    if place_of(where).kind(where) != "folder":
        raise DataError(f"{where}: no such folder; expected tars for --data {pattern}")
    there = _tar_names(place_of(where).entries(where))
    try:
        wanted = bracex.expand(last, limit=MAX_TARS)
    except bracex.ExpansionLimitException as error:
        raise DataError(f"{pattern}: stands for more than {MAX_TARS} tars") from error
    found, missing = list[str](), []
    known = {*there}
    for name in wanted:
        matches = [each for each in there if fnmatchcase(each, name)]
        matches = [name] if name in known else matches
        found += matches
        missing += [] if matches else [name]
    if missing:
        raise DataError(
            f"{pattern}: {len(missing)} of {len(wanted)} tars are not there (first: {missing[0]}), "
            f"expected all; {where} has {len(there)} tars: fetch them, or correct the pattern"
        )
    return list(dict.fromkeys(found))


def _named_one_by_one(pattern: str, folder: str, last: str) -> list[str]:
    """Where nothing can be listed, braces alone say what is there."""
    if any(sign in last for sign in "*?["):
        raise DataError(
            f"{pattern}: a wildcard found where nothing can be listed, expected braces such as "
            "train-{0000..0127}.tar"
        )
    wanted = list(dict.fromkeys(bracex.expand(last, limit=MAX_TARS)))
    for name in (wanted[0], wanted[-1]):
        if place_of(folder).kind(f"{folder}/{name}") is None:
            raise DataError(f"{pattern}: {name} is not there; correct the pattern")
    return wanted


# -- tables ----------------------------------------------------------------------------------------


def _of_table(path: str, split: str, columns: Columns) -> Layout:
    splits = _table_splits(path, columns)
    wanted = canonical(split.casefold())
    chosen = tuple(name for name, each in splits.items() if each == wanted)
    if splits and not chosen:
        raise DataError(
            f"{path}: no split {split} found, only {listed_splits(splits)}; expected rows with "
            "that in column split"
        )
    return Layout(
        root=path, form="table", files=chosen, split=split if splits else None, splits=splits
    )


def _table_splits(path: str, columns: Columns) -> dict[str, str]:
    return {
        name: (split_of(name) if is_split_name(name) else None) or name.casefold()
        for name in sorted(splits_of_manifest(path, columns))
    }


def listed_splits(splits: Mapping[str, str]) -> str:
    """Splits by the names they have there, and what each means: Testing (test), val."""
    return ", ".join(name if name == each else f"{name} ({each})" for name, each in splits.items())
