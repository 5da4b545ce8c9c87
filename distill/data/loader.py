"""Decoded views in batches: workers read, decode and render; the caller gets uint8 tensors.

Used by precompute (all views of an image from one decode) and by training (one view each). A bad
image never stops a batch: it comes back as its reason.
"""

import mmap
import os
import resource
import shutil
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence, Sized
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain, islice
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from distill.data.drawn import read_views
from distill.data.source import ImageSource
from distill.data.view_policy import ViewPolicy
from distill.data.views import Size
from distill.errors import (
    DataError,
    DataUnavailableError,
    dead_decoder,
    first_line,
    is_dead_decoder,
)
from distill.process_pool import leave_signals_to_the_parent, processes_here
from distill.progress import note

SHARED_MEMORY = "/dev/shm"
AHEAD = 2  # batches of each process that are ready or under way
HELD = 3  # batches that the caller may still have
FILES_OF_WORKER, SPARE_FILES = 4, 24
LOOK_EVERY_S, SAY_EVERY_S, LONGEST_WAIT_S = 5, 30, 1800
BOARD_BYTES = 256


@dataclass(frozen=True, slots=True)
class ViewRequest:
    """One image in some of its views; with `prove` their replay proofs come along."""

    row: int
    views: tuple[int, ...]
    prove: bool = False


def in_batches(
    rows: Sequence[int] | NDArray[np.int64],
    views: tuple[int, ...],
    size: int,
    *,
    prove_below: int = 0,
) -> list[list[ViewRequest]]:
    """Requests for those rows, `size` a batch; rows below `prove_below` are proved."""
    requests = [ViewRequest(row, views, prove=row < prove_below) for row in map(int, rows)]
    return [requests[i : i + size] for i in range(0, len(requests), size)]


@dataclass(frozen=True, eq=False)
class ViewBatch:
    """Pixels of the images that could be decoded, and the reasons of those that could not.

    pixels: for each size that was asked for, the same where sizes are; channels are those of all
    frames, and lie last in memory. proofs: of each view, at the first size. trouble: why an image
    could not be read that may be good.
    """

    rows: list[int]
    pixels: tuple[UInt8[Tensor, "images views channels _ _"], ...]
    bad: dict[int, str]
    proofs: dict[int, list[str]]
    read_s: float  # seconds of a worker: reading and decoding
    render_s: float  # seconds of a worker: drawing the views
    trouble: str = ""

    def pin_memory(self) -> "ViewBatch":
        """With pixels that a GPU can fetch by itself; called by torch's loader."""
        pinned = {id(pixels): pixels.pin_memory() for pixels in {*self.pixels}}
        return replace(self, pixels=tuple(pinned[id(pixels)] for pixels in self.pixels))


class _Views(Dataset[ViewBatch]):
    def __init__(
        self,
        source: ImageSource,
        policy: ViewPolicy,
        sizes: Sequence[Size],
        channels: int,
        board: "_Board",
    ) -> None:
        self.source, self.policy, self.sizes = source, policy, sizes
        self.channels, self.board = channels, board

    def __getitems__(self, requests: list[ViewRequest]) -> ViewBatch:
        """A batch; torch asks for it so. A bucket answers slowly, but many requests at once.

        Views are written to where the caller finds them, as they are decoded: channels last.
        """
        keys = [self.source.samples[request.row].key for request in requests]
        self.board.write(f"reads {keys[0]!r} and {len(keys) - 1} more")
        views = len(requests[0].views)
        try:
            room = {
                size: _shared(len(requests), views, *size, self.channels)
                for size in dict.fromkeys(self.sizes)
            }
        except (RuntimeError, OSError) as error:  # too many open files, or no shared memory
            if not get_worker_info():
                raise
            self.board.give_up(error)
        rows: list[int] = []
        bad: dict[int, str] = {}
        proofs: dict[int, list[str]] = {}
        trouble, read_s, render_s = "", 0.0, 0.0
        wanted = [(request.row, request.views) for request in requests]
        reads = read_views(self.source, self.policy, wanted)
        for key, request, read in zip(keys, requests, reads, strict=True):
            self.board.write(f"reads or decodes {key!r}")
            started = time.perf_counter()
            try:
                drawn = read()
            except DataError as error:
                bad[request.row] = str(error)
                if isinstance(error, DataUnavailableError):
                    trouble = trouble or str(error)
                read_s += time.perf_counter() - started
                continue
            decoded = time.perf_counter()
            for pixels in room.values():
                drawn.render_into(pixels[len(rows)].numpy())
            read_s, render_s = read_s + decoded - started, render_s + time.perf_counter() - decoded
            if request.prove:
                proofs[request.row] = drawn.proofs(self.sizes[0])
            rows.append(request.row)
        filled = {size: pixels[: len(rows)].permute(0, 1, 4, 2, 3) for size, pixels in room.items()}
        return ViewBatch(
            rows=rows,
            pixels=tuple(filled[size] for size in self.sizes),
            bad=bad,
            proofs=proofs,
            read_s=read_s,
            render_s=render_s,
            trouble=trouble,
        )


