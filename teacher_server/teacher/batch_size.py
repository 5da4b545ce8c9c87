"""How a pass is made: how large a batch, how many threads on it, and whether it is compiled.

Measured, where the run is long enough to pay for it.

A run that goes on takes what its finished blocks were computed with: then it gives the same bits.
"""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from distill.errors import ConfigError, first_line
from distill.events import Journal
from distill.targets.encoding import EncodingSpec
from distill.teacher_server.teacher.forward_pass import Encoded, Forward
from distill.teacher_server.teacher.teacher import Teacher

SMALLEST = {"cpu": 8, "cuda": 64}
LARGEST = 1024
UNTUNED = {"cpu": 16, "cuda": 64}
TUNED_FROM = 2048  # views; a shorter run is over before measuring pays
SHARE_OF_RUN = 0.02  # of the time that a run will take may be spent on measuring
ENOUGH_S = 0.3  # of measuring one setting
WORTH = 1.03  # a faster setting must be this much faster
EMPTY, MOST_PASSES = 0.03, 8
COMPILE_PAYS_S = 900.0  # runs that are longer; compiling takes half a minute to two
Clock = Callable[[], float]


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """batch_size: views in one pass. threads: of a CPU that work on one; the others on others.

    views_per_s: measured; None where it was not.
    """

    batch_size: int
    threads: int = 1
    compiled: bool = False
    views_per_s: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return a document for a commit record."""
        return {
            "batch_size": self.batch_size,
            "threads": self.threads,
            "compiled": self.compiled,
        }


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
    requested, threads = bool(compiled), 1
    if earlier:
        batch_size = batch_size or int(earlier["batch_size"])
        threads = int(earlier.get("threads", 1))
        compiled = bool(earlier["compiled"]) if compiled is None else compiled
    untuned = min(_for_clips(UNTUNED.get(teacher.device.type, 16), frames), max(1, views))
    speed = Throughput(batch_size=batch_size or untuned, threads=threads)
    if views >= TUNED_FROM and batch_size is None:
        speed = best_pass(
            lambda size, threads: Forward(teacher, spec, batch_size=size, threads=threads),
            partial(random_pixels, teacher, frames=frames),
            smallest=_for_clips(SMALLEST.get(teacher.device.type, 8), frames),
            largest=_for_clips(LARGEST, frames),
            threads=shares_of_threads(teacher.device),
            views=views,
        )
    if compiled:
        speed = _compiled_if_possible(
            teacher, spec, speed, frames, requested=requested, journal=journal
        )
    elif views >= TUNED_FROM and compiled is None:
        speed = _compiled_if_faster(teacher, spec, speed, views, frames, journal)
    journal.event("speed chosen", **asdict(speed))
    return speed


def measure(forward: Forward, pixels: Sequence[Tensor], clock: Clock = time.perf_counter) -> float:
    """Views a second of one batch again and again, as many under way as in a run.

    From the first launch to the last answer, the same number in each lane: lanes get out of step,
    and a window between two answers would count what was begun before it. To be called after
    `warm_up`.

    Raises:
        TeacherError: not even one view fits into memory.
    """
    under_way: deque[Future[list[Encoded]]] = deque()
    launched, started = 0, clock()
    while launched % forward.lanes or clock() - started < ENOUGH_S:
        if len(under_way) == forward.in_flight:
            forward.collect(under_way.popleft())
        under_way.append(forward.launch(pixels))
        launched += 1
    for each in under_way:
        forward.collect(each)
    return launched * len(pixels[0]) / (clock() - started)


def warm_up(forward: Forward, pixels: Sequence[Tensor]) -> None:
    """What happens once: kernels are loaded, memory is allocated, a model is compiled.

    Raises:
        TeacherError: not even one view fits into memory.
    """
    for each in [forward.launch(pixels) for _ in range(forward.lanes)]:
        forward.collect(each)


def random_pixels(teacher: Teacher, batch_size: int, frames: int = 0) -> list[Tensor]:
    """A batch for each of the teacher's sizes, as a loader hands it over. frames: of each view."""
    shapes = [(batch_size, *size, 3 * max(1, frames)) for size in teacher.sizes]
    pixels = [
        torch.randint(0, 256, shape, dtype=torch.uint8).permute(0, 3, 1, 2) for shape in shapes
    ]
    return [each.pin_memory() for each in pixels] if teacher.device.type == "cuda" else pixels


