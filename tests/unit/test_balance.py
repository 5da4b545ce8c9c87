"""Automatic KD weights: what a fresh student is pulled by, at any number of classes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from distill.hierarchy.semantic import SemanticHierarchy
from distill.targets.tensors import DenseTargets, dense_targets
from distill.trainers.recipe import Recipe
from distill.trainers.training.balance import fresh_pulls, weight_of
from distill.trainers.training.objectives import objective_of

WIDE = "imagenet21k-p-fall11"


def pulls(
    hierarchy: SemanticHierarchy, labels: torch.Tensor, targets: DenseTargets, **recipe: object
) -> tuple[float, float]:
    objective = objective_of(
        Recipe(student="", **recipe),  # type: ignore[arg-type]
        hierarchy,
        np.zeros(0, np.int64),
    )
    by_labels, by_teacher = fresh_pulls(objective, labels, targets)
    return root_mean_square(by_labels), root_mean_square(by_teacher)


def root_mean_square(values: torch.Tensor) -> float:
    return float(values.square().mean().sqrt())


def sharp(hierarchy: SemanticHierarchy, count: int) -> tuple[torch.Tensor, DenseTargets]:
    generator = torch.Generator().manual_seed(0)
    logits = 6 * torch.randn(count, hierarchy.num_classes, generator=generator)
    labels = torch.randint(hierarchy.num_classes, (count,), generator=generator)
    return labels, dense_targets(logits, hierarchy)


@pytest.mark.parametrize("weights", ["paper", "sqrt", "even"])
@pytest.mark.parametrize("divergence", ["mse", "kl"])
def test_semantic_pulls_are_those_of_the_formulas(
    hierarchy: SemanticHierarchy, divergence: str, weights: str
) -> None:
    """Labels: W_k (1/n − Y). Teacher: P_k (1/n − T), times 2/n for the squared error."""
    labels, targets = sharp(hierarchy, 32)
    smoothing = 0.2
    found = pulls(
        hierarchy,
        labels,
        targets,
        divergence=divergence,
        hierarchy_weights=weights,
        label_smoothing=smoothing,
    )
    semantic, depths = hierarchy.semantic_labels(labels), hierarchy.label_depths(labels)
    by_labels, by_teacher = torch.zeros(32), torch.zeros(32)
    for k, (n, part) in enumerate(
        zip(hierarchy.classes_per_hierarchy, hierarchy.slices, strict=True)
    ):
        known = semantic[:, k] >= 0
        weight = hierarchy.weights[k] ** {"paper": 1, "sqrt": 0.5, "even": 0}[weights]
        wanted = torch.full((32, n), smoothing / n)
        wanted[known, semantic[known, k]] += 1 - smoothing
        by_labels += known * weight**2 * (1 / n - wanted).square().sum(1)
        confidence = torch.where(depths > k, 1.0, targets.confidence[:, k])
        scale = 2 / n if divergence == "mse" else 1.0
        error = (1 / n - targets.probs[:, part]).square().sum(1)
        by_teacher += (scale * confidence).square() * error
    expected = [float(each.mean().sqrt()) for each in (by_labels, by_teacher)]
    assert found == pytest.approx(expected, rel=1e-4)


def test_a_squared_error_is_pulled_by_less_where_there_are_more_classes(
    hierarchy: SemanticHierarchy,
) -> None:
    """Hence one weight cannot suit both; a divergence in nats is pulled by about as much."""
    wide = SemanticHierarchy.bundled(WIDE)
    ratios = {
        divergence: [
            teacher / labels
            for each in (hierarchy, wide)
            for labels, teacher in [pulls(each, *sharp(each, 16), divergence=divergence)]
        ]
        for divergence in ("mse", "kl")
    }
    assert ratios["mse"][0] > 10 * ratios["mse"][1]
    assert 0.2 < ratios["kl"][0] / ratios["kl"][1] < 5


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_images_without_a_label_or_an_answer_change_no_weight(
    hierarchy: SemanticHierarchy, share: float
) -> None:
    """Of the others it is measured, as if they were all; chance alone makes a difference."""
    labels, targets = sharp(hierarchy, 128)
    gone = torch.rand(128, generator=torch.Generator().manual_seed(1)) < share

    def weight(labels: torch.Tensor, targets: DenseTargets) -> float:
        objective = objective_of(Recipe(student=""), hierarchy, np.zeros(0, np.int64))
        return weight_of(*fresh_pulls(objective, labels, targets))

    whole = weight(labels, targets)
    without_labels = weight(torch.where(gone, -1, labels), targets)
    assert without_labels == pytest.approx(whole, rel=0.35)
    assert weight(labels, replace(targets, valid=~gone)) == pytest.approx(whole, rel=0.1)
    assert weight(labels, replace(targets, valid=torch.zeros(128, dtype=torch.bool))) == 0
    assert 0 < weight(torch.full((128,), -1), targets) < whole
