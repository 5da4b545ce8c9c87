"""Standard streams that outlive whoever reads them: a terminal that is gone ends no run."""

import errno
import io
import os
import sys
from contextlib import suppress

GONE = (errno.EPIPE, errno.EIO)  # a pipe's reader, a terminal


class LastingOutput(io.TextIOWrapper):
    """Standard output or error. lost: why nothing more can be written there."""

    lost: OSError | None = None

    def write(self, text: str) -> int:
        """Write what can be written."""
        try:
            return super().write(text)
        except OSError as error:
            self._lose(error)
            return len(text)

    def flush(self) -> None:
        """Flush what can be flushed."""
        try:
            super().flush()
        except OSError as error:
            self._lose(error)

    def _lose(self, error: OSError) -> None:
        """From here on to nowhere, so that nobody stumbles over it again."""
        self.lost = self.lost or error
        with suppress(OSError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)


def make_streams_last() -> None:
    """Make those of this process last, which is to begin with; closed ones lead nowhere.

    Otherwise a file that is opened later would get the number of a closed one, and its messages.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            nowhere = open(number, "r" if number == 0 else "w", closefd=False)  # noqa: SIM115
            setattr(sys, name, nowhere)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if type(stream) is io.TextIOWrapper and stream.fileno() in (1, 2):
            encoding, errors = stream.encoding, stream.errors
            lines = stream.line_buffering or name == "stderr"
            lasting = LastingOutput(
                stream.detach(), encoding=encoding, errors=errors, line_buffering=lines
            )
            setattr(sys, name, lasting)


def lost_output() -> OSError | None:
    """Why the result could not be written; None where it was, or where nobody wants it."""
    lost = sys.stdout.lost if isinstance(sys.stdout, LastingOutput) else None
    return None if lost is None or lost.errno in GONE else lost
