"""Decoded views in batches: workers read, decode and render; the caller gets uint8 tensors.

Used by precompute (all views of an image from one decode) and by training (one view each). A bad
image never stops a batch: it comes back as its reason.
"""

import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from distill.data.images import decode_image, read_all
from distill.data.source import ImageSource
from distill.data.view_policy import ViewPolicy
from distill.data.views import Size, draw_view, render_view, resized, view_proof
from distill.errors import DataError, DataUnavailableError, dead_decoder, is_dead_decoder


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

    pixels: for each size that was asked for. proofs: of each view, at the first size. trouble: why
    an image could not be read that may be good.
    """

    rows: list[int]
    pixels: tuple[UInt8[Tensor, "images views 3 _ _"], ...]
    bad: dict[int, str]
    proofs: dict[int, list[str]]
    read_s: float  # seconds of a worker: reading and decoding
    render_s: float  # seconds of a worker: drawing the views
    trouble: str = ""

    def pin_memory(self) -> "ViewBatch":
        """With pixels that a GPU can fetch by itself; called by torch's loader."""
        return replace(self, pixels=tuple(pixels.pin_memory() for pixels in self.pixels))


@dataclass(frozen=True, eq=False)
class _Item:
    request: ViewRequest
    pixels: list[Tensor]  # [views, 3, height, width], one a size; none of a bad image
    reason: str
    passing: bool  # the reason is no fault of the image
    proofs: list[str]
    read_s: float
    render_s: float


class _Views(Dataset[_Item]):
    def __init__(self, source: ImageSource, policy: ViewPolicy, sizes: Sequence[Size]) -> None:
        self.source, self.policy, self.sizes = source, policy, sizes

    def __getitems__(self, requests: list[ViewRequest]) -> list[_Item]:
        """A batch; torch asks for it so. A bucket answers slowly, but many requests at once."""
        samples = self.source.samples
        contents = read_all([samples[request.row] for request in requests])
        return [self._item(*each) for each in zip(requests, contents, strict=True)]

    def _item(self, request: ViewRequest, read: Callable[[], bytes]) -> _Item:
        started = time.perf_counter()
        try:
            image = decode_image(read())
        except DataError as error:
            passing = isinstance(error, DataUnavailableError)
            return _Item(request, [], str(error), passing, [], time.perf_counter() - started, 0.0)
        decoded = time.perf_counter()
        sample_id = self.source.ids[request.row]
        drawn = [draw_view(self.policy, sample_id, view) for view in request.views]
        pixels = []
        for size in self.sizes:
            small = resized(image, self.policy, size)  # once for all views
            pixels.append(torch.stack([render_view(small, params, size) for params in drawn]))
        rendered = time.perf_counter()
        proved = drawn if request.prove else []
        proofs = [view_proof(image, params, self.sizes[0]) for params in proved]
        spent = decoded - started, rendered - decoded
        return _Item(request, pixels, "", False, proofs, *spent)


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

    Raises:
        DataError: a process that decodes was killed.
        DataUnavailableError: images cannot be read now that may be good.
    """
    loader = DataLoader(
        _Views(source, policy, sizes),
        batch_sampler=_Batches(batches),
        collate_fn=_Collate(sizes),
        num_workers=min(workers, len(batches)) if isinstance(batches, Sized) else workers,
        pin_memory=pin_memory,
        worker_init_fn=_leave_signals_to_the_parent,
        generator=torch.Generator(),  # or it would draw from the one that training draws from
    )
    try:
        for batch in loader:
            if batch.trouble:
                raise DataUnavailableError(batch.trouble)
            yield batch
    except (RuntimeError, OSError, EOFError) as error:
        # Dying it may also break the connection through which it hands its pixels over.
        if isinstance(error, RuntimeError) and not is_dead_decoder(error):
            raise
        raise DataError(f"{source.location}: {dead_decoder(error)}") from error


def _leave_signals_to_the_parent(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


@dataclass(frozen=True)
class _Collate:
    sizes: Sequence[Size]

    def __call__(self, items: list[_Item]) -> ViewBatch:
        good = [item for item in items if item.pixels]
        views = len(items[0].request.views)
        return ViewBatch(
            rows=[item.request.row for item in good],
            pixels=tuple(
                torch.stack([item.pixels[i] for item in good])
                if good
                else torch.empty(0, views, 3, *size, dtype=torch.uint8)
                for i, size in enumerate(self.sizes)
            ),
            bad={item.request.row: item.reason for item in items if not item.pixels},
            proofs={item.request.row: item.proofs for item in items if item.proofs},
            read_s=sum(item.read_s for item in items),
            render_s=sum(item.render_s for item in items),
            trouble=next((item.reason for item in items if item.passing), ""),
        )
