"""Which units are done: one JSON a line, appended and flushed as each is finished.

The first line says what is being prepared and how, so that only the same command goes on. The file
is called unfinished until the last unit is done; while it is, `open_source` refuses the folder.
"""

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from distill.curate.prepare.unit import UnitDone
from distill.data.layout import UNFINISHED
from distill.errors import ConfigError
from distill.files import LOCK, sole_writer, write_atomically

FINISHED = "prepare.jsonl"
FORMAT = "distill-prepare/1"


class Ledger:
    """Record the finished units of one output folder; one process holds it at a time.

    Raises:
        InUseError: another command holds it.
        ConfigError: the folder was begun in another way.
    """

    def __init__(
        self, out: Path, settings: Mapping[str, Any], notes: Mapping[str, Any] | None = None
    ) -> None:
        """settings: must be those that the folder was begun with. notes: are kept beside them."""
        self.out, self.done = out, dict[str, UnitDone]()
        out.mkdir(parents=True, exist_ok=True)
        path = out / UNFINISHED
        if not path.exists():
            if (out / FINISHED).exists():  # but something is missing
                self._reopen(settings)
            else:
                _require_empty(out)
        self._held = ExitStack()
        cure = "wait for it, or give another --out"
        self._held.enter_context(sole_writer(out, cure=cure))
        self._file = self._held.enter_context(path.open("a+b"))
        try:
            head, units = _read(self._file)
            if head:
                _require_same(out, head, settings)
                self.done = {unit.name: unit for unit in units if _is_there(out, unit)}
            else:
                self._append({"format": FORMAT, **settings, **(notes or {})})
        except BaseException:
            self.close()
            raise

    def record(self, units: Sequence[UnitDone], parts: Path) -> None:
        """They are done: flush what they wrote to the disk, move shards to their place, note it."""
        if not units:
            return
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
        self._held.close()

    def _reopen(self, settings: Mapping[str, Any]) -> None:
        """Unfinished again, without the units of splits in class folders that lost something."""
        head, units = _read_file(self.out / FINISHED)
        _require_same(self.out, head, settings)
        broken = _broken_splits(self.out, units)
        kept = [asdict(unit) for unit in units if unit.split not in broken]
        write_atomically(self.out / UNFINISHED, _lines(head, *kept))
        (self.out / FINISHED).unlink()

    def _append(self, *lines: Mapping[str, Any]) -> None:
        self._file.write(_lines(*lines))
        self._file.flush()
        os.fsync(self._file.fileno())


def _lines(*lines: Mapping[str, Any]) -> bytes:
    """JSON, a line each. Keys may hold bytes that are no UTF-8; JSON escapes them."""
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def _require_empty(out: Path) -> None:
    other = next((path.name for path in out.iterdir() if path.name != LOCK), None)
    if other is not None:
        raise ConfigError(
            f"{out}: {other!r} found in it, expected an empty folder or one that `distill prepare` "
            "began; give another --out"
        )


def finished(out: Path, settings: Mapping[str, Any]) -> bool:
    """Whether a folder was finished from that very release, and is whole.

    Raises:
        ConfigError: it was made in another way.
    """
    if not (out / FINISHED).exists():
        return False
    head, units = _read_file(out / FINISHED)
    _require_same(out, head, {n: value for n, value in settings.items() if n != "raw"})
    same = head.get("raw") == settings["raw"]
    return same and not _broken_splits(out, units) and all(_is_there(out, u) for u in units)


def _read_file(path: Path) -> tuple[dict[str, Any], list[UnitDone]]:
    with path.open("rb") as file:
        return _read(file, mend=False)


def _broken_splits(out: Path, units: Sequence[UnitDone]) -> frozenset[str]:
    """Splits in class folders that do not hold as many files and bytes as were written."""
    expected: dict[str, list[int]] = {}
    for unit in units:
        if not unit.file_bytes:
            counts = expected.setdefault(unit.split, [0, 0])
            counts[0] += unit.images
            counts[1] += unit.bytes_out
    return frozenset(split for split, wanted in expected.items() if _counts(out / split) != wanted)


def _counts(folder: Path) -> list[int]:
    """Files in class folders, and their bytes."""
    sizes = [
        entry.stat().st_size
        for of_class in (folder.iterdir() if folder.is_dir() else ())
        for entry in os.scandir(of_class)
    ]
    return [len(sizes), sum(sizes)]


def _is_there(out: Path, unit: UnitDone) -> bool:
    """Whether its shard is; what is in class folders is counted when all is done."""
    shard = out / f"{unit.name}.tar"
    return not unit.file_bytes or (shard.exists() and shard.stat().st_size == unit.file_bytes)


def _read(file: BinaryIO, *, mend: bool = True) -> tuple[dict[str, Any], list[UnitDone]]:
    """The head and the units; a last line that was cut off does not count, and is taken away."""
    file.seek(0)
    content = file.read()
    complete = content[: content.rfind(b"\n") + 1]
    if mend and len(complete) < len(content):
        file.truncate(len(complete))
    try:
        head, *lines = [json.loads(line) for line in complete.splitlines()] or [{}]
        units = [UnitDone(**line) for line in lines]
        if not all(isinstance(unit.name, str) and isinstance(unit.bad, dict) for unit in units):
            raise ValueError("a unit without a name")
        return dict(head), units
    except (ValueError, TypeError, RecursionError) as error:
        raise ConfigError(
            f"{file.name}: damaged ({error}), expected JSON lines; remove the folder, begin anew"
        ) from error


def _require_same(out: Path, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    for name, value in wanted.items():
        if stored.get(name) != value:
            raise ConfigError(
                f"{out}: begun with {name} {stored.get(name)!r}, this command has {value!r}; "
                "expected the same: run it as before, or give another --out"
            )
