"""One process at a time finishes a store; the others wait for it.

To finish is to read all of a store back. Workers that end together would each do so, and a thousand
of them would read a thousand stores. So whoever comes first says so in the store, and again and
again while it works; one that falls silent is taken to be dead, and another does the work. Nothing
depends on it being only one: two that finish write the same bytes.
"""

import json
import os
import random
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from distill.errors import StoreError, printable
from distill.store.format.root import group_document
from distill.store.places.objects import Objects

KEY = "finishing/zarr.json"
BEAT_S, SILENCE_S, LOOK_S = 5.0, 30.0, 2.0

_mine: set[str] = set()  # what this process says at the moment, wherever


@contextmanager
def sole_finisher(
    objects: Objects, done: Callable[[], bool], say: Callable[[str], None]
) -> Iterator[bool]:
    """Whether to finish; waits until no other process does, or `done`. say: once, whom for."""
    turn = secrets.token_hex(8)
    _mine.add(turn)
    try:
        if not _wait_for_turn(objects, turn, done, say):
            yield False
            return
        ended = threading.Event()
        beats = threading.Thread(target=_say_again, args=(objects, turn, ended), daemon=True)
        beats.start()
        try:
            yield not done()  # whoever had the turn may have ended since this one asked
        finally:
            ended.set()
            beats.join()
            with suppress(StoreError):  # then others wait for a while
                objects.delete([KEY])
    finally:
        _mine.discard(turn)


def _wait_for_turn(
    objects: Objects, turn: str, done: Callable[[], bool], say: Callable[[str], None]
) -> bool:
    """True where this process is to finish it; False where there is nothing to finish any more."""
    heard: bytes | None = None
    since = time.monotonic()
    while not done():
        said = objects.read(KEY)
        if said is None:
            if objects.write_new(KEY, _word(turn, 0)):
                return True
            continue
        who = _who(said)
        if said != heard:
            if heard is None:
                named = f"process {who.get('process')} on {who.get('host')}"
                say(f"{printable(named)} finishes the store: waiting for it")
            heard, since = said, time.monotonic()
        if time.monotonic() - since > SILENCE_S or _is_dead(who):
            objects.write(KEY, _word(turn, 0))
            time.sleep(LOOK_S)
            if _who(objects.read(KEY) or b"").get("turn") == turn:  # of several the last one
                return True
            continue
        time.sleep(LOOK_S * random.uniform(0.5, 1.5))  # not all at once
    return False


def _say_again(objects: Objects, turn: str, ended: threading.Event) -> None:
    beat = 0
    while not ended.wait(BEAT_S):
        beat += 1
        with suppress(StoreError):  # whoever hears nothing does the work as well
            objects.write(KEY, _word(turn, beat))


def _word(turn: str, beat: int) -> bytes:
    who = {"host": socket.gethostname(), "process": os.getpid(), "space": _space(), "turn": turn}
    return group_document({**who, "beat": beat})


def _space() -> str:
    """Names where a process's number means that process: this boot, this PID namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return ""


def _who(said: bytes) -> dict[str, Any]:
    with suppress(ValueError, KeyError, TypeError):
        return dict(json.loads(said)["attributes"])
    return {}


def _is_dead(who: dict[str, Any]) -> bool:
    """Whether that is a process here which has ended, as far as can be told."""
    process = who.get("process")
    if not who.get("space") or who["space"] != _space() or type(process) is not int:
        return False
    if process == os.getpid():
        return who.get("turn") not in _mine
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):  # another user's, or no number of a process
        pass
    return False
