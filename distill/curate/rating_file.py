"""Answers of raters as they come: rows of a CSV, on the disk before anybody is told that they are.

The columns are those that `distill.curate.real_labels` reads; of several answers of one rater about
one label of an image the last counts.
"""

import csv
import io
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from distill.curate.real_labels import ANSWERS
from distill.errors import DataError, first_line
from distill.files import csv_text, flush_folder, make_folder, sole_writer

COLUMNS = ("rater", "key", "label", "answer")
CURE = "stop it, or choose another file"


class RatingFile:
    """The answers in one file. Safe to use from several threads."""

    def __init__(self, path: Path) -> None:
        self.path, self._seen = path, _identity(path)
        self._lock = threading.Lock()
        self._answers: dict[tuple[str, str], dict[str, str]] = {}
        content = path.read_bytes()
        self._whole = content.rfind(b"\n") + 1
        self._read(content[: self._whole])

    def mend(self, say: Callable[[str], None]) -> None:
        """Take away what a power cut left of a row, so that the next one begins a line."""
        if torn := self.path.read_bytes()[self._whole :]:
            say(f"{self.path}: its last row is torn and was taken away: {torn!r}")
            os.truncate(self.path, self._whole)
            self._seen = _identity(self.path)

    def _read(self, whole: bytes) -> None:
        """The lines that are whole: a power cut, or another process at work, may leave half of one.

        Raises:
            DataError: it holds something else.
        """
        try:
            rows = list(csv.reader(io.StringIO(whole.decode("utf-8", "surrogatepass"))))
            if not rows or tuple(rows[0]) != COLUMNS:
                raise ValueError(f"{','.join(rows[0])[:200] if rows else 'nothing'} found")
            for number, row in enumerate(rows[1:], 2):
                if len(row) != len(COLUMNS) or row[3] not in ANSWERS:
                    raise ValueError(f"line {number}: {','.join(row)[:200]!r} found")
                self._count(*row)
        except (ValueError, csv.Error) as error:
            raise DataError(
                f"{self.path}: cannot be gone on with ({first_line(error)}), expected the columns "
                "rater, key, label and answer (no, maybe or yes); choose another file"
            ) from error

    def _count(self, rater: str, key: str, label: str, answer: str) -> None:
        self._answers.setdefault((key, label), {})[rater] = answer

    def add(self, rater: str, key: str, answers: Mapping[str, str]) -> None:
        """Keep what a rater says of labels of an image. answers: no, maybe or yes, by label.

        Raises:
            OSError: they cannot be written, and none of them counts.
            DataError: the file is gone, or somebody else wrote to it.
        """
        rows = [(rater, key, label, answer) for label, answer in answers.items()]
        with self._lock:
            if _identity(self.path) != self._seen:
                raise DataError(
                    f"{self.path}: changed or removed by something else, expected nobody else to "
                    "write there; put it back and start again: no answer is taken until then"
                )
            _append(self.path, csv_text(rows))
            self._seen = _identity(self.path)
            for row in rows:
                self._count(*row)

    def answers(self, key: str, label: str) -> Mapping[str, str]:
        """What each rater says of one label of an image."""
        return self._answers.get((key, label), {})

    def verdict(self, key: str, label: str) -> str | None:
        """What most raters say, those that say maybe aside; None where no side has more."""
        counts = Counter(self.answers(key, label).values())
        if counts["yes"] == counts["no"]:
            return None
        return "yes" if counts["yes"] > counts["no"] else "no"


@contextmanager
def open_ratings(
    path: Path, say: Callable[[str], None] = lambda line: None
) -> Iterator[RatingFile]:
    """The file, for this process alone to add to; it is made where it is not there.

    say: told what was mended.

    Raises:
        DataError: it holds something else.
        InUseError: another process adds to it.
    """
    path = path.resolve()
    if path.exists() and not path.is_file():
        raise DataError(f"{path}: no plain file found, expected one; choose another")
    make_folder(path.parent)
    with sole_writer(path.parent, name=f".{path.name}.lock", cure=CURE, say=say):
        if not path.exists():
            _append(path, csv_text([COLUMNS]))
            flush_folder(path.parent)
        ratings = RatingFile(path)
        ratings.mend(say)
        yield ratings


def _identity(path: Path) -> tuple[int, int, int] | None:
    """Which file it is, and how long; None where it is gone."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino, found.st_size


def _append(path: Path, text: str) -> None:
    """On the disk, or not at all."""
    number = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        before = os.fstat(number).st_size
        left = memoryview(text.encode("utf-8", "surrogatepass"))
        try:
            while left:
                left = left[os.write(number, left) :]
            os.fsync(number)
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(number, before)
            error.filename = str(path)
            raise
    finally:
        os.close(number)
