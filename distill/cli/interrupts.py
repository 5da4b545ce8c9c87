"""Ctrl-C and SIGTERM: the first lets work in hand be finished, the second stops at once."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def finishing_first(command: str) -> Iterator[Callable[[], bool]]:
    """Gives a function that tells whether to stop after the work in hand."""
    asked = False

    def on_signal(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        # Not print: whatever was interrupted may be in the middle of one.
        name = signal.Signals(number).name
        text = f"{command}: {name}: finishing the block in hand; once more to stop at once\n"
        os.write(sys.stderr.fileno(), text.encode())

    before = {number: signal.signal(number, on_signal) for number in SIGNALS}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
