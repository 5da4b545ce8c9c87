"""Decoded views in batches: workers read, decode and render; the caller gets uint8 tensors.

Used by precompute (all views of an image from one decode) and by training (one view each). A bad
image never stops a batch: it comes back as its reason.
"""

import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from distill.data import ImageSource, read_image
from distill.errors import DataError
from distill.views import ViewPolicy, draw_view, pixel_digest, render_view


@dataclass(frozen=True, slots=True)
class ViewRequest:
    """One image in some of its views; with `prove` the pixels' digests come along."""

    row: int
    views: tuple[int, ...]
    prove: bool = False


@dataclass(frozen=True, eq=False)
class ViewBatch:
    """Pixels of the images that could be decoded, and the reasons of those that could not."""

    rows: list[int]
    pixels: UInt8[Tensor, "images views 3 height width"]
    bad: dict[int, str]
    digests: dict[int, list[str]]


class _Views(Dataset[tuple[ViewRequest, Tensor | str, list[str]]]):
    def __init__(self, source: ImageSource, policy: ViewPolicy, size: tuple[int, int]) -> None:
        self.source, self.policy, self.size = source, policy, size

    def __getitem__(self, request: ViewRequest) -> tuple[ViewRequest, Tensor | str, list[str]]:
        try:
            image = read_image(self.source.samples[request.row])
        except DataError as error:
            return request, str(error), []
        sample_id = self.source.ids[request.row]
        views = [
            render_view(image, draw_view(self.policy, sample_id, view), self.size)
            for view in request.views
        ]
        digests = [pixel_digest(view) for view in views] if request.prove else []
        return request, torch.stack(views), digests


class _Batches(Sampler[list[ViewRequest]]):
    def __init__(self, batches: Sequence[list[ViewRequest]]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[list[ViewRequest]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def load_views(
    source: ImageSource,
    policy: ViewPolicy,
    size: tuple[int, int],
    batches: Sequence[list[ViewRequest]],
    *,
    workers: int,
    pin_memory: bool = False,
) -> Iterator[ViewBatch]:
    """The requested batches, in order. workers: processes; 0 decodes in this one."""
    loader = DataLoader(
        _Views(source, policy, size),
        batch_sampler=_Batches(batches),
        collate_fn=_collate,
        num_workers=min(workers, len(batches)),
        pin_memory=pin_memory,
        worker_init_fn=_leave_interrupts_to_the_parent,
    )
    return iter(loader)


def _leave_interrupts_to_the_parent(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _collate(items: list[tuple[ViewRequest, Tensor | str, list[str]]]) -> ViewBatch:
    good = [(request.row, views) for request, views, _ in items if isinstance(views, Tensor)]
    return ViewBatch(
        rows=[row for row, _ in good],
        pixels=torch.stack([views for _, views in good])
        if good
        else torch.empty(0, 0, 3, 0, 0, dtype=torch.uint8),
        bad={request.row: views for request, views, _ in items if isinstance(views, str)},
        digests={request.row: digests for request, _, digests in items if digests},
    )
