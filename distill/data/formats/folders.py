"""ImageFolder: one folder per class, with images in it or further below; or loose images.

Of clips the same: videos, or folders of frames below those of the classes.
"""

from collections.abc import Iterator

from distill.data.formats.samples import FOLDER, IMAGE_SUFFIXES, VIDEO_SUFFIXES, Sample
from distill.data.formats.skipped import (
    BESIDE_CLIPS,
    EMPTY_CLASS,
    HIDDEN,
    LINK,
    LOOSE,
    SUFFIX,
    TABLE,
    VIDEO,
    Skipped,
)
from distill.data.formats.tables import is_manifest
from distill.data.splits import is_hidden
from distill.storage.locations import walk


def list_folders(
    root: str, skipped: Skipped | None = None, *, clips: bool = False
) -> Iterator[Sample]:
    """The images below `root`; the first folder on the way to each is its label.

    Where no class folder holds any, those directly in `root`, without labels. Hidden folders and
    those of the system are not entered. skipped: counts what is no image of a class. clips: list
    clips instead of images.
    """
    skipped = Skipped() if skipped is None else skipped
    loose: list[Sample] = []
    classes: dict[str, bool] = {}  # whether a class folder holds an image
    listed = _clips if clips else _images
    for inside, entries in walk(root, enters=lambda name: _enters(name, skipped)):
        of_class = inside.partition("/")[0]
        skipped.add(LINK, *(f"{inside}/{name}" for name in entries.links))
        if inside:
            classes.setdefault(of_class, False)
        for sample in listed(root, inside, entries.files, skipped):
            if inside:
                classes[of_class] = True
                yield sample
            else:
                loose.append(sample)
    if any(classes.values()):
        skipped.add(EMPTY_CLASS, *(name for name, holds in classes.items() if not holds))
        skipped.add(LOOSE, *(f"{sample.key}{sample.suffix}" for sample in loose))
    else:
        yield from loose


def split_image_name(name: str) -> tuple[str, str] | None:
    """The stem and the suffix of an image's file name; None of any other file's."""
    return _split(name, IMAGE_SUFFIXES)


def split_video_name(name: str) -> tuple[str, str] | None:
    """As `split_image_name`, of a video's."""
    return _split(name, VIDEO_SUFFIXES)


def _split(name: str, suffixes: tuple[str, ...]) -> tuple[str, str] | None:
    stem, dot, suffix = name.rpartition(".")
    known = (dot + suffix).lower() in suffixes and not is_hidden(name)
    return (stem, dot + suffix) if known else None


def _enters(name: str, skipped: Skipped) -> bool:
    if is_hidden(name):
        skipped.add(HIDDEN, f"{name}/")
        return False
    return True


def _images(root: str, inside: str, files: list[str], skipped: Skipped) -> Iterator[Sample]:
    label = inside.partition("/")[0] or None
    for name in files:
        if parts := split_image_name(name):
            stem, suffix = parts
            yield Sample(f"{inside}/{stem}" if inside else stem, label, root, suffix)
        else:
            _skip(inside, name, VIDEO if split_video_name(name) else SUFFIX, skipped)


def _clips(root: str, inside: str, files: list[str], skipped: Skipped) -> Iterator[Sample]:
    """Videos; and of a folder below that of a class, where images lie in it, itself."""
    label, _, below = inside.partition("/")
    for name in files:
        if parts := split_video_name(name):
            stem, suffix = parts
            yield Sample(f"{inside}/{stem}" if inside else stem, label or None, root, suffix)
        elif not (below and split_image_name(name)):
            _skip(inside, name, BESIDE_CLIPS, skipped)
    if below and any(map(split_image_name, files)):
        yield Sample(inside, label, root, FOLDER)


def _skip(inside: str, name: str, reason: str, skipped: Skipped) -> None:
    table = not inside and is_manifest(name)
    path = f"{inside}/{name}" if inside else name
    skipped.add(HIDDEN if is_hidden(name) else TABLE if table else reason, path)
