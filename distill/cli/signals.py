"""Ctrl-C, SIGTERM and SIGHUP: the first finishes the work in hand, the second stops at once.

A command that a signal ends with work left exits with 75, whichever signal it was, so that
`pretrain && evaluate`, Slurm and Kubernetes do not take it for done.
"""

import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from distill.errors import printable

STDERR = 2
IMPORTING = "<frozen importlib._bootstrap>"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
WORK_LEFT = 75  # EX_TEMPFAIL of sysexits.h: the same command goes on
DEAF_S = 20.0  # of native code, such as a collective that waits for its peers
DEAF_TWICE_S = 2.0


class Interrupted(KeyboardInterrupt):
    """A signal ended the command."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)


class Stopping:
    """Called, it says whether to stop after the work in hand.

    Until it is first called there is no such work, as while a command waits for a server.
    """

    def __init__(self) -> None:
        self.by: signal.Signals | None = None
        self.working = False

    def __call__(self) -> bool:
        self.working = True
        return self.heard

    @property
    def heard(self) -> bool:
        """Whether a signal came; asked by who waits, which is no work in hand."""
        return self.by is not None

    def end(self) -> None:
        """End the command, if a signal asked for it."""
        if self.by is not None:
            raise Interrupted(self.by)


def end_on_signals() -> None:
    """Signals raise `Interrupted`, until a command handles them better."""
    _handle(_raise)


def stopped(by: str) -> str:
    """What a command says that a signal ended. by: the signal's name, empty for none."""
    command = shlex.join(["distill", *sys.argv[1:]])
    by = f" by {by}" if by else ""
    return f"stopped{by}; finished work is kept, to go on run it again: {command}"


def ignore_signals() -> None:
    """The command is ending: another signal would only change its exit code."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def finish_on_signal(command: str, work: str = "the current block") -> Iterator[Stopping]:
    """Gives what tells whether to stop after the work in hand."""
    stopping = Stopping()
    heard = threading.Semaphore(0)

    def on_signal(number: int, frame: FrameType | None) -> None:
        heard.release()
        if stopping.heard or not stopping.working:
            _raise(number, frame)
        stopping.by = signal.Signals(number)
        _write(f"{command}: {stopping.by.name}: finishing {work}; once more to stop at once")

    before = _handle(on_signal)
    try:
        with _ends_when_deaf(command, heard):
            yield stopping
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _ends_when_deaf(command: str, heard: threading.Semaphore) -> Iterator[None]:
    """Handlers run between steps of Python: what waits in native code for ever hears none.

    heard: released by each handler. A thread sees each signal as it comes, and ends the process
    where no handler follows.
    """
    seen, tell = os.pipe()
    os.set_blocking(tell, False)
    before = signal.set_wakeup_fd(tell, warn_on_full_buffer=False)

    def watch() -> None:
        times = 0
        while byte := os.read(seen, 1):
            if byte[0] not in SIGNALS:
                continue
            times += 1
            if not heard.acquire(timeout=DEAF_S if times == 1 else DEAF_TWICE_S):
                name = signal.Signals(byte[0]).name
                _write(
                    f"distill: stopped by {name} while {command} waited; finished work is kept, "
                    "run the same command again to go on"
                )
                os._exit(WORK_LEFT)
        os.close(seen)

    threading.Thread(target=watch, name="signals", daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(tell)


def _handle(
    handler: Callable[[int, FrameType | None], None],
) -> dict[signal.Signals, Callable[..., object] | int | None]:
    """The handlers that were there. A SIGHUP that nohup ignores stays ignored."""
    deaf = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    handled = [number for number in SIGNALS if not (deaf and number == signal.SIGHUP)]
    return {number: signal.signal(number, handler) for number in handled}


def _raise(number: int, frame: FrameType | None) -> None:
    """Native code that an import runs cannot pass an exception on: it would abort."""
    interrupted = Interrupted(number)
    while frame is not None:
        if frame.f_code.co_filename == IMPORTING:
            _write(f"distill: {printable(stopped(str(interrupted)))}")
            os._exit(WORK_LEFT)
        frame = frame.f_back
    raise interrupted


def _write(line: str) -> None:
    """Not print: whatever was interrupted may be in the middle of one. Nobody may read it, too."""
    with suppress(OSError):
        os.write(STDERR, f"{line}\n".encode())
