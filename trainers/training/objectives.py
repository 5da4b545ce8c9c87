"""Objectives: labels of images, the loss on them, and the distance to the teacher.

The loop trains any `Objective`; a scheme is nothing but the choice of one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from distill.hierarchy.semantic import SemanticHierarchy
from distill.losses.baselines import (
    multi_label_kd_loss,
    multi_label_loss,
    present_classes,
    single_label_kd_loss,
    single_label_loss,
)
from distill.losses.semantic import semantic_kd_loss, semantic_softmax_loss
from distill.targets.tensors import TeacherTargets
from distill.trainers.recipe import Recipe, Scheme

Logits = Float[Tensor, "batch classes"]
Scalar = Float[Tensor, ""]


@runtime_checkable
class Objective(Protocol):
    """Losses are means over the images of a batch."""

    @property
    def hierarchy(self) -> SemanticHierarchy:
        """Hierarchy of the logits' classes."""
        ...

    def labels(self, rows: list[int]) -> Tensor:
        """Return the labels of those images on the CPU, one row each."""
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
    kinds: dict[Scheme, Callable[..., Objective]] = {
        "single-label": SingleLabelObjective,
        "multi-label": MultiLabelObjective,
        "semantic": SemanticObjective,
    }
    return kinds[recipe.scheme](hierarchy=hierarchy, given=labels, recipe=recipe)


@dataclass(frozen=True, kw_only=True)
class _Taught:
    """What all have in common. given: labels by row, as each objective takes them."""

    hierarchy: SemanticHierarchy
    given: NDArray[Any]
    recipe: Recipe

    def labels(self, rows: list[int]) -> Tensor:
        """See `Objective`."""
        return torch.from_numpy(self.given[rows])


class _SoftmaxObjective(_Taught):
    """Its teacher is weighed by confidence."""

    kd_loss: ClassVar[Callable[..., Scalar]]

    def distance(self, *, logits: Logits, targets: TeacherTargets, labels: Tensor | None) -> Scalar:
        """See `Objective`; without labels confidence is the teacher's alone."""
        return type(self).kd_loss(
            student_logits=logits,
            targets=targets,
            labels=labels,
            hierarchy=self.hierarchy,
            divergence=self.recipe.divergence,
        )


class SemanticObjective(_SoftmaxObjective):
    """One softmax for each hierarchy. given: [n] class indices."""

    kd_loss = staticmethod(semantic_kd_loss)

    def loss(self, *, logits: Logits, labels: Tensor) -> Scalar:
        """Semantic softmax."""
        return semantic_softmax_loss(
            logits=logits,
            labels=labels,
            hierarchy=self.hierarchy,
            label_smoothing=self.recipe.label_smoothing,
            weights=self.recipe.hierarchy_weights,
        )


class SingleLabelObjective(_SoftmaxObjective):
    """One softmax over all classes. given: [n] class indices."""

    kd_loss = staticmethod(single_label_kd_loss)

    def loss(self, *, logits: Logits, labels: Tensor) -> Scalar:
        """Cross-entropy."""
        return single_label_loss(
            logits=logits, labels=labels, label_smoothing=self.recipe.label_smoothing
        )


class _BinaryObjective(_Taught):
    """One sigmoid for each class."""

    def distance(self, *, logits: Logits, targets: TeacherTargets, labels: Tensor | None) -> Scalar:
        """What the loss on labels would be on average, if they were as the teacher says."""
        return multi_label_kd_loss(
            student_logits=logits,
            targets=targets,
            hierarchy=self.hierarchy,
            divergence=self.recipe.divergence,
            kind=self.recipe.multi_label_loss,
        )


class MultiLabelObjective(_BinaryObjective):
    """Classes of a label set. given: [n] class indices, which mean their ancestors too."""

    def loss(self, *, logits: Logits, labels: Tensor) -> Scalar:
        """Binary losses."""
        present = present_classes(labels, self.hierarchy)
        return multi_label_loss(logits=logits, present=present, kind=self.recipe.multi_label_loss)


class TagsObjective(_BinaryObjective):
    """Tags of images. given: [n, classes], 1 for tags, 0 for none, -1 where unsure."""

    def loss(self, *, logits: Logits, labels: Tensor) -> Scalar:
        """Binary losses; an image without tags has none of them."""
        kind = self.recipe.multi_label_loss
        return multi_label_loss(logits=logits, present=labels == 1, known=labels >= 0, kind=kind)
