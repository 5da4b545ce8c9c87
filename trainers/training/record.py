"""The record of a run: losses of every step, to TensorBoard.

Reading a number from a GPU waits for all that is queued there, so losses stay on the device for
some steps and come over together. That is when a loss that is no number is noticed.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill.errors import NotFiniteError
from distill.trainers.process_group import World

STEPS_AT_ONCE = 50


class StepLosses:
    """Losses on labels and on targets of the steps since `taken`, each a mean over its batch."""

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(STEPS_AT_ONCE + 1, 2, device=device)
        self._rows: list[list[int]] = []
        self._untaught = 0

    def begin(self) -> None:
        """A step."""
        self._rows.append([])

    def add(
        self, *, labels: Tensor, kd: Tensor, share: float, rows: Sequence[int], untaught: int
    ) -> None:
        """A part of the step under way that holds `share` of its images.

        untaught: how many of `rows` the targets have no answer for.
        """
        self._sums[len(self._rows) - 1] += share * torch.stack([labels.detach(), kd.detach()])
        self._rows[-1] += rows
        self._untaught += untaught

    def give_up(self) -> None:
        """Forget the step under way."""
        if self._rows:
            self._rows.pop()
            self._sums[len(self._rows)] = 0

    @property
    def steps(self) -> int:
        """How many are kept."""
        return len(self._rows)

    @property
    def full(self) -> bool:
        """Whether there is no room for another step."""
        return len(self._rows) == STEPS_AT_ONCE

    def select(
        self, world: World, last_step: int, keys: Sequence[Any]
    ) -> tuple[list[list[float]], int]:
        """[steps, 2], up to `last_step`, and the images without an answer; all processes must ask.

        keys: the samples, by row.

        Raises:
            ConfigError: one of them is no number; says at which step and batch.
        """
        sums = self._sums[: len(self._rows)].clone()
        self._sums[-1, 0] = self._untaught
        *all_values, (untaught, _) = world.sum(self._sums).tolist()
        values: list[list[float]] = all_values[: len(self._rows)]
        rows, self._rows, self._untaught = self._rows, [], 0
        self._sums.zero_()
        for step, (labels, kd) in enumerate(values, last_step - len(values) + 1):
            if not (math.isfinite(labels) and math.isfinite(kd)):
                here = step - last_step - 1  # from the end
                batch = rows[here] if not sums[here].isfinite().all() else []
                raise NotFiniteError(_no_number(step, labels, kd, [keys[row].key for row in batch]))
        return values, int(untaught)


def _no_number(step: int, labels: float, kd: float, keys: Sequence[str]) -> str:
    shown = ", ".join(map(repr, keys[:3])) + (f" and {len(keys) - 3} more" if keys[3:] else "")
    if math.isfinite(labels):
        return (
            f"the loss on targets is {kd:g} at step {step}, in the batch of "
            f"{shown or 'another process'}, and the loss on labels is a number; expected a teacher "
            "whose answers are finite: check its weights; the last checkpoint is kept"
        )
    return (
        f"the losses on labels and targets are {labels:g} and {kd:g} at step {step}, in the batch "
        f"of {shown or 'another process'}, expected finite numbers; the last checkpoint is kept: "
        "lower --lr or --kd-weight, or look at these images"
    )


class Record:
    """Scalars for TensorBoard, by rank 0; what `folder` has from `first_step` on is void."""

    def __init__(self, folder: Path, world: World, first_step: int) -> None:
        self._writer: Any = None
        if world.leads:
            from torch.utils.tensorboard import SummaryWriter  # a second, and workers need none

            self._writer = SummaryWriter(str(folder), purge_step=first_step)

    def losses(self, first_step: int, values: Sequence[Sequence[float]], kd_weight: float) -> None:
        """Record the losses of consecutive steps."""
        for step, (labels, kd) in enumerate(values, first_step):
            self.scalars(
                step,
                {
                    "loss/labels": labels,
                    "loss/kd": kd,
                    "loss/total": labels + kd_weight * kd,
                },
            )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Under their names."""
        if self._writer:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        """To the disk."""
        if self._writer:
            self._writer.flush()

    def close(self) -> None:
        """No more."""
        if self._writer:
            self._writer.close()
