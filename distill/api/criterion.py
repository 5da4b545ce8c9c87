"""The loss of `distill pretrain`, for a loop of one's own."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float
from torch import Tensor, nn

from distill.api.shared import SharedTargets
from distill.data.views import Size
from distill.errors import ConfigError
from distill.files import make_folder
from distill.losses.names import Divergence, HierarchyWeights, MultiLabelLoss
from distill.models.card import ModelCard, ModelInput
from distill.models.names import require_known_model
from distill.trainers.models.student import write_weights
from distill.trainers.recipe import Recipe, Scheme
from distill.trainers.training.matching import require_learnable
from distill.trainers.training.objectives import objective_of


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
        shared: SharedTargets,
        *,
        scheme: Scheme,
        divergence: Divergence,
        kd_weight: float | Literal["auto"],
        label_smoothing: float,
        hierarchy_weights: HierarchyWeights,
        multi_label_loss: MultiLabelLoss,
    ) -> None:
        super().__init__()
        require_learnable(shared.answers, scheme)
        recipe = Recipe(
            student="",
            scheme=scheme,
            divergence=divergence,
            kd_weight=None if kd_weight == "auto" else float(kd_weight),
            label_smoothing=label_smoothing,
            hierarchy_weights=hierarchy_weights,
            multi_label_loss=multi_label_loss,
        )
        self._shared, self.scheme = shared, scheme
        self.kd_weight = float(recipe.kd_weight or 0)
        self._objective = objective_of(recipe, shared.hierarchy, np.zeros(0, np.int64))

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
            ids = self._shared.source.ids[batch["row"].cpu().numpy()]
            answers = self._shared.fetch(ids, int(batch["view"][0]), batch["teacher_pixels"])
        loss = self._objective.loss(logits=logits, labels=labels)
        kd = self._objective.distance(
            logits=logits, targets=answers.to(logits.device), labels=labels
        )
        return Loss(loss + self.kd_weight * kd, loss, kd)

    def save(
        self,
        state: Mapping[str, Tensor],
        path: str | Path,
        *,
        student: str,
        size: int | Size,
        mean: tuple[float, float, float] = (0.0, 0.0, 0.0),
        std: tuple[float, float, float] = (1.0, 1.0, 1.0),
    ) -> None:
        """Write a student that `distill evaluate`, `export`, `serve` and timm understand.

        Args:
            state: of the model, without wrappers such as DDP's.
            path: a .safetensors file; hierarchy.json and a card are written beside it.
            student: timm's name of the model.
            size, mean, std: its input, of pixels in [0, 1].

        Raises:
            ConfigError: `student` is no model of timm's, or `path` is of another kind.
        """
        require_known_model(student, "student")
        if Path(path).suffix != ".safetensors":
            raise ConfigError(f"{path}: expected a .safetensors file; choose another name")
        hierarchy = self._shared.hierarchy
        side = (size, size) if isinstance(size, int) else size
        card = ModelCard(
            model=student,
            num_classes=hierarchy.num_classes,
            input=ModelInput(size=side, mean=mean, std=std),
            hierarchy_digest=hierarchy.digest,
            scheme=self.scheme,
            taught=self.kd_weight > 0,
            label_set=hierarchy.name,
        )
        make_folder(Path(path).parent.absolute())
        write_weights(state, card, hierarchy, Path(path))

    def extra_repr(self) -> str:
        """As printed."""
        return f"{self.scheme}, kd_weight={self.kd_weight:g}, teacher={self._shared.location}"
