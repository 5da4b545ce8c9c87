import subprocess
import sys
from inspect import unwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from plain_losses import plain_kd_loss, plain_softmax_loss

from distill.hierarchy.semantic import SemanticHierarchy
from distill.hierarchy.softmax import hierarchy_probs
from distill.losses.semantic import semantic_kd_loss, semantic_softmax_loss, teacher_confidence
from distill.targets.encoding import EncodingSpec
from distill.targets.tensors import DenseTargets, SparseTargets, dense_targets, densify, encode

FALL11 = "imagenet21k-p-fall11"


def budget(hierarchy: SemanticHierarchy, entries: int, steps: int = 255) -> EncodingSpec:
    sizes = hierarchy.classes_per_hierarchy
    return EncodingSpec(entries=tuple(min(entries, n) for n in sizes), prob_steps=steps)


@pytest.fixture(params=["small", "tiny_imagenet_h"])
def reference(request: pytest.FixtureRequest, shared: Path) -> tuple[SemanticHierarchy, Any]:
    """A tree, and what the paper's authors' released code gave on it."""
    vectors = np.load(shared / "reference" / f"semantic_{request.param}.npz")
    chains = vectors["class_chain_self_first"]
    names = [f"c{c}" for c in range(len(chains))]
    ancestors = {names[c]: [names[a] for a in rest if a >= 0] for c, *rest in chains}
    hierarchy = SemanticHierarchy.from_chains(names, ancestors)
    return hierarchy, {name: torch.from_numpy(np.asarray(vectors[name])) for name in vectors}


