"""ImageFolder: one folder per class, with images in it or further below; or loose images."""

from collections.abc import Iterator

from distill.data.formats.samples import IMAGE_SUFFIXES, Sample
from distill.storage import Entries, walk


def list_folders(root: str) -> Iterator[Sample]:
    """The images below `root`; the first folder on the way to each is its label."""
    for inside, files in walk(root):
        if inside:
            yield from _images(root, inside, files, inside.partition("/")[0])


def list_loose(root: str, entries: Entries) -> Iterator[Sample]:
    """The images directly in `root`, without labels."""
    return _images(root, "", entries.files, None)


def split_image_name(name: str) -> tuple[str, str] | None:
    """The stem and the suffix of an image's file name; None of any other file's."""
    stem, dot, suffix = name.rpartition(".")
    known = (dot + suffix).lower() in IMAGE_SUFFIXES and not name.startswith(".")
    return (stem, dot + suffix) if known else None


def _images(root: str, inside: str, files: list[str], label: str | None) -> Iterator[Sample]:
    for name in files:
        if parts := split_image_name(name):
            stem, suffix = parts
            yield Sample(f"{inside}/{stem}" if inside else stem, label, root, suffix)
