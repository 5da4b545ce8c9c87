"""Who waits for whom: whether decoding or training limits a run. Said once, when it is known."""

import os
import statistics
import time
from collections.abc import Callable, Iterator

from torch import Tensor

from distill.data.loader import ViewBatch

SKIPPED = 5  # batches: the first ones are slower
LOOK_S, LOOK_BATCHES = 20.0, 10  # at least
NO_STEP = 5  # times as long as most: it was judged meanwhile, or saved
WAITING = 0.05  # share of the time from which on it is decoding that limits
SPARE = 1.1

Batches = Iterator[tuple[ViewBatch, int, Tensor]]


def watched(batches: Batches, processes: int, say: Callable[[str], None]) -> Batches:
    """The batches; says after some of them what limits, and how many processes should decode."""
    images, decoding_s, waits, steps = 0, 0.0, list[float](), list[float]()
    asked, looking = time.perf_counter(), True
    for number, coming in enumerate(batches):
        came = time.perf_counter()
        if looking and number >= SKIPPED:
            batch = coming[0]
            images += len(batch.rows)
            decoding_s += batch.read_s + batch.render_s
            waits.append(came - asked)
        yield coming
        asked = time.perf_counter()
        if looking and number >= SKIPPED:
            steps.append(asked - came)
            if len(steps) >= LOOK_BATCHES and sum(waits) + sum(steps) >= LOOK_S:
                most = NO_STEP * statistics.median(steps)
                training_s = sum(min(step, most) for step in steps)
                say(pace_line(images, decoding_s, sum(waits), training_s, processes))
                looking = False


def pace_line(
    images: int, decoding_s: float, waited_s: float, training_s: float, processes: int
) -> str:
    """What limits. decoding_s: of all processes together; training_s: of steps alone."""
    elapsed_s = waited_s + training_s
    rate, a_core = images / elapsed_s, images / max(decoding_s, 1e-9)
    training = images / max(training_s, 1e-9)
    wanted = max(1, -int(-SPARE * training // a_core))
    if waited_s < WAITING * elapsed_s:
        return (
            f"speed: {rate:.4g} images/s, limited by training; a process decodes {a_core:.4g} "
            f"images/s, and {wanted} would be enough"
        )
    cores = len(os.sched_getaffinity(0))
    cure = f"--workers {wanted}" if processes < wanted <= cores else "more cores"
    return (
        f"speed: {rate:.4g} images/s, limited by decoding, {waited_s / elapsed_s:.0%} of the time "
        f"spent waiting; {processes} processes found, which decode {a_core:.4g} images/s each, "
        f"training would take {training:.4g}: {cure}, or smaller images (`distill data prepare`)"
    )
