"""Which images a process gets at which step, and the batches of them, a few ahead.

A step takes the next `batch_size` rows of the order, whatever the number of processes; each process
takes its parts of them.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray
from torch import Tensor

from distill.data import ImageSource
from distill.errors import ConfigError, DataError
from distill.loader import ViewBatch, ViewRequest, in_batches, load_views
from distill.order import SampleOrder
from distill.training_targets import TrainingTargets
from distill.views import Size, ViewPolicy
from trainers.recipe import Recipe
from trainers.world import World


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingSet:
    """rows: those of `source` that are trained on, ascending; `order` counts them from 0."""

    source: ImageSource
    rows: NDArray[np.int64]
    order: SampleOrder
    policy: ViewPolicy
    targets: TrainingTargets | None

    def steps_per_epoch(self, recipe: Recipe, world: World) -> int:
        """Whole batches in an epoch.

        Raises:
            ConfigError: there is none, or its parts are too small.
        """
        parts = world.size * recipe.accumulate
        if recipe.batch_size < 2 * parts:
            raise ConfigError(
                f"batch_size {recipe.batch_size} found for {world.size} processes × "
                f"{recipe.accumulate} parts, expected two images for each; raise --batch-size"
            )
        if len(self.rows) < recipe.batch_size:
            raise ConfigError(
                f"{len(self.rows)} training images found, expected at least one batch of "
                f"{recipe.batch_size}; lower --batch-size"
            )
        return len(self.rows) // recipe.batch_size

    def pixels_for_teacher(self, batch: ViewBatch) -> list[UInt8[Tensor, "batch 3 _ _"]]:
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
    ) -> Iterator[ViewBatch]:
        """This process's parts of every step from `first_step` on, one view of each image.

        At the student's `size`, then at those that the targets need. Targets are told of a batch
        some batches before its turn.
        """
        targets, ids = self.targets, self.source.ids
        sizes = [size, *(targets.sizes if targets else ())]
        epochs: deque[int] = deque()
        coming: deque[ViewBatch] = deque()

        def requests() -> Iterator[list[ViewRequest]]:
            for epoch, rows in self._parts(recipe, world, first_step):
                epochs.append(epoch)
                view = targets.drawn_view(epoch) if targets else epoch
                yield from in_batches(rows, (view,), len(rows))

        for batch in load_views(
            self.source, self.policy, sizes, requests(), workers=workers, pin_memory=pin_memory
        ):
            if len(batch.rows) < 2:  # batch norm needs two
                asked = len(batch.rows) + len(batch.bad)
                raise DataError(
                    f"{self.source.location}: {len(batch.bad)} of {asked}"
                    f" images of a batch cannot be read ({', '.join(set(batch.bad.values()))}), "
                    "expected at least two good ones; repair the data"
                )
            epoch = epochs.popleft()
            if targets:
                pixels = self.pixels_for_teacher(batch)
                targets.announce(ids[batch.rows], targets.view(epoch), pixels)
            coming.append(batch)
            if len(coming) > (targets.ahead if targets else 0):
                yield coming.popleft()
        yield from coming

    def _parts(
        self, recipe: Recipe, world: World, first_step: int
    ) -> Iterator[tuple[int, NDArray[np.int64]]]:
        steps = self.steps_per_epoch(recipe, world)
        for epoch in range(first_step // steps, recipe.epochs):
            rows = self.rows[self.order.epoch(epoch)]
            first = first_step % steps if epoch == first_step // steps else 0
            for step in range(first, steps):
                batch = rows[step * recipe.batch_size : (step + 1) * recipe.batch_size]
                parts = np.array_split(batch, world.size * recipe.accumulate)
                for part in parts[world.rank :: world.size]:
                    yield epoch, part
