"""The data behind the pages: a store, its images, a student and a live teacher.

All of it may be absent, and the store may still be read while the first page is asked for.
"""

import asyncio
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from distill.curate.rating_file import RatingFile
from distill.data.views import Size
from distill.errors import DistillError, StoreError
from distill.hierarchy.semantic import SemanticHierarchy
from distill.teacher_server.inspect.findings import Rules
from distill.teacher_server.inspect.gallery import Gallery, GalleryFilter
from distill.teacher_server.inspect.inspection import Inspection, open_inspection
from distill.teacher_server.inspect.tag_lists import ListedImages
from distill.teacher_server.inspect.tree import ClassTree

LOOK_AGAIN_S = 30.0  # at a store that is not complete
PATIENCE = 20.0  # times as long as it took to look at it
CLOSING_S = 5.0
Value = TypeVar("Value")


@runtime_checkable
class Student(Protocol):
    """A trained model to compare the teacher with."""

    @property
    def name(self) -> str:
        """Display name of the student."""
        ...

    def probs(self, image: Image.Image) -> NDArray[Any]:
        """[ΣN_k] in hierarchy order, of an RGB image."""
        ...


@dataclass(frozen=True, eq=False)
class Prediction:
    """A live teacher's answer. probs: [ΣN_k]. confidence: [K], None of sigmoids."""

    probs: NDArray[Any]
    confidence: NDArray[Any] | None


# What reads a body, under a limit of time.
Receiving = Callable[[asyncio.Timeout], AbstractContextManager[object]]


@runtime_checkable
class LiveTeacher(Protocol):
    """One that can be asked about any image. size: height and width of what it sees.

    deadline_s: of one request, from the first byte of its body to the answer.
    """

    max_upload_bytes: int
    max_image_pixels: int
    size: Size
    deadline_s: float

    def admitted(self, client: str, body_bytes: int) -> AbstractContextManager[Receiving]:
        """Holds room for one request, from before its body is read; gives what reads it.

        Raises:
            Refused: there is none now.
        """
        ...

    async def ask(self, pixels: NDArray[np.uint8], client: str) -> Prediction:
        """What it says of an image of its size, [height, width, 3].

        Raises:
            Refused: not now.
            TeacherError: it does not answer.
        """
        ...


class Lazy(Generic[Value]):
    """A value that a thread of its own makes when it is first asked for, unless it is given.

    make: ends soon when `close` is called, with whatever error.
    stale: whether a value that was made a while ago is to be made again; meanwhile the old one is
    given.
    """

    def __init__(
        self,
        make: Callable[[], Value],
        *,
        value: Value | None = None,
        stale: Callable[[Value], bool] = lambda value: False,
        close: Callable[[], None] = lambda: None,
    ) -> None:
        self._make, self._stale, self._close = make, stale, close
        self._lock = threading.Lock()
        self._value, self._failure = value, ""
        self._due_at = time.monotonic() + LOOK_AGAIN_S if value is not None else 0.0
        self._thread: threading.Thread | None = None
        self._closed = False

    def get(self) -> Value | None:
        """The value; None while it is made, or where it cannot be."""
        with self._lock:
            if not self._thread and not self._closed and self._is_due():
                self._thread = threading.Thread(target=self._run, name="read-store", daemon=True)
                self._thread.start()
            return self._value

    @property
    def failure(self) -> str:
        """Why there is no value; empty otherwise."""
        return self._failure

    def close(self) -> None:
        """Make nothing any more."""
        self._closed = True
        self._close()
        if thread := self._thread:
            thread.join(CLOSING_S)

    def _is_due(self) -> bool:
        wanted = self._value is None or self._stale(self._value)
        return wanted and time.monotonic() >= self._due_at

    def _run(self) -> None:
        value, failure, began = None, "an error of this program", time.monotonic()
        try:
            value, failure = self._make(), ""
        except DistillError as error:
            failure = str(error)
        except Exception as error:
            failure = f"an error of this program: {type(error).__name__}: {error}"
        finally:
            with self._lock:
                self._value = value if value is not None else self._value
                took = time.monotonic() - began
                self._due_at = time.monotonic() + max(LOOK_AGAIN_S, PATIENCE * took)
                self._failure, self._thread = failure, None


@dataclass(frozen=True, eq=False)
class StoreSnapshot:
    """A store and, where they are at hand, its images. blind: why there are none, in words."""

    inspection: Inspection
    pictures: ListedImages | None = None
    blind: str = ""

    @cached_property
    def gallery(self) -> Gallery:
        """Gallery of the store's images."""
        return Gallery(self.inspection)

    def may_grow(self) -> bool:
        """Whether blocks were missing or damaged when it was read."""
        return not self.inspection.beliefs.is_complete

    def prepared(self) -> "StoreSnapshot":
        """Itself, with all that takes a pass over the images computed: no page waits for it."""
        _ = self.inspection.overview, self.inspection.subtrees, self.gallery.page(GalleryFilter())
        return self


@dataclass(frozen=True, kw_only=True, eq=False)
class Site:
    """hierarchy: of everything shown. teacher: its name. store: None where there is none.

    ratings: where people say which findings are right; None where they are not asked.
    root: path that a proxy puts before every page, without a slash at its end.
    """

    hierarchy: SemanticHierarchy
    teacher: str
    store: Lazy[StoreSnapshot] | None = None
    student: Student | None = None
    live: LiveTeacher | None = None
    ratings: RatingFile | None = None
    root: str = ""
    tree: ClassTree = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tree", ClassTree(self.hierarchy))

    @property
    def about(self) -> str:
        """See `Framed`."""
        return self.teacher

    @property
    def links(self) -> list[tuple[str, str]]:
        """See `Framed`."""
        return [
            ("/", "Overview"),
            ("/tree", "Classes"),
            *([("/gallery", "Gallery")] if self.store else []),
            *([("/ask", "Ask the teacher")] if self.live else []),
        ]

    def close(self) -> None:
        """Read nothing any more."""
        if self.store:
            self.store.close()


class ReaderProcess:
    """Opens a store after another process has read it: this one has requests to answer."""

    def __init__(self, location: str, rules: Rules, cache: Path | None = None) -> None:
        self.location, self.rules, self.cache = location, rules, cache
        self._process: Any = None
        self._closed = False

    def read(self) -> Inspection:
        """What is then mapped here.

        Raises:
            StoreError: the store cannot be read, or the other process ended early.
        """
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        self._process = context.Process(
            target=_read, args=(self.location, self.rules, self.cache, theirs), daemon=True
        )
        with ours:
            self._process.start()
            theirs.close()
            try:
                failure = ours.recv()
            except EOFError:
                failure = "reading it ended early, expected to go on; open the page again"
            self._process.join()
        if self._closed or failure:
            raise StoreError(f"{self.location}: {failure or 'the server is shutting down'}")
        return open_inspection(self.location, rules=self.rules, cache=self.cache)

    def close(self) -> None:
        """End the other process."""
        self._closed = True
        if self._process is not None:
            self._process.terminate()


def _read(location: str, rules: Rules, cache: Path | None, parent: Connection) -> None:
    """In the other process. Says an error or nothing; ends when its parent does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to both
    os.nice(19)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    failure = ""
    try:
        StoreSnapshot(open_inspection(location, rules=rules, cache=cache)).prepared()
    except DistillError as error:
        failure = str(error).removeprefix(f"{location}: ")
    parent.send(failure)


def _end_with(parent: Connection) -> None:
    with suppress(OSError, EOFError):
        parent.recv()  # nothing is ever sent
    os._exit(1)
