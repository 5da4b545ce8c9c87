"""What a teacher says of the images of one data set, as a training loop needs it."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from distill.api.criterion import Criterion
from distill.api.dataset import Batch, Sample, TargetDataset, TargetSampler, collated
from distill.api.shared import SharedTargets, size_of
from distill.data.sample_ids import find_rows, sample_ids
from distill.data.source import ImageSource
from distill.data.views import Size
from distill.errors import DataError
from distill.hierarchy.semantic import SemanticHierarchy
from distill.losses.names import Divergence, HierarchyWeights, MultiLabelLoss
from distill.progress import note
from distill.store.format.audit import fidelity_warning
from distill.targets.tensors import TeacherTargets, View
from distill.trainers.recipe import Scheme


class Targets:
    """A teacher's answers beside the images they are about; `distill.open` makes it.

    Rows count the images, from 0. It can be pickled, and used by processes that are forked or
    spawned: each opens the store or the server by itself. The epoch, which chooses the view, is the
    same in all processes that a DataLoader makes.
    """

    def __init__(self, shared: SharedTargets) -> None:
        self._shared = shared

    def __len__(self) -> int:
        return len(self.source)

    @property
    def location(self) -> str:
        """Store or server."""
        return self._shared.location

    @property
    def source(self) -> ImageSource:
        """The images; `source.samples[row].key` is what a row is called."""
        return self._shared.source

    @property
    def labels(self) -> NDArray[np.int64]:
        """[rows]: class index of each image, -1 where it has none."""
        return self._shared.labels

    @property
    def hierarchy(self) -> SemanticHierarchy:
        """The classes, in the order of a student's logits."""
        return self._shared.hierarchy

    @property
    def input_size(self) -> Size:
        """Height and width that the teacher saw."""
        return self._shared.input_size

    @property
    def unreadable(self) -> list[str]:
        """Keys of the images that could not be read so far, in whatever process."""
        return self._shared.unreadable

    @property
    def untaught(self) -> list[str]:
        """Keys of those that the teacher had no answer for; they are learned from by label."""
        return self._shared.untaught

    # -- for a DataLoader -------------------------------------------------------------------------

    def dataset(
        self,
        size: int | Size | None = None,
        transform: Callable[[UInt8[Tensor, "3 height width"]], Tensor] | None = None,
    ) -> TargetDataset:
        """The images in the views that the teacher saw, with its answers.

        Args:
            size: pixels a side, or (height, width); None is what the teacher saw.
            transform: from a view, uint8 [3, height, width], to what the model takes; it may change
                values, and nothing else.

        Raises:
            ConfigError: `transform` does more than change each pixel's values, always alike; or
                `size` is none.
        """
        side = self.input_size if size is None else size_of(size)
        dataset = TargetDataset(self._shared, side, transform)
        self._shared.prepare()
        return dataset

    def sampler(
        self, rank: int | None = None, world: int | None = None, seed: int = 0
    ) -> TargetSampler:
        """This process's rows of each epoch, in an order in which answers come fast.

        Args:
            rank, world: of how many processes which; None asks torch.distributed where it runs.
            seed: of the order, the same in all processes.
        """
        return TargetSampler(self._shared, rank, world, seed)

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Stack what the dataset gives; for DataLoader's collate_fn.

        Raises:
            DataError: no image of the batch can be read.
        """
        return collated(samples)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch's view, in all processes; before its first batch is asked for.

        `set_epoch` of the dataset and of the sampler do the same.
        """
        self._shared.set_epoch(epoch)

    # -- for a loss -------------------------------------------------------------------------------

    def criterion(
        self,
        *,
        scheme: Scheme = "semantic",
        divergence: Divergence = "kl",
        kd_weight: float | Literal["auto"] = "auto",
        label_smoothing: float = 0.2,
        hierarchy_weights: HierarchyWeights = "even",
        multi_label_loss: MultiLabelLoss = "asl",
    ) -> Criterion:
        """The loss of `distill pretrain`; arguments are as in its recipe.

        Raises:
            ConfigError: a value is not possible, or the scheme cannot learn from these targets.
        """
        if line := fidelity_warning(self._shared.answers.fidelity, divergence):
            note(f"{self.location}: {line}", once=f"{self.location} {divergence}")
        return Criterion(
            self._shared,
            scheme=scheme,
            divergence=divergence,
            kd_weight=kd_weight,
            label_smoothing=label_smoothing,
            hierarchy_weights=hierarchy_weights,
            multi_label_loss=multi_label_loss,
        )

    def fetch(
        self,
        images: ArrayLike | Sequence[str],
        views: int | ArrayLike | None = None,
        pixels: Sequence[UInt8[Tensor, "batch channels _ _"]] = (),
    ) -> TeacherTargets:
        """The teacher's answers, in that order.

        Args:
            images: rows [n], keys, or ids [n, 2] of `source.ids`.
            views: one of the store's views for all, or one for each [n]; None is the epoch's.
            pixels: uint8 [n, 3, height, width] of that view at `input_size`, for a teacher that
                must see the images.

        Raises:
            DataError: no such image; or images, views and pixels do not go together.
            StoreError: no such view.
        """
        shared, ids = self._shared, self._ids_of(images)
        view = shared.view(shared.epoch)[0] if views is None else _views_of(views, len(ids))
        _require_pixels(pixels, shared.teacher_sizes, len(ids))
        return shared.fetch(ids, view, pixels)

    def _ids_of(self, images: Any) -> NDArray[np.uint64]:
        found = np.asarray(images.cpu() if isinstance(images, Tensor) else images)
        if found.ndim == 1 and not len(found):
            return self.source.ids[:0]
        if found.ndim == 1 and found.dtype.kind == "U" and _all_are(str, images):
            ids = sample_ids(map(str, found))
            missing = np.flatnonzero(find_rows(self.source.ids, ids) < 0)
            if len(missing):
                raise DataError(
                    f"{self.source.location}: has no image {str(found[missing[0]])!r}, expected "
                    "keys of its images, as source.samples[row].key"
                )
            return ids
        if found.ndim == 2 and found.shape[1] == 2 and found.dtype == np.uint64:
            return found
        if found.ndim != 1 or found.dtype.kind not in "iu":
            raise DataError(
                f"images of {found.dtype} and shape {found.shape} found, expected rows [n], keys "
                "[n], or ids [n, 2]"
            )
        wrong = np.flatnonzero((found < 0) | (found >= len(self)))
        if len(wrong):
            raise DataError(f"row {found[wrong[0]]} found, expected 0 to {len(self) - 1}")
        return self.source.ids[found.astype(np.int64)]


def _all_are(kind: type, values: Any) -> bool:
    """NumPy makes texts of numbers beside texts."""
    return isinstance(values, np.ndarray) or all(isinstance(value, kind) for value in values)


def _views_of(views: Any, count: int) -> View:
    found = np.asarray(views.cpu() if isinstance(views, Tensor) else views)
    if found.dtype.kind not in "iu" or found.shape not in ((), (count,)):
        raise DataError(
            f"views of {found.dtype} and shape {found.shape} found for {count} images, expected a "
            "whole number, or one for each image"
        )
    return int(found) if found.ndim == 0 else found.astype(np.int64)


def _require_pixels(pixels: Any, sizes: Sequence[Size], count: int) -> None:
    shapes = [tuple(each.shape) for each in pixels if isinstance(each, Tensor)]
    if pixels is None or isinstance(pixels, Tensor) or shapes != [(count, 3, *s) for s in sizes]:
        raise DataError(
            f"pixels of shapes {shapes} found for {count} images, expected a list of uint8 tensors "
            f"{[(count, 3, *size) for size in sizes]}, which this teacher must see"
        )
    if any(each.dtype != torch.uint8 for each in pixels):
        raise DataError(f"pixels of {pixels[0].dtype} found, expected uint8 from 0 to 255")
