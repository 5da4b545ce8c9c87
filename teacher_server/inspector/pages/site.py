"""What the pages show, and where it comes from: a store, its images, a student, a live teacher.

All of it may be absent, and the store may still be read while the first page is asked for.
"""

import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from numpy.typing import NDArray
from PIL import Image

from distill.errors import DistillError
from distill.hierarchy import SemanticHierarchy
from teacher_server.inspector.findings import Rules
from teacher_server.inspector.gallery import Gallery, Wanted
from teacher_server.inspector.inspection import Inspection, open_inspection
from teacher_server.inspector.tag_lists import Pictures
from teacher_server.inspector.tree import ClassTree

LOOK_AGAIN_S = 30.0  # at a store that is not complete
Value = TypeVar("Value")


@runtime_checkable
class Student(Protocol):
    """A trained model to compare the teacher with."""

    @property
    def name(self) -> str:
        """For people."""
        ...

    def probs(self, image: Image.Image) -> NDArray[Any]:
        """[ΣN_k] in hierarchy order, of an RGB image."""
        ...


@dataclass(frozen=True, eq=False)
class Said:
    """A live teacher's answer. probs: [ΣN_k]. confidence: [K]."""

    probs: NDArray[Any]
    confidence: NDArray[Any]


@runtime_checkable
class LiveTeacher(Protocol):
    """One that can be asked about any image."""

    max_upload_bytes: int
    max_image_pixels: int

    def admitted(self, client: str, body_bytes: int) -> AbstractContextManager[object]:
        """Holds room for one request, from before its body is read.

        Raises:
            Refused: there is none now.
        """
        ...

    async def ask(self, image: Image.Image, client: str) -> Said:
        """What it says of an RGB image.

        Raises:
            Refused: not now.
            TeacherError: it does not answer.
        """
        ...


class Later(Generic[Value]):
    """A value that a thread of its own makes when it is first asked for.

    stale: whether a value that is LOOK_AGAIN_S old is to be made again; the old one is given until
    then.
    """

    def __init__(
        self, make: Callable[[], Value], stale: Callable[[Value], bool] = lambda value: False
    ) -> None:
        self._make, self._stale = make, stale
        self._lock = threading.Lock()
        self._value: Value | None = None
        self._failure, self._made_at = "", 0.0
        self._making = False

    def get(self) -> Value | None:
        """The value; None while it is made, or where it cannot be."""
        with self._lock:
            if not self._making and self._is_due():
                self._making = True
                threading.Thread(target=self._run, name="read-store", daemon=True).start()
            return self._value

    @property
    def failure(self) -> str:
        """Why there is no value; empty otherwise."""
        return self._failure

    def _is_due(self) -> bool:
        if self._value is None and not self._failure:
            return True
        old = time.monotonic() - self._made_at > LOOK_AGAIN_S
        return old and (self._value is None or self._stale(self._value))

    def _run(self) -> None:
        value, failure = None, ""
        try:
            value = self._make()
        except DistillError as error:
            failure = str(error)
        except Exception as error:
            failure = f"an error of this program: {type(error).__name__}: {error}"
        with self._lock:
            self._value = value if value is not None else self._value
            self._failure, self._made_at, self._making = failure, time.monotonic(), False


@dataclass(frozen=True, eq=False)
class Look:
    """A store and, where they are at hand, its images. blind: why there are none, in words."""

    inspection: Inspection
    pictures: Pictures | None = None
    blind: str = ""

    @cached_property
    def gallery(self) -> Gallery:
        """Of its images."""
        return Gallery(self.inspection)

    def prepared(self) -> "Look":
        """Itself, with all that takes a pass over the images computed: no page waits for it."""
        _ = self.inspection.overview, self.inspection.subtrees, self.gallery.page(Wanted())
        return self


@dataclass(frozen=True, kw_only=True, eq=False)
class Site:
    """hierarchy: of everything shown. teacher: its name. store: None where there is none."""

    hierarchy: SemanticHierarchy
    teacher: str
    store: Later[Look] | None = None
    student: Student | None = None
    live: LiveTeacher | None = None
    tree: ClassTree = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tree", ClassTree(self.hierarchy))


def read_apart(location: str, rules: Rules, cache: Path | None) -> Inspection:
    """`open_inspection` after another process read the store: this one has requests to answer."""
    process = multiprocessing.get_context("spawn").Process(
        target=_read, args=(location, rules, cache), daemon=True
    )
    process.start()
    process.join()
    return open_inspection(location, rules=rules, cache=cache)


def _read(location: str, rules: Rules, cache: Path | None) -> None:
    os.nice(19)
    try:
        open_inspection(location, rules=rules, cache=cache)
    except DistillError:  # the parent finds it as well
        os._exit(1)
