"""Files written whole or not at all, on the disk when it is said, and by one process at a time."""

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
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from distill.errors import InUseError

CACHE = "~/.cache/distill"  # the user's own
LOCK = ".lock"
PARTIAL = ".partial"  # what a process leaves that was killed while it wrote
WITHOUT_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)
CANNOT_FLUSH = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF)  # a folder, on some disks
_HELD: set[Path] = set()  # by this process, whose own locks the kernel does not tell from others


def tar_indexes() -> Path:
    """Folder for indexes of tars: in the user's cache; DISTILL_CACHE names another."""
    return Path(os.environ.get("DISTILL_CACHE", CACHE)).expanduser() / "tars"


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Write beside `path`, rename over it: readers see the old file or the new.

    It outlives a power cut from the moment that this returns.
    """
    write_all_atomically([(path, content)])


def write_all_atomically(files: Iterable[tuple[Path, bytes | memoryview]]) -> None:
    """`write_atomically` of each, side by side: all are written before the first is flushed."""
    with ExitStack() as stack:
        written = []
        for path, content in files:
            if not path.name:
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
            make_folder(path.parent)
            number, partial = stack.enter_context(_written_beside(path, content))
            written.append((number, partial, path))
        for number, partial, path in written:
            with _naming(path):
                os.fsync(number)
                os.replace(partial, path)  # noqa: PTH105
    for folder in dict.fromkeys(path.parent for _, _, path in written):
        flush_folder(folder)


def write_new_atomically(path: Path, content: bytes | memoryview) -> bool:
    """`write_atomically`, but False where there is such a file already, which stays."""
    make_folder(path.parent)
    with _written_beside(path, content) as (number, partial), _naming(path):
        os.fsync(number)
        try:
            os.link(partial, path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in WITHOUT_LINKS:
                raise
            with suppress(FileExistsError):
                os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
                os.replace(partial, path)  # noqa: PTH105
                flush_folder(path.parent)
                return True
            return False
    flush_folder(path.parent)
    return True


def make_folder(folder: Path) -> None:
    """With those above it, each on the disk."""
    if not folder.is_dir():
        make_folder(folder.parent)
        with suppress(FileExistsError):
            os.mkdir(folder)  # noqa: PTH102
        flush_folder(folder.parent)


def flush_folder(folder: Path) -> None:
    """Have the names in it on the disk; some file systems cannot, and need not."""
    try:
        number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:  # another process took it away again
        return
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno not in CANNOT_FLUSH:
            error.filename = str(folder)
            raise
    finally:
        os.close(number)


@contextmanager
def _written_beside(path: Path, content: bytes | memoryview) -> Iterator[tuple[int, Path]]:
    """A file with that content, open and not flushed yet, which is gone in the end."""
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}{PARTIAL}")
    with _naming(path):
        number = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        try:
            with _naming(path):
                left = memoryview(content).cast("B")
                while left:
                    left = left[os.write(number, left) :]
            yield number, partial
        finally:
            os.close(number)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(partial)  # noqa: PTH108


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Errors of what was opened name no file, or that beside it."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table, in UTF-8; names of files that are none survive as they do in `sample_id`."""
    write_atomically(path, csv_text([header, *rows]).encode("utf-8", "surrogatepass"))


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """Lines of a table."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


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
