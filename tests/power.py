"""A disk whose power may fail at any moment: what a file system may then have of what was written.

What the code under test does to files goes through `os`; it is recorded, and any state that a power
cut could leave is made of the record: a file's bytes are sure from its fsync on, a name from the
fsync of its folder on, and of everything else any part may be there or not.
"""

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CHANGES = ("replace", "link", "unlink", "mkdir", "rmdir")


class Recorder:
    """steps: what was done below `folder`, in order. note: adds a remark among them."""

    def __init__(self, patch: pytest.MonkeyPatch, folder: Path) -> None:
        self.folder = str(folder)
        self.steps: list[tuple[Any, ...]] = []
        self._paths: dict[int, str] = {}
        self._inodes: dict[int, int] = {}
        for name in ("open", "write", "fsync", "close"):
            patch.setattr(os, name, getattr(self, f"_{name}")(getattr(os, name)))
        for name in CHANGES:
            patch.setattr(os, name, self._changing(name, getattr(os, name)))

    def note(self, what: object) -> None:
        self.steps.append(("note", what))

    def _is_mine(self, path: Any) -> bool:
        return isinstance(path, str | Path) and f"{path}/".startswith(f"{self.folder}/")

    def _open(self, whole: Callable[..., int]) -> Callable[..., int]:
        def opened(path: Any, flags: int, *more: Any, **words: Any) -> int:
            number = whole(path, flags, *more, **words)
            if self._is_mine(path):
                self._paths[number] = str(path)
                if flags & os.O_CREAT:
                    self._inodes[number] = len(self.steps)
                    self.steps.append(("create", str(path), len(self.steps)))
            return number

        return opened

    def _write(self, whole: Callable[..., int]) -> Callable[..., int]:
        def written(number: int, content: Any) -> int:
            count = whole(number, content)
            if number in self._inodes:
                self.steps.append(("write", self._inodes[number], bytes(content[:count])))
            return count

        return written

    def _fsync(self, whole: Callable[..., None]) -> Callable[..., None]:
        def flushed(number: int) -> None:
            if number in self._inodes:
                self.steps.append(("fsync", self._inodes[number]))
            elif number in self._paths:
                self.steps.append(("fsync folder", self._paths[number]))

        return flushed

    def _close(self, whole: Callable[..., None]) -> Callable[..., None]:
        def closed(number: int) -> None:
            self._paths.pop(number, None)
            self._inodes.pop(number, None)
            whole(number)

        return closed

    def _changing(self, name: str, whole: Callable[..., None]) -> Callable[..., None]:
        def changed(*paths: Any, **words: Any) -> None:
            whole(*paths, **words)
            if self._is_mine(paths[0]):
                self.steps.append((name, *map(str, paths[: 2 if name in CHANGES[:2] else 1])))

        return changed

    def after(self, count: int, choose: random.Random | None) -> "Disk":
        """What is there when the power fails after so many steps. choose: of what was not sure;
        None leaves out all of it.
        """
        disk = Disk(self.folder)
        for step in self.steps[:count]:
            disk.take(step)
        disk.fail(choose)
        return disk


class Disk:
    """names: what each path is, a number of a file or None for a folder."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.names: dict[str, int | None] = {}
        self.unsure: list[tuple[Any, ...]] = []  # changes of names, in order
        self.content: dict[int, bytes] = {}
        self.sure: dict[int, bytes] = {}

    def take(self, step: tuple[Any, ...]) -> None:
        kind, *rest = step
        if kind == "write":
            self.content[rest[0]] = self.content.get(rest[0], b"") + rest[1]
        elif kind == "fsync":
            self.sure[rest[0]] = self.content.get(rest[0], b"")
        elif kind == "fsync folder":
            mine = [c for c in self.unsure if os.path.dirname(c[-1]) == rest[0]]  # noqa: PTH120
            self.unsure = [c for c in self.unsure if c not in mine]
            for change in mine:
                self._apply(change)
        elif kind == "create":
            self.content[rest[1]] = b""
            self.unsure.append(("create", rest[1], rest[0]))
        elif kind != "note":
            self.unsure.append((kind, *rest))

    def fail(self, choose: random.Random | None) -> None:
        for change in self.unsure if choose else ():
            if choose and choose.random() < 0.7:
                self._apply(change)
        for inode, content in self.content.items():
            if inode not in self.sure:
                kept = choose.choice([0, len(content) // 2, len(content)]) if choose else 0
                self.sure[inode] = content[:kept]

    def _apply(self, change: tuple[Any, ...]) -> None:
        kind, *rest = change
        if kind == "create":
            self.names[rest[1]] = rest[0]
        elif kind == "mkdir":
            self.names.setdefault(rest[0], None)
        elif kind in ("unlink", "rmdir"):
            self.names.pop(rest[0], None)
        elif rest[0] in self.names:
            self.names[rest[1]] = self.names[rest[0]]
            if kind == "replace":
                del self.names[rest[0]]

    def write_to(self, folder: Path) -> None:
        """Make a folder of it."""
        for name, inode in sorted(self.names.items()):
            path = folder / os.path.relpath(name, self.folder)
            if inode is None:
                path.mkdir(exist_ok=True)
            elif path.parent.is_dir():
                path.write_bytes(self.sure[inode])