def shares_of_threads(device: torch.device) -> tuple[int, ...]:
    """How many of a CPU's threads may work on one batch: one, 4, 16 … and all."""
    most = torch.get_num_threads() if device.type == "cpu" else 1
    return (*(4**i for i in range(most.bit_length()) if 4**i < most), most)


def best_pass(
    forward_of: Callable[[int, int], Forward],
    pixels_of: Callable[[int], Sequence[Tensor]],
    *,
    smallest: int,
    largest: int,
    threads: Sequence[int],
    views: int,
    clock: Clock = time.perf_counter,
) -> Throughput:
    """The smallest batch that is about as fast as any, found in a small share of the run.

    Twice as large each time, until two in a row were not worth it, with each number of threads.
    forward_of, pixels_of: for a batch size, and threads.

    Raises:
        TeacherError: not even one view fits into memory.
    """
    found: list[Throughput] = []
    started, fastest, size, fits = None, 0.0, smallest, smallest
    best, stale = dict.fromkeys(threads, 0.0), dict.fromkeys(threads, 0)
    while stale and size <= min(largest, views):
        pixels = pixels_of(size)
        for share in [*stale]:
            with forward_of(size, share) as forward:
                warm_up(forward, pixels)
                started = clock() if started is None else started  # the first loads kernels, once
                rate = measure(forward, pixels, clock)
            if forward.batch_size < size:  # memory ran out
                fits = min(fits, forward.batch_size)
                del stale[share]
                continue
            found.append(Throughput(batch_size=size, threads=share, views_per_s=rate))
            stale[share] = 0 if rate >= WORTH * best[share] else stale[share] + 1
            best[share], fastest = max(best[share], rate), max(fastest, rate)
            if stale[share] == 2:
                del stale[share]
            if clock() - started > SHARE_OF_RUN * views / fastest:
                stale.clear()
                break
        size *= 2
    return _smallest(found, fastest) or Throughput(batch_size=fits)


def _smallest(found: Sequence[Throughput], fastest: float) -> Throughput | None:
    return next((each for each in found if WORTH * (each.views_per_s or 0) >= fastest), None)


def images_together(batch_size: int, views: int) -> int:
    """How many images are loaded at once, so that their views fill passes.

    The fewest that leave less than 3% of their passes empty, or, up to eight passes, the least.
    """

    def empty(images: int) -> float:
        return 1 - images * views / (-(-images * views // batch_size) * batch_size)

    some = range(1, max(1, MOST_PASSES * batch_size // views) + 1)
    return next((images for images in some if empty(images) < EMPTY), min(some, key=empty))


def _for_clips(batch_size: int, frames: int) -> int:
    return max(1, batch_size // max(1, frames))


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
        rate = _measured(
            Forward(teacher, spec, batch_size=size, threads=eager.threads), size, frames
        )
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
        forward = Forward(teacher, spec, batch_size=size, threads=eager.threads, compiled=True)
        rate = _measured(forward, size, frames)
    except Exception as error:  # compilers raise whatever is wrong with them
        if requested:
            raise ConfigError(
                f"teacher {teacher.identity.name}: cannot be compiled here ({first_line(error)}), "
                "expected a compiler that torch can use; use --no-compile"
            ) from error
        journal.event("not compiled", error=type(error).__name__, text=str(error)[:500])
        return eager
    return replace(eager, compiled=True, views_per_s=rate)


def _measured(forward: Forward, batch_size: int, frames: int) -> float:
    pixels = random_pixels(forward.teacher, batch_size, frames)
    with forward:
        warm_up(forward, pixels)
        return measure(forward, pixels)
