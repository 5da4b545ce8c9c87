"""Mixup and CutMix: what the images are, and what their mixture is taught."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from distill.hierarchy.semantic import SemanticHierarchy
from distill.losses.semantic import semantic_kd_loss
from distill.targets.encoding import EncodingSpec
from distill.targets.tensors import DenseTargets, TeacherTargets, dense_targets, encode
from distill.trainers.recipe import Recipe
from distill.trainers.training.mixing import mixed, mixed_losses
from distill.trainers.training.objectives import objective_of


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_nothing_is_mixed_by_default() -> None:
    images = torch.rand(4, 3, 8, 8)
    assert mixed(images, mixup=0, cutmix=0) == (images, 1.0)
    alone = torch.rand(1, 3, 8, 8)
    assert mixed(alone, mixup=1, cutmix=1) == (alone, 1.0)


def test_mixup_mixes_with_the_opposite_image() -> None:
    images = torch.rand(5, 3, 8, 8)
    made, own = mixed(images, mixup=0.8, cutmix=0)
    assert 0 < own < 1
    torch.testing.assert_close(made, own * images + (1 - own) * images.flip(0))


def test_cutmix_share_is_that_of_the_pixels() -> None:
    """As cut off at the border; each pixel is of one image."""
    images = torch.arange(6.0)[:, None, None, None].expand(6, 3, 9, 16)
    for _ in range(50):
        made, own = mixed(images, mixup=0, cutmix=1.0)
        mine = made == images
        assert (mine | (made == images.flip(0))).all()
        assert float(mine[0, 0].float().mean()) == pytest.approx(own)
        assert (mine == mine[:1, :1]).all()


def test_both_take_turns() -> None:
    images = torch.arange(2.0)[:, None, None, None].expand(2, 3, 8, 8)
    cuts = [bool(((m := mixed(images, mixup=1, cutmix=1)[0]) % 1 == 0).all()) for _ in range(60)]
    assert 15 < sum(cuts) < 45
    assert m.shape == images.shape


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("divergence", ["mse", "kl"])
def test_gradient_is_that_of_the_mixed_target(
    hierarchy: SemanticHierarchy, divergence: str, sparse: bool
) -> None:
    """Of a teacher that is as confident of both: [λT + (1 − λ)T'] in the place of T."""
    own, count = 0.3, 6
    labels = torch.full((count,), -1)
    teacher = 4 * torch.randn(count, hierarchy.num_classes)
    dense = dense_targets(teacher, hierarchy)
    dense = DenseTargets(probs=dense.probs, confidence=torch.ones_like(dense.confidence))
    answers: TeacherTargets = dense
    if sparse:
        sizes = hierarchy.classes_per_hierarchy
        whole = EncodingSpec(entries=sizes, prob_steps=65535)
        answers = replace(encode(teacher, hierarchy, whole), confidence=dense.confidence)
    recipe = Recipe(student="", divergence=divergence)  # type: ignore[arg-type]
    objective = objective_of(recipe, hierarchy, np.zeros(0, np.int64))
    logits = torch.randn(count, hierarchy.num_classes, requires_grad=True)
    _, kd = mixed_losses(objective, logits, labels, answers, own)
    (found,) = torch.autograd.grad(kd, logits)
    target = DenseTargets(
        probs=own * dense.probs + (1 - own) * dense.probs.flip(0), confidence=dense.confidence
    )
    direct = semantic_kd_loss(
        student_logits=logits,
        targets=target,
        labels=None,
        hierarchy=hierarchy,
        divergence=divergence,  # type: ignore[arg-type]
    )
    (expected,) = torch.autograd.grad(direct, logits)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=2e-5 if sparse else 1e-6)


def test_labels_are_mixed(hierarchy: SemanticHierarchy) -> None:
    recipe = Recipe(student="", scheme="single-label", label_smoothing=0.0)
    objective = objective_of(recipe, hierarchy, np.zeros(0, np.int64))
    labels, logits = torch.tensor([1, 2, 3]), torch.randn(3, hierarchy.num_classes)
    loss, kd = mixed_losses(objective, logits, labels, None, 0.25)
    log_probs = logits.log_softmax(1)
    each = [0.25 * log_probs[i, i + 1] + 0.75 * log_probs[i, 3 - i] for i in range(3)]
    torch.testing.assert_close(loss, -torch.stack(each).mean())
    assert kd == 0


COMPILED = """
import numpy as np
import torch
from distill.hierarchy.semantic import resolve
from distill.targets.encoding import EncodingSpec
from distill.targets.tensors import encode
from distill.trainers.recipe import Recipe
from distill.trainers.training.mixing import compiled_losses, mixed_losses
from distill.trainers.training.objectives import objective_of

hierarchy = resolve("plane-figures")
count = hierarchy.num_classes
for scheme in ("single-label", "multi-label", "semantic"):
    made = []
    torch._dynamo.reset()
    compiled = compiled_losses(lambda graph, inputs: made.append(graph) or graph.forward)
    objective = objective_of(Recipe(student="x", scheme=scheme), hierarchy, np.arange(-1, 15))
    for rows, own in ((16, 1.0), (16, 1.0), (15, 1.0), (16, 0.75), (14, 0.25), (13, 0.6)):
        targets = encode(torch.randn(rows, count), hierarchy, EncodingSpec(entries=(4, 4, 4, 3)))
        labels = objective.labels([*range(rows)])
        given = objective, torch.randn(rows, count), labels, targets, own
        torch.testing.assert_close(compiled(*given), mixed_losses(*given))
    assert len(made) == 2, (scheme, len(made))  # not mixed, and mixed
"""


def test_compiled_losses_are_the_same() -> None:
    """Of batches of other sizes and shares too, without being compiled anew for each.

    In a process that checks no shapes: checks cannot be compiled.
    """
    run = [sys.executable, "-c", COMPILED]
    done = subprocess.run(run, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
