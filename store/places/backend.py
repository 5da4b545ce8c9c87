"""What a place must offer to hold the objects of a store."""

from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable

Span = tuple[int, int]  # offset and length


@runtime_checkable
class Backend(Protocol):
    """requests: how many run side by side at best."""

    requests: int

    def make(self) -> None:
        """Make the place, where one can be made."""
        ...

    def exists(self) -> bool:
        """Whether anything is there."""
        ...

    def get(self, key: str, span: Span | None) -> bytes | None:
        """An object, or that much of it; None where there is none."""
        ...

    def put(self, contents: Iterable[tuple[str, bytes]]) -> None:
        """Each object whole or not at all, over another if there is one; all when it returns."""
        ...

    def put_new(self, key: str, content: bytes) -> bool:
        """`put`, but False where an object is there already, which stays."""
        ...

    def delete(self, keys: Sequence[str]) -> None:
        """Those that are there."""
        ...

    def names(self, folder: str) -> list[str]:
        """Names directly below a folder, "" being all, of objects and of folders, sorted."""
        ...

    def keys(self, folder: str) -> list[tuple[str, int]]:
        """Every key below a folder with its size in bytes, sorted."""
        ...

    def tidy(self) -> None:
        """Remove what killed writers left."""
        ...
