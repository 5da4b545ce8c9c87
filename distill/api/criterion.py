"""The loss of `distill pretrain`, for a loop of one's own."""

from collections.abc import Mapping
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float
from torch import Tensor, nn

from distill.api.shared import SharedTargets, size_of
from distill.data.views import Size
from distill.errors import ConfigError
from distill.files import make_folder
from distill.losses.names import Divergence, HierarchyWeights, MultiLabelLoss
from distill.models.card import ModelCard, ModelInput, three_floats
from distill.models.creation import create_model
from distill.models.names import require_known_model
from distill.models.weights import Weights, fitted, load_weights, without_prefixes
from distill.trainers.models.meaning import is_taught
from distill.trainers.models.student import write_weights
from distill.trainers.recipe import Recipe, Scheme
from distill.trainers.training.balance import automatic_weight
from distill.trainers.training.matching import require_learnable
from distill.trainers.training.mixing import mixed_losses
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
        for name, value in (("kd_weight", kd_weight), ("label_smoothing", label_smoothing)):
            if value != "auto" and (isinstance(value, bool) or not isinstance(value, Real)):
                raise ConfigError(f"{name} {value!r} found, expected a number")
        recipe = Recipe(
            student="",
            scheme=scheme,
            divergence=divergence,
            kd_weight="auto" if kd_weight == "auto" else float(kd_weight),
            label_smoothing=label_smoothing,
            hierarchy_weights=hierarchy_weights,
            multi_label_loss=multi_label_loss,
        )
        require_learnable(shared.answers, scheme)
        self._shared, self.scheme = shared, scheme
        self._objective = objective_of(recipe, shared.hierarchy, shared.labels)
        self.kd_weight = (
            recipe.kd_weight
            if recipe.kd_weight != "auto"
            else automatic_weight(
                self._objective,
                divergence,
                shared.answers,
                shared.source,
                np.arange(len(shared.source)),
                shared.policy,
            )
        )

    if TYPE_CHECKING:  # torch's own says nothing of what comes out

        def __call__(
            self, logits: Tensor, batch: Mapping[str, Any], share: float = 1.0
        ) -> Loss: ...

    def forward(
        self,
        logits: Float[Tensor, "batch classes"],
        batch: Mapping[str, Any],
        share: float = 1.0,
    ) -> Loss:
        """The loss on a batch of these targets' dataset, logits in the order of the label set.

        share: of each image that is its own, where images were mixed; the rest is of the image that
        stands opposite in the batch, as `pixels.flip(0)` has it.

        Raises:
            ValueError: the batch is of other targets, lacks something, or does not fit the logits;
                or the share is none.
        """
        self._require_match(logits, batch)
        if not 0 <= share <= 1:
            raise ValueError(f"share {share!r} found, expected 0 to 1")
        answers = None
        if self.kd_weight:
            answers = batch.get("targets")
            if answers is None:
                ids = self._shared.source.ids[batch["row"].cpu().numpy()]
                answers = self._shared.fetch(ids, int(batch["view"][0]), batch["teacher_pixels"])
            answers = answers.to(logits.device)
        labels = batch["label"].to(logits.device, non_blocking=True)
        loss, kd = mixed_losses(self._objective, logits, labels, answers, float(share))
        return Loss(loss + self.kd_weight * kd, loss, kd)

    def _require_match(self, logits: Any, batch: Any) -> None:
        wanted = "teacher_pixels" if self._shared.in_this_process else "targets"
        if not isinstance(batch, Mapping) or not {"label", "identity", wanted} <= batch.keys():
            there = list(batch) if isinstance(batch, Mapping) else type(batch).__name__
            raise ValueError(
                f"{there} found as a batch, expected what the dataset of these targets gives, with "
                f"label, identity and {wanted}"
            )
        identities = {*batch["identity"]}
        if identities != {self._shared.identity}:
            raise ValueError(
                f"a batch of {', '.join(i[:12] for i in identities)} found, expected one of "
                f"{self._shared.identity[:12]}, the targets that this criterion is of"
            )
        shape = len(batch["label"]), self._shared.hierarchy.num_classes
        if not isinstance(logits, Tensor) or tuple(logits.shape) != shape:
            given = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(f"logits of {given} found, expected a tensor of {shape}")

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
            state: of the model, in DDP's or torch.compile's wrapper or without.
            path: FOLDER/student.safetensors, for commands that take FOLDER, or another
                .safetensors file; hierarchy.json and a card are written beside it.
            student: timm's name of the model.
            size, mean, std: its input, of pixels in [0, 1].

        Raises:
            ConfigError: `student` is no model of timm's, `state` is not of such a model with these
                classes, or another value is not possible.
        """
        require_known_model(student, "student")
        if Path(path).suffix != ".safetensors":
            raise ConfigError(f"{path}: expected a .safetensors file; choose another name")
        hierarchy, side = self._shared.hierarchy, size_of(size)
        try:
            model_input = ModelInput(size=side, mean=three_floats(mean), std=three_floats(std))
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"mean {mean!r} and std {std!r} found, expected three numbers"
            ) from error
        if not isinstance(state, Mapping):
            raise ConfigError(f"{type(state).__name__} found as state, expected model.state_dict()")
        model = create_model(student, hierarchy.num_classes, side)
        own = {without_prefixes(name): tensor for name, tensor in state.items()}
        weights = fitted(Weights(path=Path(path), state=own), model)
        load_weights(model, weights)
        card = ModelCard(
            model=student,
            num_classes=hierarchy.num_classes,
            input=model_input,
            hierarchy_digest=hierarchy.digest,
            scheme=self.scheme,
            taught=is_taught(self._shared.answers, self.kd_weight),
            label_set=hierarchy.name,
        )
        make_folder(Path(path).parent.absolute())
        write_weights(model.state_dict(), card, hierarchy, Path(path))

    def extra_repr(self) -> str:
        """As printed."""
        return f"{self.scheme}, kd_weight={self.kd_weight:g}, teacher={self._shared.location}"
