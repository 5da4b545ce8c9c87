"""Which place a path is in, and walking through its folders."""

from collections.abc import Callable, Iterator

from distill.errors import DataError
from distill.storage.bucket import S3, Bucket
from distill.storage.disk import Disk
from distill.storage.place import Entries, Place
from distill.storage.web import HF, HTTP, Hub, Web

REMOTE = (S3, HF, *HTTP)


def is_remote(path: str) -> bool:
    """Whether it is elsewhere, in a place that is known: requests should run side by side."""
    return path.startswith(REMOTE)


def place_of(path: str) -> Place:
    """The kind of place that a path is in.

    Raises:
        DataError: it is a URL of another kind.
    """
    if path.startswith(S3):
        return Bucket()
    if path.startswith(HF):
        return Hub()
    if path.startswith(HTTP):
        return Web()
    if "://" in path:
        raise DataError(
            f"{path}: unknown kind of location, expected a folder, a file, or one of "
            f"{' '.join(REMOTE)}"
        )
    return Disk()


def walk(
    folder: str, *, enters: Callable[[str], bool] = lambda name: True
) -> Iterator[tuple[str, Entries]]:
    """Each folder from `folder` on down, relative to it ("" is itself), and its entries; sorted.

    Folders directly in it may be links, those further down are not followed: they may lead back up.
    enters: whether a folder of that name is gone into.
    """
    place, waiting = place_of(folder), [""]
    while waiting:
        inside = waiting.pop()
        entries = place.entries(f"{folder}/{inside}" if inside else folder, links=not inside)
        yield inside, entries
        below = [name for name in reversed(entries.folders) if enters(name)]
        waiting += [f"{inside}/{name}".lstrip("/") for name in below]
