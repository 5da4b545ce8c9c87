"""Files written whole or not at all, and by one process at a time."""

import csv
import errno
import fcntl
import io
import json
import os
import shlex
import socket
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from distill.errors import InUseError

LOCK = ".lock"
_HELD: set[Path] = set()  # by this process, whose own locks the kernel does not tell from others


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Write beside `path`, flush to disk, rename over it: readers see the old file or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table, in UTF-8; names of files that are none survive as they do in `sample_id`."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    write_atomically(path, text.getvalue().encode("utf-8", "surrogatepass"))


@contextmanager
def sole_writer(
    folder: Path, *, name: str = LOCK, cure: str, say: Callable[[str], None] = lambda line: None
) -> Iterator[None]:
    """Hold `folder`, so that no other process writes there; a process that dies lets go of it.

    A POSIX lock on a file of that name, which says who holds it: it works on NFS, and forks do not
    inherit it. say: told where the file system cannot lock.

    Raises:
        InUseError: another process holds it; says which, since when, and `cure`.
    """
    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    path = (folder / name).resolve()
    if path in _HELD:
        raise InUseError(f"{folder}: this very process writes here already; {cure}")
    with _locked(path, folder, cure, say) as file:
        _HELD.add(path)
        try:
            since = datetime.now(UTC).isoformat(timespec="seconds")
            command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
            holder = {"host": socket.gethostname(), "pid": os.getpid(), "since": since}
            file.truncate(0)
            file.write(json.dumps({**holder, "command": command}) + "\n")
            file.flush()
            yield
        finally:
            _HELD.discard(path)
            path.unlink(missing_ok=True)
            if new:
                with suppress(OSError):  # something was written
                    folder.rmdir()


@contextmanager
def _locked(path: Path, folder: Path, cure: str, say: Callable[[str], None]) -> Iterator[IO[str]]:
    while True:
        with path.open("a+") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in (errno.EACCES, errno.EAGAIN):
                    raise InUseError(
                        f"{folder}: {_holder(path)} writes here, expected one at a time; {cure}"
                    ) from error
                say(f"{folder}: cannot be locked ({error.strerror}); make sure to be alone there")
            if _is_still(file, path):
                yield file
                return


def _is_still(file: IO[str], path: Path) -> bool:
    """Whoever held the lock may have removed its file, since it was opened here."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    return False


def _holder(path: Path) -> str:
    """Who wrote the lock file, in words."""
    try:
        found = json.loads(path.read_text())
        return (
            f"process {int(found['pid'])} on {found['host']} (since {found['since']}: "
            f"{str(found['command'])[:200]})"
        )
    except (OSError, ValueError, KeyError, TypeError):  # it has just begun
        return "another process"
