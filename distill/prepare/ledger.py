"""Which units are done: one JSON a line, appended and flushed as each is finished.

The first line says what is being prepared and how, so that only the same command goes on. The file
is called unfinished until the last unit is done; while it is, `open_source` refuses the folder.
"""

import fcntl
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from distill.data import UNFINISHED
from distill.errors import ConfigError
from distill.prepare.work import UnitDone

FINISHED = "prepare.jsonl"
FORMAT = "distill-prepare/1"


class Ledger:
    """Of one output folder; held by one process at a time.

    Raises:
        ConfigError: another command holds it, or the folder was begun in another way.
    """

    def __init__(self, out: Path, settings: Mapping[str, Any]) -> None:
        self.out, self.done = out, dict[str, UnitDone]()
        out.mkdir(parents=True, exist_ok=True)
        path = out / UNFINISHED
        if not path.exists():
            if (out / FINISHED).exists():  # but something is missing
                (out / FINISHED).replace(path)
            else:
                _require_empty(out)
        self._file = path.open("a+b")
        try:
            self._hold()
            head, units = _read(self._file)
            if head:
                _require_same(out, head, settings)
                self.done = {unit.name: unit for unit in units if _is_there(out, unit)}
            else:
                self._append({"format": FORMAT, **settings})
        except BaseException:
            self._file.close()
            raise

    def record(self, units: Sequence[UnitDone], parts: Path) -> None:
        """They are done: flush what they wrote to the disk, move shards to their place, note it."""
        os.sync()  # once for many units: to flush each file would take longer than to shrink it
        for unit in units:
            if unit.file_bytes:
                (parts / f"{unit.name}.tar").replace(self.out / f"{unit.name}.tar")
        self._append(*map(asdict, units))
        self.done |= {unit.name: unit for unit in units}

    def finish(self) -> None:
        """All units are done."""
        (self.out / UNFINISHED).replace(self.out / FINISHED)

    def close(self) -> None:
        """Let another command go on."""
        self._file.close()

    def _hold(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"{self.out}: another `distill prepare` writes here, expected to be alone; wait "
                "for it, or give another --out"
            ) from error

    def _append(self, *lines: Mapping[str, Any]) -> None:
        # Keys may hold bytes that are no UTF-8; JSON escapes them.
        self._file.writelines(json.dumps(line).encode() + b"\n" for line in lines)
        self._file.flush()
        os.fsync(self._file.fileno())


def _require_empty(out: Path) -> None:
    found = next((path.name for path in out.iterdir()), None)
    if found is not None:
        raise ConfigError(
            f"{out}: {found!r} found in it, expected an empty folder or one that `distill prepare` "
            "began; give another --out"
        )


def finished_units(out: Path, recipe: Mapping[str, Any]) -> list[UnitDone]:
    """The units of a folder that was finished and is whole; else none.

    Raises:
        ConfigError: it was made by another recipe.
    """
    if not (out / FINISHED).exists():
        return []
    with (out / FINISHED).open("r+b") as file:
        head, units = _read(file)
    _require_same(out, head, recipe)
    return units if all(_is_there(out, unit) for unit in units) else []


def _is_there(out: Path, unit: UnitDone) -> bool:
    """Whether its shard is; of class folders only that something is."""
    if not unit.images:
        return True
    shard = out / f"{unit.name}.tar"
    if unit.file_bytes:
        return shard.exists() and shard.stat().st_size == unit.file_bytes
    return (out / unit.name.partition("-")[0]).is_dir()


def _read(file: BinaryIO) -> tuple[dict[str, Any], list[UnitDone]]:
    """The head and the units; a last line that was cut off is taken away."""
    file.seek(0)
    content = file.read()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        file.truncate(len(whole))
    try:
        head, *lines = [json.loads(line) for line in whole.splitlines()] or [{}]
        return dict(head), [UnitDone(**line) for line in lines]
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"{file.name}: damaged ({error}), expected JSON lines; remove the folder, begin anew"
        ) from error


def _require_same(out: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    for name, value in wanted.items():
        if found.get(name) != value:
            raise ConfigError(
                f"{out}: begun with {name} {found.get(name)!r}, this command has {value!r}; "
                "expected the same: run it as before, or give another --out"
            )
