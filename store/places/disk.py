"""Objects of a store in a folder: each a file that is there whole, and outlives a power cut."""

import os
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from distill.files import (
    PARTIAL,
    flush_folder,
    make_folder,
    write_all_atomically,
    write_new_atomically,
)
from distill.store.places.backend import Span

ABANDONED_S = 3600.0  # after which a half-written file has no writer any more


@dataclass(frozen=True)
class FolderBackend:
    """See `distill.store.places.backend.Backend`."""

    folder: Path
    requests = 1  # a file takes 15 µs; threads would only cost

    def make(self) -> None:
        """Make the folder."""
        make_folder(self.folder.absolute())

    def exists(self) -> bool:
        """Whether anything is in it."""
        return self.folder.is_dir() and bool(_whole(self.folder))

    def get(self, key: str, span: Span | None) -> bytes | None:
        """See `Backend`."""
        try:
            with (self.folder / key).open("rb", buffering=0) as file:
                if span is None:
                    return file.readall()
                return os.pread(file.fileno(), span[1], span[0])
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None

    def put(self, contents: Iterable[tuple[str, bytes]]) -> None:
        """See `Backend`."""
        write_all_atomically((self.folder / key, content) for key, content in contents)

    def put_new(self, key: str, content: bytes) -> bool:
        """See `Backend`."""
        return write_new_atomically(self.folder / key, content)

    def delete(self, keys: Sequence[str]) -> None:
        """See `Backend`. Folders that become empty go too."""
        above: dict[Path, None] = {}
        for key in keys:
            path = self.folder / key
            with suppress(FileNotFoundError, NotADirectoryError):
                os.unlink(path)  # noqa: PTH108
                above[path.parent] = None
        for folder in sorted(above, reverse=True):
            while folder != self.folder:
                try:
                    os.rmdir(folder)  # noqa: PTH106
                except OSError:
                    break
                folder = folder.parent
            flush_folder(folder)

    def names(self, folder: str) -> list[str]:
        """See `Backend`."""
        path = self.folder / folder if folder else self.folder
        return sorted(entry.name for entry in _whole(path)) if path.is_dir() else []

    def keys(self, folder: str) -> list[tuple[str, int]]:
        """See `Backend`."""
        found, waiting = [], [self.folder / folder if folder else self.folder]
        while waiting:
            try:
                entries = _whole(waiting.pop())
            except (FileNotFoundError, NotADirectoryError):
                continue
            waiting += [Path(entry.path) for entry in entries if entry.is_dir()]
            for entry in entries:
                with suppress(FileNotFoundError):
                    if entry.is_file():
                        key = Path(entry.path).relative_to(self.folder).as_posix()
                        found.append((key, entry.stat().st_size))
        return sorted(found)

    def tidy(self) -> None:
        """Remove what was being written by processes that were killed."""
        long_ago = time.time() - ABANDONED_S
        for path in self.folder.rglob(f".*{PARTIAL}"):
            with suppress(FileNotFoundError):
                if path.stat().st_mtime < long_ago:
                    path.unlink()


def _whole(folder: Path) -> list["os.DirEntry[str]"]:
    with os.scandir(folder) as entries:
        return [entry for entry in entries if not entry.name.endswith(PARTIAL)]
