"""Work shared by processes: units in, results out as they come."""

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from multiprocessing import (
    active_children,
    forkserver,
    get_context,
    parent_process,
    resource_tracker,
)
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from typing import TypeVar

from distill.errors import DataError, dead_decoder

Unit = TypeVar("Unit")
Result = TypeVar("Result")
AHEAD = 2  # units in hand for each process, so that none waits
FORKSERVER = get_context("forkserver")


@dataclass
class _Here:
    """What is known of this process, where it is one of a pool."""

    stop: Event | None = None
    index: int = 0


_here = _Here()


def asked_to_stop() -> bool:
    """In a unit that takes long: whether to end it early, as a signal asked."""
    return _here.stop is not None and _here.stop.is_set()


def worker_index() -> int:
    """In a unit: which process of the pool this is, from 0."""
    return _here.index


def processes_here() -> int:
    """How many torchrun started on this machine, which share its cores and memory."""
    said = os.environ.get("LOCAL_WORLD_SIZE", "")
    return max(1, int(said)) if said.isascii() and said.isdecimal() else 1


def warm_up(work: Callable[..., object]) -> None:
    """Begin to start what processes for `work` will be forked from; returns at once."""
    FORKSERVER.set_forkserver_preload([work.__module__])
    _start_server()


def _start_server() -> None:
    """What a signal ends takes the processes that it forked along: none reaches it."""
    resource_tracker.ensure_running()  # or it would be started in between, and lift the mask
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGHUP))
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def map_in_processes(
    work: Callable[[Unit], Result],
    units: Iterable[Unit],
    workers: int,
    *,
    stopping: Callable[[], bool] = lambda: False,
) -> Iterator[Result]:
    """`work` of each unit, in the order in which they are done.

    The processes are started fresh, so nothing of this one is copied into them; they end when it
    does. workers: 0 works in this one. stopping: asked before a unit is begun; what is in hand is
    finished, as far as it does not ask `asked_to_stop`.

    Raises:
        DataError: a process was killed. Whatever `work` raises.
    """
    if workers == 0:
        for unit in units:
            if stopping():
                return
            yield work(unit)
        return
    _start_server()
    stop, count = FORKSERVER.Event(), FORKSERVER.Value("i", 0)
    pool = ProcessPoolExecutor(workers, FORKSERVER, _begin, (stop, count))
    waiting: set[Future[Result]] = set()
    todo = iter(units)
    try:
        while True:
            while len(waiting) < AHEAD * workers and not stopping():
                if not (begun := list(islice(todo, 1))):
                    break
                waiting.add(pool.submit(work, *begun))
            if stopping():
                stop.set()
                waiting = {future for future in waiting if not future.cancel()}
            if not waiting:
                return
            done, waiting = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
    except BrokenProcessPool as error:
        raise DataError(dead_decoder(error)) from error
    except KeyboardInterrupt:  # at once
        for process in active_children():
            process.kill()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _begin(stop: Event, count: "Synchronized[int]") -> None:
    """In a process of a pool."""
    end_with_parent()
    with count.get_lock():
        _here.stop, _here.index = stop, count.value
        count.value += 1


def leave_signals_to_the_parent() -> None:
    """In a process that works for another: a terminal and a launcher send them to all."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.set_wakeup_fd(-1)  # a fork has the parent's


def end_with_parent() -> None:
    """In a process that works for another: without that one it ends, and signals are its affair."""
    leave_signals_to_the_parent()
    parent = parent_process()
    assert parent

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
