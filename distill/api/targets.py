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
from distill.data.sample_ids import sample_ids
from distill.data.source import ImageSource
from distill.data.view_policy import ViewPolicy
from distill.data.views import Size
from distill.errors import DataError
from distill.hierarchy.semantic import SemanticHierarchy
from distill.losses.names import Divergence, HierarchyWeights, MultiLabelLoss
from distill.progress import note
from distill.store.format.audit import fidelity_warning
from distill.targets.protocol import TrainingTargets
from distill.targets.tensors import TeacherTargets, View
from distill.trainers.recipe import Scheme
from distill.trainers.sources.in_process import InProcessTargets


class Targets:
    """`distill.open` makes it. Rows count the images of `source`, from 0.

    It can be pickled, and used by processes that are forked or spawned: each opens the store or the
    server by itself. The epoch, which chooses the view, is shared by all processes that a
    DataLoader makes.
    """

    def __init__(
        self,
        answers: TrainingTargets,
        source: ImageSource,
        labels: NDArray[np.int64],
        *,
        policy: ViewPolicy,
        max_bad_fraction: float,
    ) -> None:
        self.source, self.labels, self.policy = source, labels, policy
        self.hierarchy: SemanticHierarchy = answers.hierarchy
        self.location, self.input_size = answers.location, answers.input_size
        self.max_bad_fraction = max_bad_fraction
        self.teacher_sizes: tuple[Size, ...] = answers.sizes
        # A teacher in this process cannot be asked by others: its answers come with the loss.
        self.in_this_process = isinstance(answers, InProcessTargets)
        self._answers: TrainingTargets | None = answers
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()
        self._unreadable = torch.zeros(len(source), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self.source)

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        if self.in_this_process:
            state["_answers"] = None
        return state

    # -- for a DataLoader -------------------------------------------------------------------------

    def dataset(
        self,
        size: int | Size | None = None,
        transform: Callable[[UInt8[Tensor, "3 height width"]], Tensor] | None = None,
    ) -> TargetDataset:
        """The images in the views that the teacher saw, with its answers; see `TargetDataset`.

        Args:
            size: pixels a side, or (height, width); None is what the teacher saw.
            transform: from a view, uint8 [3, height, width], to what the model takes; it may change
                values, and nothing else.

        Raises:
            ConfigError: `transform` moves pixels, or is random.
        """
        side = (size, size) if isinstance(size, int) else size
        self.prepare()
        return TargetDataset(self, side or self.input_size, transform)

    def sampler(
        self, rank: int | None = None, world: int | None = None, seed: int = 0
    ) -> TargetSampler:
        """This process's rows of each epoch, in an order in which answers come fast.

        rank, world: of how many processes which; None asks torch.distributed where it runs.
        """
        return TargetSampler(self, rank, world, seed)

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Stack what `TargetDataset` gives; for DataLoader's collate_fn."""
        return collated(samples)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch's view, in all processes; before its first batch is asked for."""
        if epoch < 0:
            raise ValueError(f"epoch {epoch} found, expected 0 or more")
        self._epoch[0] = epoch
        self.prepare()

    @property
    def epoch(self) -> int:
        """As `set_epoch` left it, in whatever process."""
        return int(self._epoch[0])

    def prepare(self) -> None:
        """Decode the epoch's view into the cache, where that is still to be done.

        A process that a DataLoader makes would do it while the others wait.
        """
        if not self.in_this_process and not self.teacher_sizes:
            self.answers.fetch(self.source.ids[:1], self.answers.view(self.epoch))

    def prepare_next(self) -> None:
        """Begin with the next epoch's view in the background."""
        self.answers.prepare(self.epoch + 1)

    # -- for a loss -------------------------------------------------------------------------------

    def criterion(
        self,
        *,
        scheme: Scheme = "semantic",
        divergence: Divergence = "mse",
        kd_weight: float | Literal["auto"] = "auto",
        label_smoothing: float = 0.2,
        hierarchy_weights: HierarchyWeights = "paper",
        multi_label_loss: MultiLabelLoss = "asl",
    ) -> Criterion:
        """The loss of `distill pretrain`; see `Criterion`. Arguments are as in its recipe.

        Raises:
            ConfigError: a value is not possible, or the scheme cannot learn from these targets.
        """
        if line := fidelity_warning(self.answers.fidelity, divergence):
            note(f"{self.location}: {line}", once=f"{self.location} {divergence}")
        return Criterion(
            self,
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
        pixels: Sequence[UInt8[Tensor, "batch 3 _ _"]] = (),
    ) -> TeacherTargets:
        """The teacher's answers, in that order.

        Args:
            images: rows [n], keys, or ids [n, 2] as `distill.data.sample_ids` makes them.
            views: one of the store's views for all, or one for each [n]; None is the epoch's.
            pixels: that view in each of `teacher_sizes`, for a teacher that must see the images.

        Raises:
            DataError: no such image, or no such view.
        """
        view: View = self.answers.view(self.epoch) if views is None else _view_of(views)
        return self.answers.fetch(self._ids_of(images), view, pixels)

    def view(self, epoch: int) -> tuple[int, int]:
        """That epoch's view as the targets count it, and as the policy draws it."""
        if self.in_this_process:
            return epoch, epoch
        return self.answers.view(epoch), self.answers.drawn_view(epoch)

    @property
    def answers(self) -> TrainingTargets:
        """Where they come from.

        Raises:
            RuntimeError: it is a teacher in another process.
        """
        if self._answers is None:
            raise RuntimeError(f"{self.location} is in another process, which alone can ask it")
        return self._answers

    # -- images that cannot be read ---------------------------------------------------------------

    @property
    def unreadable(self) -> list[str]:
        """Keys of the images that could not be read so far, in whatever process."""
        rows = self._unreadable.nonzero()[:, 0].tolist()
        return [self.source.samples[row].key for row in rows]

    def note_unreadable(self, row: int, reason: str) -> None:
        """Count an image that cannot be read.

        Raises:
            DataError: there are too many.
        """
        self._unreadable[row] = True
        count = int(self._unreadable.sum())
        if count > self.max_bad_fraction * len(self):
            key = self.source.samples[row].key
            raise DataError(
                f"{self.source.location}: {count} of {len(self)} images cannot be read (last: "
                f"{key!r}, {reason}), expected at most {self.max_bad_fraction:.2%}; repair the "
                "data, or raise max_bad_fraction"
            )

    def _ids_of(self, images: Any) -> NDArray[np.uint64]:
        if isinstance(images, Sequence) and images and isinstance(images[0], str):
            return sample_ids(images)
        found = np.asarray(images.cpu() if isinstance(images, Tensor) else images)
        if found.ndim == 2 and found.dtype == np.uint64:
            return found
        if found.ndim != 1 or found.dtype.kind not in "iu":
            raise DataError(
                f"{found.dtype} of shape {found.shape} found as images, expected rows [n], keys, "
                "or ids [n, 2]"
            )
        if len(found) and not 0 <= found.min() <= found.max() < len(self):
            raise DataError(
                f"row {found.min() if found.min() < 0 else found.max()} found, expected 0 to "
                f"{len(self) - 1}"
            )
        return self.source.ids[found.astype(np.int64)]


def _view_of(views: Any) -> View:
    found = np.asarray(views.cpu() if isinstance(views, Tensor) else views)
    return int(found) if found.ndim == 0 else found.astype(np.int64)
