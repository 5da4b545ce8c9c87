"""Progress of long work: a bar with rate and ETA on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

LINE_EVERY_S = 10.0


@runtime_checkable
class Ticker(Protocol):
    """Told of work done."""

    def __call__(self, units: int, note: str = "") -> None:
        """`units` more are done; `note` replaces the text at the end of the line."""
        ...


@contextmanager
def progress(
    title: str, total: int, unit: str, *, done: int = 0, shown: bool = True
) -> Iterator[Ticker]:
    """Show `done` of `total` units, and the rate of those done since the start; or nothing.

    total: 0 where nobody knows.
    """
    if not shown:
        yield lambda units, note="": None
        return
    console = Console(stderr=True)
    form = _bar if console.is_terminal else _lines
    with form(console, title, total, unit, done) as tick:
        yield tick


@contextmanager
def _bar(console: Console, title: str, total: int, unit: str, done: int) -> Iterator[Ticker]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}" + (f"/{total} " if total else " ") + unit),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(title, total=total or None, completed=done, rate="", note="")
        started, fresh = time.monotonic(), 0

        def tick(units: int, note: str = "") -> None:
            nonlocal fresh
            fresh += units
            rate = fresh / max(time.monotonic() - started, 1e-9)
            bar.update(task, advance=units, rate=f"{rate:.0f} {unit}/s", note=note)

        yield tick


@contextmanager
def _lines(console: Console, title: str, total: int, unit: str, done: int) -> Iterator[Ticker]:
    started = last = time.monotonic()
    fresh = 0

    def tick(units: int, note: str = "") -> None:
        nonlocal fresh, last
        fresh += units
        now = time.monotonic()
        if now - last >= LINE_EVERY_S or (total and done + fresh >= total):
            last = now
            rate = fresh / max(now - started, 1e-9)
            count = f"{done + fresh}/{total}" if total else str(fresh)
            left = f", {(total - done - fresh) / max(rate, 1e-9):.0f} s left" if total else ""
            print(
                f"{title}: {count} {unit}, {rate:.0f} {unit}/s{left}{', ' + note if note else ''}",
                file=sys.stderr,
                flush=True,
            )

    yield tick


def note(line: str, *, once: str = "") -> None:
    """Print a line for the user, beside the progress.

    once: what it is about, to be said once by a process, though something may differ.
    """
    if once in _said:
        return
    if once:
        _said.add(once)
    print(line, file=sys.stderr, flush=True)


_said: set[str] = set()
