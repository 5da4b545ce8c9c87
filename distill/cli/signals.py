"""Ctrl-C and SIGTERM: the first finishes the current work, the second stops at once."""

import os
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import click

STDERR = 2
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopping:
    """Called, it says whether to stop after the work in hand."""

    def __init__(self) -> None:
        self.by: signal.Signals | None = None

    def __call__(self) -> bool:
        return self.by is not None

    def end(self) -> None:
        """Say how to go on. SIGTERM is no failure; Ctrl-C ends the command as an interrupt."""
        if self.by == signal.SIGINT:
            raise KeyboardInterrupt
        command = shlex.join(["distill", *sys.argv[1:]])
        click.echo(f"stopped after a checkpoint; to resume: {command}", err=True)


@contextmanager
def finish_on_signal(command: str, work: str = "the current block") -> Iterator[Stopping]:
    """Gives what tells whether to stop after the work in hand."""
    stopping = Stopping()

    def on_signal(number: int, frame: FrameType | None) -> None:
        if stopping():
            raise KeyboardInterrupt
        stopping.by = signal.Signals(number)
        # Not print: whatever was interrupted may be in the middle of one.
        name = stopping.by.name
        text = f"{command}: {name}: finishing {work}; once more to stop at once\n"
        os.write(STDERR, text.encode())

    before = {number: signal.signal(number, on_signal) for number in SIGNALS}
    try:
        yield stopping
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