def _shared(*shape: int) -> UInt8[Tensor, "images views height width channels"]:
    """Room for pixels; in a process that decodes, where the others can see it without a copy."""
    room = torch.empty(shape, dtype=torch.uint8)
    return room.share_memory_() if get_worker_info() else room


def _as_it_is(batch: Any) -> Any:
    """Not collated: `_Views` gives whole batches."""
    return batch


class _Batches(Sampler[list[ViewRequest]]):
    def __init__(self, batches: Iterable[list[ViewRequest]]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[list[ViewRequest]]:
        return iter(self.batches)


def load_views(
    source: ImageSource,
    policy: ViewPolicy,
    sizes: Sequence[Size],
    batches: Iterable[list[ViewRequest]],
    *,
    workers: int,
    pin_memory: bool = False,
) -> Iterator[ViewBatch]:
    """The requested batches, in order; `batches` is read a few ahead, so it may be endless.

    workers: processes; 0 decodes in this one.

    As many batches are in flight as shared memory holds; where it is small, fewer than usual.

    Raises:
        StoreMismatchError: views of images are asked for of clips, or the other way round.
        DataError: a process that decodes was killed, or cannot hand over what it decoded.
        DataUnavailableError: images cannot be read now that may be good, or none comes at all.
    """
    source.require_frames(policy.frames)
    channels = 3 * max(1, source.frames)
    if isinstance(batches, Sized):
        workers = min(workers, len(batches))
    coming = iter(batches)
    first = list(islice(coming, 1))
    workers, ahead = _that_fit(workers, first, sizes, channels)
    board = _Board(workers)
    # Of more processes than CPUs: reading waits, so they may be of use.
    warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
    loader = DataLoader(
        _Views(source, policy, sizes, channels, board),
        batch_sampler=_Batches(chain(first, coming)),
        collate_fn=_as_it_is,
        num_workers=workers,
        prefetch_factor=ahead,
        timeout=LOOK_EVERY_S if workers else 0,
        pin_memory=pin_memory,
        worker_init_fn=board.begin,
        # As on Linux by default; not so in a process of `distill.process_pool`, nor in Python 3.14.
        multiprocessing_context="fork" if workers else None,
        generator=torch.Generator(),  # or it would draw from the one that training draws from
    )
    coming_views = iter(loader)
    try:
        for batch in _patiently(coming_views, board):
            if batch.trouble:
                raise DataUnavailableError(batch.trouble)
            yield batch
    except (RuntimeError, OSError, EOFError) as error:
        for process in getattr(coming_views, "_workers", ()):  # they hear no SIGTERM
            process.kill()
        # Dying it may also break the connection through which it hands its pixels over.
        if isinstance(error, RuntimeError) and not is_dead_decoder(error):
            raise
        why = board.last_words() or error
        raise DataError(f"{source.location}: {dead_decoder(why)}") from error


def _that_fit(
    workers: int, first: Sequence[Sequence[ViewRequest]], sizes: Sequence[Size], channels: int
) -> tuple[int, int | None]:
    """How many processes, and batches ahead for each, this machine has room for."""
    if not workers or not first:
        return workers, None
    views = sum(len(request.views) for request in first[0])
    batch = views * channels * sum(height * width for height, width in {*sizes})
    together = processes_here()
    wanted, ahead = workers, AHEAD
    with suppress(OSError):
        free = shutil.disk_usage(SHARED_MEMORY).free // together
        room = max(0, free // batch - HELD)
        if room < workers * ahead:
            workers, ahead = min(workers, room), 1
            note(
                f"{SHARED_MEMORY} has {free / 2**20:.0f} MiB free and a batch takes "
                f"{batch / 2**20:.1f} MiB: {workers} of {wanted} processes decode, one batch "
                "ahead; give more, as `docker run --shm-size 8g`, or lower --batch-size",
                once=SHARED_MEMORY,
            )
    with suppress(OSError):
        most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        each = FILES_OF_WORKER + ahead * (len(sizes) + 1)
        opened = sum(1 for _ in Path("/proc/self/fd").iterdir())
        room = max(0, (most - opened - SPARE_FILES) // each)
        if room < workers:
            workers = room
            note(
                f"{most} files may be open: {workers} of {wanted} processes decode; allow more "
                "(`ulimit -n 65536`)",
                once="open files",
            )
    return workers, ahead if workers else None


def _patiently(batches: Iterator[ViewBatch], board: "_Board") -> Iterator[ViewBatch]:
    """Each batch as it comes; says who is waited for, and not for ever."""
    waited = 0
    while True:
        try:
            batch = next(batches, None)
        except RuntimeError as error:
            if not str(error).startswith("DataLoader timed out"):
                raise
            waited += LOOK_EVERY_S
            if waited >= LONGEST_WAIT_S:
                raise DataUnavailableError(
                    f"no images for {waited} s ({board}), expected a disk or a network that "
                    "answers; finished work is kept: fix it, then run the same command again"
                ) from error
            if waited % SAY_EVERY_S == 0:
                note(f"waiting for images for {waited} s: {board}")
            continue
        if batch is None:
            return
        waited = 0
        yield batch


class _Board:
    """A line of each process that decodes, which the others can read: memory that forks share."""

    def __init__(self, workers: int) -> None:
        self._mine, self._last_words = 0, max(1, workers)
        self._lines = mmap.mmap(-1, BOARD_BYTES * (self._last_words + 1))

    def begin(self, worker: int) -> None:
        """In a process that was forked for it."""
        leave_signals_to_the_parent()
        self._mine = worker
        # A batch that cannot be handed over would only be missed, and waited for without end.
        Queue._on_queue_feeder_error = lambda error, thing: self.give_up(error)  # type: ignore[attr-defined]

    def write(self, line: str) -> None:
        """What this process does now."""
        self._write(self._mine, line)

    def last_words(self) -> str:
        """Why a process gave up; nothing where none did."""
        return self._read(self._last_words)

    def __str__(self) -> str:
        """What all do."""
        lines = (self._read(worker) for worker in range(self._last_words))
        return "; ".join(f"process {i} {line}" for i, line in enumerate(lines) if line)

    def give_up(self, error: BaseException) -> NoReturn:
        """End this process, which cannot hand over its images."""
        self._write(self._last_words, f"it cannot hand over its images: {first_line(error)}")
        os._exit(1)

    def _write(self, place: int, line: str) -> None:
        content = line.encode("utf-8", "backslashreplace")[:BOARD_BYTES].ljust(BOARD_BYTES, b"\0")
        self._lines[place * BOARD_BYTES : (place + 1) * BOARD_BYTES] = content

    def _read(self, place: int) -> str:
        content = self._lines[place * BOARD_BYTES : (place + 1) * BOARD_BYTES]
        return content.rstrip(b"\0").decode("utf-8", "replace")
