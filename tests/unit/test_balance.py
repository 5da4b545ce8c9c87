"""Automatic KD weights: what a fresh student is pulled by, at any number of classes."""

import numpy as np
import pytest
import torch

from distill.hierarchy.semantic import SemanticHierarchy
from distill.targets.tensors import DenseTargets, dense_targets
from distill.trainers.recipe import Recipe
from distill.trainers.training.balance import fresh_pulls
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
    return fresh_pulls(objective, labels, targets)


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
