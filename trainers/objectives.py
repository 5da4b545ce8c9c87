"""What a student learns: the labels of images, the loss on them, the distance to the teacher.

The loop trains any `Objective`; a scheme is nothing but the choice of one.
"""

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from distill.baselines import (
    Divergence,
    MultiLabelLoss,
    multi_label_kd_loss,
    multi_label_loss,
    present_classes,
    single_label_kd_loss,
    single_label_loss,
)
from distill.hierarchy import SemanticHierarchy
from distill.losses import semantic_kd_loss, semantic_softmax_loss
from distill.targets import TeacherTargets
from trainers.recipe import Recipe

Logits = Float[Tensor, "batch classes"]
Scalar = Float[Tensor, ""]


@runtime_checkable
class Objective(Protocol):
    """Losses are means over the images of a batch."""

    @property
    def hierarchy(self) -> SemanticHierarchy:
        """Of the logits' classes."""
        ...

    def labels(self, rows: list[int]) -> Tensor:
        """Of those images, on the CPU; one row each."""
        ...

    def loss(self, *, logits: Logits, labels: Tensor) -> Scalar:
        """What the labels say of the logits."""
        ...

    def distance(self, *, logits: Logits, targets: TeacherTargets, labels: Tensor) -> Scalar:
        """What the teacher says of them."""
        ...


def objective_of(
    recipe: Recipe, hierarchy: SemanticHierarchy, labels: NDArray[np.int64]
) -> Objective:
    """labels: [n] class indices, negative for none."""
    if recipe.scheme == "single-label":
        return SingleLabel(hierarchy, labels, recipe.label_smoothing, recipe.divergence)
    if recipe.scheme == "multi-label":
        return MultiLabel(hierarchy, labels, recipe.multi_label_loss, recipe.divergence)
    return Semantic(
        hierarchy, labels, recipe.label_smoothing, recipe.divergence, recipe.hierarchy_weights
    )


@dataclass(frozen=True)
class _Classes:
    """Images with one class each."""

    hierarchy: SemanticHierarchy
    classes: NDArray[np.int64]

    def labels(self, rows: list[int]) -> Int[Tensor, " batch"]:
        return torch.from_numpy(self.classes[rows])


@dataclass(frozen=True)
class Semantic(_Classes):
    """One softmax for each hierarchy."""

    label_smoothing: float
    divergence: Divergence
    weights: Literal["paper", "even"]

    def loss(self, *, logits: Logits, labels: Tensor) -> Scalar:
        """Semantic softmax."""
        return semantic_softmax_loss(
            logits=logits,
            labels=labels,
            hierarchy=self.hierarchy,
            label_smoothing=self.label_smoothing,
            weights=self.weights,
        )

    def distance(self, *, logits: Logits, targets: TeacherTargets, labels: Tensor) -> Scalar:
        """Semantic KD."""
        return semantic_kd_loss(
            student_logits=logits,
            targets=targets,
            labels=labels,
            hierarchy=self.hierarchy,
            divergence=self.divergence,
        )


@dataclass(frozen=True)
class SingleLabel(_Classes):
    """One softmax over all classes."""

    label_smoothing: float
    divergence: Divergence

    def loss(self, *, logits: Logits, labels: Tensor) -> Scalar:
        """Cross-entropy."""
        return single_label_loss(logits=logits, labels=labels, label_smoothing=self.label_smoothing)

    def distance(self, *, logits: Logits, targets: TeacherTargets, labels: Tensor) -> Scalar:
        """Plain KD."""
        return single_label_kd_loss(
            student_logits=logits,
            targets=targets,
            labels=labels,
            hierarchy=self.hierarchy,
            divergence=self.divergence,
        )


@dataclass(frozen=True)
class MultiLabel(_Classes):
    """One sigmoid for each class; an image's classes are its own and that one's ancestors."""

    kind: MultiLabelLoss
    divergence: Divergence

    def loss(self, *, logits: Logits, labels: Tensor) -> Scalar:
        """Binary losses."""
        present = present_classes(labels, self.hierarchy)
        return multi_label_loss(logits=logits, present=present, kind=self.kind)

    def distance(self, *, logits: Logits, targets: TeacherTargets, labels: Tensor) -> Scalar:
        """Binary KD, where the teacher is sure that the hierarchy applies."""
        return multi_label_kd_loss(
            student_logits=logits,
            targets=targets,
            labels=labels,
            hierarchy=self.hierarchy,
            divergence=self.divergence,
        )


@dataclass(frozen=True)
class Tags:
    """Images with any number of tags. present: [n, classes], of a flat hierarchy."""

    hierarchy: SemanticHierarchy
    present: NDArray[np.bool_]
    kind: MultiLabelLoss
    divergence: Divergence

    def labels(self, rows: list[int]) -> Bool[Tensor, "batch classes"]:
        return torch.from_numpy(self.present[rows])

    def loss(self, *, logits: Logits, labels: Tensor) -> Scalar:
        """Binary losses."""
        return multi_label_loss(logits=logits, present=labels, kind=self.kind)

    def distance(self, *, logits: Logits, targets: TeacherTargets, labels: Tensor) -> Scalar:
        """Binary KD on every class."""
        return multi_label_kd_loss(
            student_logits=logits,
            targets=targets,
            labels=None,
            hierarchy=self.hierarchy,
            divergence=self.divergence,
        )
