"""Who waits for whom: whether decoding or training limits a run. Said once, when it is known."""

import time
from collections.abc import Callable, Iterator

from torch import Tensor

from distill.data.loader import ViewBatch

SKIPPED = 5  # batches: the first ones are slower
LOOK_S, LOOK_BATCHES = 20.0, 10  # at least
WAITING = 0.05  # share of the time from which on it is decoding that limits
SPARE = 1.1

Batches = Iterator[tuple[ViewBatch, int, Tensor]]


def watched(batches: Batches, processes: int, say: Callable[[str], None]) -> Batches:
    """The batches; says after some of them what limits, and how many processes should decode."""
    images, decoding_s, waited_s, begun, number = 0, 0.0, 0.0, time.perf_counter(), 0
    looking = True
    while True:
        asked = time.perf_counter()
        try:
            coming = next(batches)
        except StopIteration:
            return
        now = time.perf_counter()
        number += 1
        if looking and number <= SKIPPED:
            begun = now
        elif looking:
            batch = coming[0]
            images += len(batch.rows)
            decoding_s += batch.read_s + batch.render_s
            waited_s += now - asked
            if now - begun >= LOOK_S and number - SKIPPED >= LOOK_BATCHES:
                looking = False
                say(pace_line(images, decoding_s, waited_s, now - begun, processes))
        yield coming


def pace_line(
    images: int, decoding_s: float, waited_s: float, elapsed_s: float, processes: int
) -> str:
    """What limits, of a look of `elapsed_s`. decoding_s: of all processes together."""
    rate, training = images / elapsed_s, images / max(elapsed_s - waited_s, 1e-9)
    a_core = images / max(decoding_s, 1e-9)
    wanted = max(1, -int(-SPARE * training // a_core))
    if waited_s < WAITING * elapsed_s:
        return (
            f"speed: {rate:.4g} images/s, limited by training; a process decodes {a_core:.4g} "
            f"images/s, and {wanted} would be enough"
        )
    return (
        f"speed: {rate:.4g} images/s, limited by decoding, {waited_s / elapsed_s:.0%} of the time "
        f"spent waiting; {processes} processes of {a_core:.4g} images/s each found, training at "
        f"{training:.4g} images/s wants {wanted}: --workers {wanted}, smaller images, or `distill "
        "data prepare`"
    )
