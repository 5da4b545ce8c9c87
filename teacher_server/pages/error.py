"""The error of a page."""

from collections.abc import Sequence


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
