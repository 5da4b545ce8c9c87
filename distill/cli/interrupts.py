"""Ctrl-C and SIGTERM: the first lets work in hand be finished, the second stops at once."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def finishing_first(say: Callable[[str], None]) -> Iterator[Callable[[], bool]]:
    """Gives a function that tells whether to stop after the work in hand."""
    asked = False

    def on_signal(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        say(
            f"{signal.Signals(number).name}: finishing the block in hand; once more to stop at once"
        )

    before = {number: signal.signal(number, on_signal) for number in SIGNALS}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
