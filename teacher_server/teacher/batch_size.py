"""How large a batch, and whether to compile: measured, where the run is long enough to pay for it.

A run that goes on takes what its finished blocks were computed with: then it gives the same bits.
"""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from distill.errors import ConfigError, first_line
from distill.events import Journal
from distill.targets.encoding import EncodingSpec
from distill.teacher_server.teacher.forward_pass import Forward
from distill.teacher_server.teacher.teacher import Teacher

SMALLEST, LARGEST = 8, 1024
UNTUNED = {"cpu": 16, "cuda": 64}
TUNED_FROM = 2048  # views; a shorter run is over before measuring pays
SHARE_OF_RUN = 0.02  # of the time that a run will take may be spent on measuring
WORTH = 1.03  # a faster setting must be this much faster
COMPILE_PAYS_S = 900.0  # runs that are longer; compiling takes half a minute to two


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """batch_size: views in one pass. views_per_s: measured; None where it was not."""

    batch_size: int
    compiled: bool = False
    views_per_s: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return a document for a commit record."""
        return {"batch_size": self.batch_size, "compiled": self.compiled}


def choose_speed(
    teacher: Teacher,
    spec: EncodingSpec,
    *,
    views: int,
    frames: int,
    batch_size: int | None,
    compiled: bool | None,
    earlier: Mapping[str, Any] | None,
    journal: Journal,
) -> Throughput:
    """What to run `views` views with. batch_size, compiled: None is to be found out.

    frames: of each view, 0 of images. earlier: `Throughput.to_json` of a block that is finished
    already.
    """
    requested = bool(compiled)
    if earlier:
        batch_size = batch_size or int(earlier["batch_size"])
        compiled = bool(earlier["compiled"]) if compiled is None else compiled
    untuned = min(_for_clips(UNTUNED.get(teacher.device.type, 16), frames), max(1, views))
    speed = Throughput(batch_size=batch_size or untuned)
    if views >= TUNED_FROM and batch_size is None:
        speed = _best_batch(teacher, spec, views, frames)
    if compiled:
        speed = _compiled_if_possible(
            teacher, spec, speed, frames, requested=requested, journal=journal
        )
    elif views >= TUNED_FROM and compiled is None:
        speed = _compiled_if_faster(teacher, spec, speed, views, frames, journal)
    journal.event("speed chosen", **asdict(speed))
    return speed


def measure(forward: Forward, batch_size: int, frames: int = 0) -> float:
    """Views a second of random pixels, after some that are not counted. frames: of each view.

    Raises:
        TeacherError: not even one view fits into memory.
    """
    pixels = [
        torch.randint(0, 256, (batch_size, 3 * max(1, frames), *size), dtype=torch.uint8)
        for size in forward.teacher.sizes
    ]
    for _ in range(2):
        started = time.perf_counter()
        launched = [forward.launch(pixels) for _ in range(forward.lanes)]
        for each in launched:
            forward.collect(each)
        seconds = time.perf_counter() - started
    return forward.lanes * batch_size / seconds


def _for_clips(batch_size: int, frames: int) -> int:
    return max(1, batch_size // max(1, frames))


def _best_batch(teacher: Teacher, spec: EncodingSpec, views: int, frames: int) -> Throughput:
    """Twice as large as long as it is worth it, and as it takes a small share of the run."""
    best = Throughput(batch_size=_for_clips(SMALLEST, frames))
    started = time.perf_counter()
    batch_size = best.batch_size
    while batch_size <= min(_for_clips(LARGEST, frames), views):
        with Forward(teacher, spec, batch_size=batch_size) as forward:
            rate = measure(forward, batch_size, frames)
            if forward.batch_size < batch_size:  # memory ran out
                break
        if rate < WORTH * (best.views_per_s or 0):
            break
        best = Throughput(batch_size=batch_size, views_per_s=rate)
        if time.perf_counter() - started > SHARE_OF_RUN * views / rate:
            break
        batch_size *= 2
    return best


def _compiled_if_faster(
    teacher: Teacher,
    spec: EncodingSpec,
    eager: Throughput,
    views: int,
    frames: int,
    journal: Journal,
) -> Throughput:
    size = eager.batch_size
    rate = eager.views_per_s
    if rate is None:
        with Forward(teacher, spec, batch_size=size) as forward:
            rate = measure(forward, size, frames)
    if views / rate < COMPILE_PAYS_S:
        return eager
    compiled = _compiled_if_possible(teacher, spec, eager, frames, requested=False, journal=journal)
    return compiled if (compiled.views_per_s or 0) >= WORTH * rate else eager


def _compiled_if_possible(
    teacher: Teacher,
    spec: EncodingSpec,
    eager: Throughput,
    frames: int,
    *,
    requested: bool,
    journal: Journal,
) -> Throughput:
    size = eager.batch_size
    try:
        with Forward(teacher, spec, batch_size=size, compiled=True) as forward:
            rate = measure(forward, size, frames)
    except Exception as error:  # compilers raise whatever is wrong with them
        if requested:
            raise ConfigError(
                f"teacher {teacher.identity.name}: cannot be compiled here ({first_line(error)}), "
                "expected a compiler that torch can use; use --no-compile"
            ) from error
        journal.event("not compiled", error=type(error).__name__, text=str(error)[:500])
        return eager
    return Throughput(batch_size=size, compiled=True, views_per_s=rate)
