"""The loss of `distill pretrain`, for a loop of one's own."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float
from torch import Tensor, nn

from distill.losses.names import Divergence, HierarchyWeights, MultiLabelLoss
from distill.trainers.recipe import Recipe, Scheme
from distill.trainers.training.matching import require_learnable
from distill.trainers.training.objectives import objective_of

if TYPE_CHECKING:
    from distill.api.targets import Targets


class Loss(NamedTuple):
    """Scalars, means over the batch: total = labels + kd_weight · kd."""

    total: Float[Tensor, ""]
    labels: Float[Tensor, ""]
    kd: Float[Tensor, ""]


class Criterion(nn.Module):
    """What labels and teacher say of a student's logits; `Targets.criterion` makes it.

    kd_weight: of the distance to the teacher; "auto" is what `distill pretrain` takes.
    """

    def __init__(
        self,
        targets: "Targets",
        *,
        scheme: Scheme,
        divergence: Divergence,
        kd_weight: float | Literal["auto"],
        label_smoothing: float,
        hierarchy_weights: HierarchyWeights,
        multi_label_loss: MultiLabelLoss,
    ) -> None:
        super().__init__()
        require_learnable(targets.answers, scheme)
        recipe = Recipe(
            student="",
            scheme=scheme,
            divergence=divergence,
            kd_weight=None if kd_weight == "auto" else float(kd_weight),
            label_smoothing=label_smoothing,
            hierarchy_weights=hierarchy_weights,
            multi_label_loss=multi_label_loss,
        )
        self.targets, self.kd_weight = targets, float(recipe.kd_weight or 0)
        self.scheme = scheme
        self._objective = objective_of(recipe, targets.hierarchy, np.zeros(0, np.int64))

    def forward(self, logits: Float[Tensor, "batch classes"], batch: Mapping[str, Any]) -> Loss:
        """logits: of a batch that `Targets.collate` made, in the order of the label set.

        Raises:
            ValueError: they are of another batch or label set.
        """
        labels = batch["label"].to(logits.device, non_blocking=True)
        if not self.kd_weight:
            loss = self._objective.loss(logits=logits, labels=labels)
            return Loss(loss, loss, logits.new_zeros(()))
        answers = batch.get("targets")
        if answers is None:
            rows, views = batch["row"], batch["view"]
            answers = self.targets.fetch(rows, views, batch["teacher_pixels"])
        loss = self._objective.loss(logits=logits, labels=labels)
        kd = self._objective.distance(
            logits=logits, targets=answers.to(logits.device), labels=labels
        )
        return Loss(loss + self.kd_weight * kd, loss, kd)

    def extra_repr(self) -> str:
        """As printed."""
        return f"{self.scheme}, kd_weight={self.kd_weight:g}, teacher={self.targets.location}"