def test_hierarchy_equals_the_reference(reference: tuple[SemanticHierarchy, Any]) -> None:
    hierarchy, r = reference
    assert list(hierarchy.classes_per_hierarchy) == r["num_classes_per_hierarchy"].tolist()
    assert torch.equal(hierarchy.semantic_labels(r["labels"]), r["semantic_targets"])
    np.testing.assert_allclose(hierarchy.weights, r["normalization"], rtol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_semantic_softmax_equals_the_reference(
    reference: tuple[SemanticHierarchy, Any], smoothing: float
) -> None:
    hierarchy, r = reference
    logits = r["student_logits"].clone().requires_grad_()
    loss = semantic_softmax_loss(
        logits=logits,
        labels=r["labels"],
        hierarchy=hierarchy,
        label_smoothing=smoothing,
        weights="paper",
    )
    loss.backward()
    torch.testing.assert_close(loss, r[f"semantic_softmax_loss_ls{smoothing}"], rtol=1e-5, atol=0)
    expected = r[f"semantic_softmax_grad_ls{smoothing}"]
    torch.testing.assert_close(logits.grad, expected, rtol=1e-5, atol=1e-8)


def test_confidence_equals_the_reference(reference: tuple[SemanticHierarchy, Any]) -> None:
    hierarchy, r = reference
    probs = hierarchy_probs(r["teacher_logits"], hierarchy)
    expected = r["teacher_confidence_top5pct"]
    found = teacher_confidence(probs=probs, hierarchy=hierarchy, rule="teacher_only")
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    with_labels = teacher_confidence(probs=probs, hierarchy=hierarchy, labels=r["labels"])
    depths = hierarchy.label_depths(r["labels"])
    for row, depth in enumerate(depths.tolist()):
        assert (with_labels[row, :depth] == 1).all()
        torch.testing.assert_close(with_labels[row, depth:], expected[row, depth:])


def test_dense_kd_equals_the_reference(reference: tuple[SemanticHierarchy, Any]) -> None:
    hierarchy, r = reference
    logits = r["student_logits"].clone().requires_grad_()
    loss = semantic_kd_loss(
        student_logits=logits,
        targets=dense_targets(r["teacher_logits"], hierarchy),
        labels=None,
        hierarchy=hierarchy,
        divergence="mse",
        reduction="sum",
    )
    loss.backward()
    torch.testing.assert_close(loss, r["kd_mse_sum"], rtol=1e-5, atol=0)
    torch.testing.assert_close(logits.grad, r["kd_mse_sum_grad"], rtol=1e-5, atol=1e-8)


def test_sparse_kd_that_keeps_all_equals_the_reference(
    reference: tuple[SemanticHierarchy, Any],
) -> None:
    hierarchy, r = reference
    logits = r["student_logits"].clone().requires_grad_()
    everything = EncodingSpec(entries=hierarchy.classes_per_hierarchy, prob_steps=65535)
    loss = semantic_kd_loss(
        student_logits=logits,
        targets=encode(r["teacher_logits"], hierarchy, everything),
        labels=None,
        hierarchy=hierarchy,
        divergence="mse",
        reduction="sum",
    )
    loss.backward()
    torch.testing.assert_close(loss, r["kd_mse_sum"], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(logits.grad, r["kd_mse_sum_grad"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("weights", ["paper", "sqrt", "even"])
@pytest.mark.parametrize("name", ["plane-figures", FALL11])
def test_semantic_softmax_equals_one_image_at_a_time(name: str, weights: Any) -> None:
    hierarchy = SemanticHierarchy.bundled(name)
    torch.manual_seed(0)
    labels = torch.randint(-1, hierarchy.num_classes, (6,))
    logits = torch.randn(6, hierarchy.num_classes, requires_grad=True)
    plain = logits.detach().clone().requires_grad_()
    fast = semantic_softmax_loss(
        logits=logits, labels=labels, hierarchy=hierarchy, label_smoothing=0.2, weights=weights
    )
    slow = plain_softmax_loss(plain, labels, hierarchy, 0.2, weights)
    fast.backward()
    slow.backward()
    torch.testing.assert_close(fast, slow, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(logits.grad, plain.grad, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("divergence", ["mse", "kl", "dist"])
@pytest.mark.parametrize("entries", [2, 8, 1024])
def test_sparse_kd_equals_one_image_at_a_time_on_the_decoded_teacher(
    hierarchy: SemanticHierarchy, divergence: Any, entries: int
) -> None:
    torch.manual_seed(0)
    teacher = encode(torch.randn(5, 29) * 3, hierarchy, budget(hierarchy, entries))
    labels = torch.tensor([0, 28, -1, 12, 27])
    decoded = densify(teacher, hierarchy)
    exact = SparseTargets(
        **{
            **vars(teacher),
            "sq_norm": torch.stack([decoded[:, m].square().sum(1) for m in hierarchy.slices], 1),
        }
    )
    logits = torch.randn(5, 29, requires_grad=True)
    plain = logits.detach().clone().requires_grad_()
    fast = semantic_kd_loss(
        student_logits=logits,
        targets=exact,
        labels=labels,
        hierarchy=hierarchy,
        divergence=divergence,
    )
    slow = plain_kd_loss(plain, decoded, exact.confidence, labels, hierarchy, divergence)
    fast.backward()
    slow.backward()
    torch.testing.assert_close(fast, slow, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(logits.grad, plain.grad, rtol=1e-4, atol=1e-7)


def test_empty_slots_may_name_any_class(hierarchy: SemanticHierarchy) -> None:
    torch.manual_seed(0)
    targets = encode(torch.randn(3, 29) * 9, hierarchy, budget(hierarchy, 8, steps=15))
    empty = targets.prob == 0
    assert empty.any()
    renamed = SparseTargets(**{**vars(targets), "index": targets.index.masked_fill(empty, 0)})
    logits = torch.randn(3, 29)
    torch.testing.assert_close(densify(renamed, hierarchy), densify(targets, hierarchy))
    for divergence in ("mse", "kl", "dist"):
        losses = [
            semantic_kd_loss(
                student_logits=logits,
                targets=t,
                labels=None,
                hierarchy=hierarchy,
                divergence=divergence,
            )
            for t in (targets, renamed)
        ]
        torch.testing.assert_close(losses[0], losses[1])


@pytest.mark.parametrize("divergence", ["mse", "kl", "dist"])
@pytest.mark.parametrize("sparse", [False, True])
def test_rows_the_teacher_did_not_see_add_nothing(
    hierarchy: SemanticHierarchy, sparse: bool, divergence: Any
) -> None:
    torch.manual_seed(0)
    teacher, logits = torch.randn(4, 29), torch.randn(4, 29)
    labels = torch.tensor([1, 28, 28, 3])

    def loss(rows: slice, valid: torch.Tensor | None) -> torch.Tensor:
        dense = dense_targets(teacher[rows], hierarchy)
        masked = DenseTargets(probs=dense.probs, confidence=dense.confidence, valid=valid)
        targets = encode(teacher[rows], hierarchy, budget(hierarchy, 8)) if sparse else masked
        if isinstance(targets, SparseTargets):
            targets = SparseTargets(**{**vars(targets), "valid": valid})
        return semantic_kd_loss(
            student_logits=logits[rows],
            targets=targets,
            labels=labels[rows],
            hierarchy=hierarchy,
            divergence=divergence,
            reduction="sum",
        )

    valid = torch.tensor([True, True, False, False])
    torch.testing.assert_close(loss(slice(0, 4), valid), loss(slice(0, 2), None))


@pytest.mark.parametrize("images", [1, 16])
def test_relations_pull_at_a_student_that_knows_nothing_within_bounds(images: int) -> None:
    """Where Pearson's correlation has a gradient without bound, and noise would count."""
    wide = SemanticHierarchy.bundled("imagenet21k-p-fall11")
    torch.manual_seed(0)
    targets = dense_targets(6 * torch.randn(images, wide.num_classes), wide)
    pulls = {}
    for spread in (0.0, 1e-6, 0.1, 1.0):
        logits = (spread * torch.randn(images, wide.num_classes)).requires_grad_()
        loss = semantic_kd_loss(
            student_logits=logits,
            targets=targets,
            labels=None,
            hierarchy=wide,
            divergence="dist",
            reduction="sum",
        )
        (gradient,) = torch.autograd.grad(loss, logits)
        pulls[spread] = float(gradient.norm(dim=1).mean())
    assert 0 < pulls[1.0] < pulls[0.1] < 1.1 * pulls[0.0] < 20 * pulls[1.0]
    assert pulls[1e-6] == pytest.approx(pulls[0.0], rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_compute_in_float32_under_autocast(
    hierarchy: SemanticHierarchy, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    labels = torch.tensor([3, 28])
    layer = torch.nn.Linear(8, 29)
    targets = encode(torch.randn(2, 29), hierarchy, budget(hierarchy, 8))
    with torch.autocast("cpu", dtype=dtype):
        logits = layer(torch.randn(2, 8))
        assert logits.dtype == dtype
        loss = semantic_softmax_loss(logits=logits, labels=labels, hierarchy=hierarchy)
        kd = semantic_kd_loss(
            student_logits=logits, targets=targets, labels=labels, hierarchy=hierarchy
        )
    outside = semantic_softmax_loss(logits=logits.float(), labels=labels, hierarchy=hierarchy)
    assert loss.dtype == kd.dtype == torch.float32
    torch.testing.assert_close(loss, outside)
    (loss + kd).backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.isfinite().all()


COMPILED = """
import torch
from distill.targets.encoding import EncodingSpec
from distill.hierarchy.semantic import SemanticHierarchy
from distill.losses.semantic import semantic_kd_loss, semantic_softmax_loss
from distill.targets.tensors import encode

hierarchy = SemanticHierarchy.bundled("plane-figures")
torch.manual_seed(0)
logits = torch.randn(4, 29, requires_grad=True)
labels = torch.tensor([3, 28, -1, 0])
targets = encode(torch.randn(4, 29), hierarchy, EncodingSpec(entries=(3, 3, 3, 3)))

def total(logits):
    softmax = semantic_softmax_loss(
        logits=logits, labels=labels, hierarchy=hierarchy, label_smoothing=0.1
    )
    return softmax + semantic_kd_loss(
        student_logits=logits, targets=targets, labels=labels, hierarchy=hierarchy
    )

(expected,) = torch.autograd.grad(total(logits), logits)
value = torch.compile(total, fullgraph=True)(logits)
(found,) = torch.autograd.grad(value, logits)
torch.testing.assert_close(value, total(logits))
torch.testing.assert_close(found, expected)
"""


def test_losses_compile_into_one_graph() -> None:
    """In a process of its own: the run-time shape checks of these tests cannot be compiled."""
    subprocess.run([sys.executable, "-c", COMPILED], check=True)


def test_callers_bugs_are_value_errors_also_without_shape_checks(
    hierarchy: SemanticHierarchy,
) -> None:
    kd_loss, softmax_loss = unwrap(semantic_kd_loss), unwrap(semantic_softmax_loss)
    logits, labels = torch.randn(4, 29), torch.zeros(4, dtype=torch.int64)
    targets = encode(torch.randn(3, 29), hierarchy, budget(hierarchy, 8))
    with pytest.raises(ValueError, match="targets for 3 images found, expected 4"):
        kd_loss(student_logits=logits, targets=targets, labels=None, hierarchy=hierarchy)
    with pytest.raises(ValueError, match=r"expected \[batch, 29\]"):
        softmax_loss(logits=torch.randn(4, 30), labels=labels, hierarchy=hierarchy)
    with pytest.raises(ValueError, match="labels for 2 images found"):
        softmax_loss(logits=logits, labels=labels[:2], hierarchy=hierarchy)
    other = SemanticHierarchy.from_chains([f"c{i}" for i in range(29)], {})
    with pytest.raises(ValueError, match="targets of 4 hierarchies found, expected 1"):
        kd_loss(student_logits=logits[:3], targets=targets, labels=None, hierarchy=other)
    with pytest.raises(ValueError, match="expected one of mse, kl, dist"):
        kd_loss(
            student_logits=logits[:3],
            targets=targets,
            labels=None,
            hierarchy=hierarchy,
            divergence="l1",
        )
