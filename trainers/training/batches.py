"""Which images a process gets at which step, and the batches of them, a few ahead.

A step takes the next `batch_size` rows of the order, whatever the number of processes; each process
takes its parts of them.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped, UInt8
from numpy.typing import NDArray
from torch import Tensor

from distill.data.loader import ViewBatch, ViewRequest, in_batches, load_views
from distill.data.order import SampleOrder
from distill.data.source import ImageSource
from distill.data.view_policy import ViewPolicy
from distill.data.views import Size
from distill.errors import ConfigError, DataError
from distill.targets.protocol import TrainingTargets
from distill.targets.tensors import TeacherTargets
from distill.trainers.process_group import World
from distill.trainers.recipe import Recipe

MOST_OF_A_BATCH = 0.5  # without an answer: more is no bad image, but a server in trouble


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingSet:
    """kept: [rows of source], which are trained on. order: of all rows.

    max_bad_fraction: share of images that cannot be read, or have no answer of the teacher, beyond
    which training stops. bad, untaught: those found.
    """

    source: ImageSource
    kept: NDArray[np.bool_]
    order: SampleOrder
    policy: ViewPolicy
    targets: TrainingTargets | None
    max_bad_fraction: float = 0.001
    bad: dict[int, str] = field(default_factory=dict)
    untaught: set[int] = field(default_factory=set)

    def __len__(self) -> int:
        return int(self.kept.sum())

    def steps_per_epoch(self, recipe: Recipe, world: World) -> int:
        """Batches in an epoch.

        Raises:
            ConfigError: there is none, or its parts are too small.
        """
        parts = world.size * recipe.accumulate
        if recipe.batch_size < 2 * parts:
            raise ConfigError(
                f"batch_size {recipe.batch_size} found for {world.size} processes × "
                f"{recipe.accumulate} parts, expected two images for each; raise --batch-size"
            )
        whole, left = divmod(len(self), recipe.batch_size)
        steps = whole + (not recipe.drop_last and left >= 2 * parts)
        if not steps:
            raise ConfigError(
                f"{len(self)} training images found, expected at least one batch of "
                f"{recipe.batch_size}; lower --batch-size"
            )
        return steps

    def left_out(self, recipe: Recipe, world: World) -> int:
        """How many images of each epoch are not learned from: they fill no batch."""
        return max(0, len(self) - self.steps_per_epoch(recipe, world) * recipe.batch_size)

    def pixels_for_teacher(self, batch: ViewBatch) -> list[UInt8[Tensor, "batch channels _ _"]]:
        """At each size that the targets need."""
        wanted = self.targets is not None and self.targets.sizes
        return [pixels[:, 0] for pixels in batch.pixels[1:]] if wanted else []

    def batches(
        self,
        recipe: Recipe,
        world: World,
        *,
        first_step: int,
        size: Size,
        workers: int,
        pin_memory: bool,
    ) -> Iterator[tuple[ViewBatch, int]]:
        """This process's parts of every step from `first_step` on, one view of each image.

        Each with the number of images of its step; at the student's `size`, then at those that the
        targets need. Targets are told of a batch some batches before its turn.
        """
        targets, ids = self.targets, self.source.ids
        sizes = [size, *(targets.sizes if targets else ())]
        wanted: deque[tuple[int, int]] = deque()
        coming: deque[tuple[ViewBatch, int]] = deque()

        def requests() -> Iterator[list[ViewRequest]]:
            for epoch, images, rows in self._parts(recipe, world, first_step):
                wanted.append((epoch, images))
                view = targets.drawn_view(epoch) if targets else epoch
                yield from in_batches(rows, (view,), len(rows))

        for batch in load_views(
            self.source, self.policy, sizes, requests(), workers=workers, pin_memory=pin_memory
        ):
            self._note_bad(batch)
            epoch, images = wanted.popleft()
            if targets:
                pixels = self.pixels_for_teacher(batch)
                targets.announce(ids[batch.rows], targets.view(epoch), pixels)
            coming.append((batch, images))
            if len(coming) > (targets.ahead if targets else 0):
                yield coming.popleft()
        yield from coming

    def note_untaught(self, rows: list[int], answers: TeacherTargets) -> int:
        """How many of `rows`, a batch, the targets have no answer for.

        Raises:
            DataError: they are too many, of the batch or of all.
        """
        missing = [rows[i] for i in answers.unanswered]
        if not missing:
            return 0
        self.untaught.update(missing)
        of_batch = len(missing) > max(MOST_OF_A_BATCH, self.max_bad_fraction) * len(rows)
        if of_batch or len(self.untaught) > self.max_bad_fraction * len(self):
            where = self.targets.location if self.targets else "the targets"
            found = (
                f"{len(missing)} of {len(rows)} images of a batch"
                if of_batch
                else f"{len(self.untaught)} of {len(self)} images"
            )
            raise DataError(
                f"{where}: no answer for {found} (first: {self.source.samples[missing[0]].key!r}), "
                f"expected at most {self.max_bad_fraction:.2%} of the data; the teacher could not "
                "read them: repair the data, or raise --max-bad-fraction"
            )
        return len(missing)

    def _note_bad(self, batch: ViewBatch) -> None:
        self.bad.update(batch.bad)
        if len(self.bad) > self.max_bad_fraction * len(self):
            first, reason = next(iter(self.bad.items()))
            raise DataError(
                f"{self.source.location}: {len(self.bad)} of {len(self)} images cannot be read "
                f"(first: {self.source.samples[first].key!r}, {reason}), expected at most "
                f"{self.max_bad_fraction:.2%}; repair the data, or raise --max-bad-fraction"
            )
        if len(batch.rows) < 2:  # batch norm needs two
            reasons = ", ".join(sorted(set(batch.bad.values())))
            raise DataError(
                f"{self.source.location}: {len(batch.rows)} images of a batch can be read "
                f"({reasons}), expected at least two good ones; repair the data"
            )

    def _parts(
        self, recipe: Recipe, world: World, first_step: int
    ) -> Iterator[tuple[int, int, NDArray[np.int64]]]:
        """Epoch, images of the step, and rows."""
        steps = self.steps_per_epoch(recipe, world)
        for epoch in range(first_step // steps, recipe.epochs):
            rows = self.order.epoch(epoch)
            rows = rows[self.kept[rows]]
            first = first_step % steps if epoch == first_step // steps else 0
            for step in range(first, steps):
                batch = rows[step * recipe.batch_size : (step + 1) * recipe.batch_size]
                parts = np.array_split(batch, world.size * recipe.accumulate)
                for part in parts[world.rank :: world.size]:
                    yield epoch, len(batch), part


def moved_ahead(
    batches: Iterator[tuple[ViewBatch, int]], device: torch.device
) -> Iterator[tuple[ViewBatch, int, UInt8[Tensor, "batch channels height width"]]]:
    """Each batch, with the student's pixels of it on the device.

    A GPU fetches those of the next batch beside its work on this one, on a stream of its own.
    """
    if device.type != "cuda":
        for batch, images in batches:
            yield batch, images, batch.pixels[0][:, 0].to(device)
        return
    stream, ready = torch.cuda.Stream(device), deque[tuple[ViewBatch, int, Tensor, Any]]()

    def next_one() -> tuple[ViewBatch, int, Tensor]:
        batch, images, pixels, copied = ready.popleft()
        using = torch.cuda.current_stream(device)
        using.wait_event(copied)
        pixels.record_stream(using)
        return batch, images, pixels

    for batch, images in batches:
        with torch.cuda.stream(stream):
            pixels = batch.pixels[0][:, 0].to(device, non_blocking=True)
            ready.append((batch, images, pixels, stream.record_event()))
        if len(ready) > 1:
            yield next_one()
    if ready:
        yield next_one()


def filled_up(inputs: Shaped[Tensor, "batch *rest"], size: int) -> Shaped[Tensor, "{size} *rest"]:
    """With the first ones once more, in place of images that cannot be read."""
    if len(inputs) == size:
        return inputs
    times = -(-size // len(inputs))
    return inputs.repeat(times, *(1 for _ in inputs.shape[1:]))[:size]
