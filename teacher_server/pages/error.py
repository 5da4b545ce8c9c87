"""The error of a page."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from distill.errors import DataError


class PageError(Exception):
    """status: of HTTP. text: for people. wait: the page may be there soon. choices: class indices.

    retry_after_s: when to ask again.
    """

    def __init__(
        self,
        status: int,
        text: str,
        *,
        wait: bool = False,
        choices: Sequence[int] = (),
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(text)
        self.status, self.text, self.wait, self.choices = status, text, wait, choices
        self.retry_after_s = retry_after_s


@contextmanager
def keeping() -> Iterator[None]:
    """Around keeping what a rater says.

    Raises:
        PageError: 503, it is not kept.
    """
    try:
        yield
    except OSError as error:
        text = f"the answer could not be kept ({error.strerror}); free the disk, send it again"
        raise PageError(503, text) from error
    except DataError as error:
        raise PageError(503, str(error)) from error
