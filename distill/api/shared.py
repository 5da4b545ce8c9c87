"""What all processes of a training loop have in common: images, answers, the epoch, the losses."""

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.typing import NDArray
from torch import Tensor

from distill.data.sample_ids import SampleIds
from distill.data.source import ImageSource
from distill.data.view_policy import ViewPolicy
from distill.data.views import Size
from distill.errors import ConfigError, DataError, TeacherError
from distill.hierarchy.semantic import SemanticHierarchy
from distill.targets.protocol import TrainingTargets
from distill.targets.tensors import TeacherTargets, View
from distill.trainers.sources.in_process import InProcessTargets


class SharedTargets:
    """It can be pickled; epoch and unreadable images are in memory that processes share.

    teacher_sizes: in which a teacher that must see the images wants them.
    in_this_process: a teacher that other processes cannot ask, so its answers come with the loss.
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
        self.identity = answers.identity
        self.max_bad_fraction = max_bad_fraction
        self.teacher_sizes: tuple[Size, ...] = answers.sizes
        self.in_this_process = isinstance(answers, InProcessTargets)
        self._answers: TrainingTargets | None = answers
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()
        self._unreadable = torch.zeros(len(source), dtype=torch.bool).share_memory_()
        self._untaught = torch.zeros(len(source), dtype=torch.bool).share_memory_()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, **({"_answers": None} if self.in_this_process else {})}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        for shared in (self._epoch, self._unreadable, self._untaught):
            shared.share_memory_()  # a plain pickle or a deep copy has memory of its own

    @property
    def answers(self) -> TrainingTargets:
        """Where they come from.

        Raises:
            TeacherError: it is a teacher in another process.
        """
        if self._answers is None:
            raise TeacherError(
                f"{self.location} is a teacher in another process, which alone can ask it; "
                "expected a store or a server where targets are pickled, or distill.open in each "
                "process"
            )
        return self._answers

    # -- epochs and their views -------------------------------------------------------------------

    @property
    def epoch(self) -> int:
        """As `set_epoch` left it, in whatever process."""
        return int(self._epoch[0])

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch's view, and have it decoded by this process.

        Raises:
            ValueError: it is no whole number from 0 on.
        """
        if isinstance(epoch, bool) or not isinstance(epoch, Integral) or epoch < 0:
            raise ValueError(f"epoch {epoch!r} found, expected a whole number from 0 on")
        self._epoch[0] = int(epoch)
        self.prepare()

    def prepare(self) -> None:
        """Decode the epoch's view; the processes of a DataLoader would wait for one of them."""
        if not self.teacher_sizes:
            self.answers.fetch(self.source.ids[:1], self.answers.view(self.epoch))

    def prepare_next(self) -> None:
        """Begin with the next epoch's view in the background."""
        self.answers.prepare(self.epoch + 1)

    def view(self, epoch: int) -> tuple[int, int]:
        """That epoch's view as the targets count it, and as the policy draws it."""
        if self.in_this_process:
            return epoch, epoch
        return self.answers.view(epoch), self.answers.drawn_view(epoch)

    def fetch(
        self, ids: SampleIds, view: View, pixels: Sequence[UInt8[Tensor, "batch channels _ _"]] = ()
    ) -> TeacherTargets:
        """See `distill.targets.tensors.TargetSource`."""
        return self.answers.fetch(ids, view, pixels)

    # -- what is missing, counted and bounded -----------------------------------------------------

    @property
    def unreadable(self) -> list[str]:
        """Keys of the images that could not be read so far, in whatever process."""
        return self._keys(self._unreadable)

    @property
    def untaught(self) -> list[str]:
        """Keys of those that the teacher has no answer for."""
        return self._keys(self._untaught)

    def note_unreadable(self, row: int, reason: str) -> None:
        """Count an image that cannot be read.

        Raises:
            DataError: there are too many.
        """
        self._unreadable[row] = True
        self._require_few(self._unreadable, row, f"cannot be read ({reason})")

    def note_untaught(self, rows: Sequence[int], answers: TeacherTargets) -> None:
        """Count those of `rows` that the teacher has no answer for.

        Raises:
            DataError: there are too many.
        """
        missing = [rows[i] for i in answers.unanswered]
        if missing:
            self._untaught[missing] = True
            self._require_few(self._untaught, missing[-1], f"have no answer in {self.location}")

    def _keys(self, which: Tensor) -> list[str]:
        return [self.source.samples[row].key for row in which.nonzero()[:, 0].tolist()]

    def _require_few(self, which: Tensor, last: int, what: str) -> None:
        count, total = int(which.sum()), len(self.source)
        if count > self.max_bad_fraction * total:
            raise DataError(
                f"{self.source.location}: {count} of {total} images {what}, the last of them "
                f"{self.source.samples[last].key!r}, expected at most {self.max_bad_fraction:.2%}; "
                "repair the data, or raise max_bad_fraction"
            )


def size_of(size: Any) -> Size:
    """Height and width of `size`: one number of pixels, or both.

    Raises:
        ConfigError: it is neither.
    """
    sides = list(size) if isinstance(size, Sequence) and not isinstance(size, str) else [size] * 2
    whole = all(isinstance(n, Integral) and not isinstance(n, bool) for n in sides)
    if len(sides) != 2 or not whole or min(map(int, sides)) < 1:
        raise ConfigError(f"size {size!r} found, expected pixels a side, or (height, width)")
    return int(sides[0]), int(sides[1])
