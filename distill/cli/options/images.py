"""Open --data, with indexes of tars kept in the user's cache."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distill.data.source import ImageSource

CACHE = "~/.cache/distill"


def open_images(data: str, split: str = "train") -> "ImageSource":
    """The images of one split. DISTILL_CACHE names another cache."""
    from distill.data.source import open_source

    cache = Path(os.environ.get("DISTILL_CACHE", CACHE)).expanduser()
    return open_source(data, split, indexes=cache / "tars")


def absolute(data: str) -> str:
    """Return the absolute path, for processes that run in other folders."""
    return data if "://" in data else str(Path(data).absolute())
