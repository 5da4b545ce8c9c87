"""One error for damaged bytes, whatever a codec or parser raises."""

from collections.abc import Iterator
from contextlib import contextmanager

from distill.errors import CorruptStoreError, StoreError, first_line


@contextmanager
def damage_named(location: str, part: str) -> Iterator[None]:
    """Raises CorruptStoreError for what goes wrong inside; a StoreError passes as it is."""
    try:
        yield
    except StoreError:
        raise
    except (ValueError, RuntimeError, KeyError, TypeError, ArithmeticError, MemoryError) as error:
        raise CorruptStoreError(
            f"{location}: {part} is damaged ({first_line(error)}), expected the bytes that were "
            "committed; `distill store repair` computes what is bad again"
        ) from error
