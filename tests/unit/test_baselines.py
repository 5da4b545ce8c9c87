"""The losses of the schemes that the paper compares with, against plain ones."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from distill.hierarchy.semantic import SemanticHierarchy
from distill.hierarchy.softmax import class_log_probs, hierarchy_probs
from distill.losses.baselines import (
    multi_label_kd_loss,
    multi_label_loss,
    present_classes,
    single_label_kd_loss,
    single_label_loss,
)
from distill.losses.fidelity import gradient_angles
from distill.losses.names import Divergence, MultiLabelLoss
from distill.losses.semantic import semantic_kd_loss, teacher_confidence
from distill.targets.encoding import Answers, EncodingSpec
from distill.targets.tensors import (
    DenseTargets,
    SparseTargets,
    TeacherTargets,
    dense_targets,
    densify,
    encode,
    raw_targets,
    sparsify,
)


@pytest.fixture
def logits() -> Tensor:
    return torch.randn(6, 29, generator=torch.Generator().manual_seed(1)) * 3


@pytest.fixture
def teacher() -> Tensor:
    return torch.randn(6, 29, generator=torch.Generator().manual_seed(2)) * 3


@pytest.fixture
def labels(hierarchy: SemanticHierarchy) -> Tensor:
    """Of every level, one dropped, and one of nothing."""
    at = [int((hierarchy.levels == level).nonzero()[0][0]) for level in range(5)]
    return torch.tensor([*at, -1])


def _single(labels: Tensor, **arguments: Any) -> Tensor:
    return single_label_kd_loss(labels=labels, **arguments)


def _multi(labels: Tensor, **arguments: Any) -> Tensor:
    """Less what is least: the entropy of the teacher's answers."""
    loss = multi_label_kd_loss(**arguments, kind="bce")
    targets = arguments["targets"]
    if (
        arguments["divergence"] == "mse"
        or targets.answers != "softmax"
        or targets.valid is not None
    ):
        return loss
    exact = targets.probs
    order = torch.from_numpy(arguments["hierarchy"].class_order)
    logits = torch.zeros(len(exact), 29)
    logits[:, order] = exact.log()
    present = class_log_probs(logits, arguments["hierarchy"]).exp()[:, order]
    return loss - F.binary_cross_entropy(present, present, reduction="sum") / len(exact)


def wanted_classes(label: int, hierarchy: SemanticHierarchy) -> set[int]:
    if label < 0:
        return set()
    own = hierarchy.synsets[label]
    return {label, *(hierarchy.index(a) for a in hierarchy.ancestors(own))}


def dense_and_sparse(
    teacher: Tensor, hierarchy: SemanticHierarchy
) -> list[tuple[DenseTargets | SparseTargets, Tensor]]:
    """Targets, and the probabilities [B, ΣN_k] that they stand for."""
    dense = dense_targets(teacher, hierarchy)
    sparse = encode(teacher, hierarchy, EncodingSpec(entries=(4, 4, 4, 3)))
    return [(dense, dense.probs), (sparse, densify(sparse, hierarchy))]


def test_single_label_loss_is_cross_entropy_of_labelled_images_over_the_batch(
    logits: Tensor, labels: Tensor
) -> None:
    loss = single_label_loss(logits=logits, labels=labels, label_smoothing=0.2)
    ones = [
        F.cross_entropy(row[None], label[None], label_smoothing=0.2)
        for row, label in zip(logits, labels, strict=True)
        if label >= 0
    ]
    torch.testing.assert_close(loss, sum(ones) / len(labels))


def test_present_classes_are_the_label_and_its_ancestors(
    labels: Tensor, hierarchy: SemanticHierarchy
) -> None:
    present = present_classes(labels, hierarchy)
    for row, label in zip(present, labels.tolist(), strict=True):
        assert set(row.nonzero()[:, 0].tolist()) == wanted_classes(label, hierarchy)
    deepest = present_classes(torch.arange(29), hierarchy)
    assert [set(row.nonzero()[:, 0].tolist()) for row in deepest] == [
        wanted_classes(label, hierarchy) for label in range(29)
    ]


@pytest.mark.parametrize("kind", ["bce", "focal", "asl"])
def test_multi_label_losses_equal_one_class_at_a_time(
    kind: str, logits: Tensor, labels: Tensor, hierarchy: SemanticHierarchy
) -> None:
    present = present_classes(labels, hierarchy)
    total = 0.0
    for row, yes in zip(logits.double(), present, strict=True):
        for z, wanted in zip(row.tolist(), yes.tolist(), strict=True):
            p = 1 / (1 + math.exp(-z))
            if not yes.any():
                continue
            if kind == "bce":
                total -= math.log(p if wanted else 1 - p)
            elif kind == "focal":
                sure = p if wanted else 1 - p
                total -= (1 - sure) ** 2 * math.log(sure)
            elif wanted:
                total -= math.log(p)
            else:
                shifted = min(1 - p + 0.05, 1.0)
                total -= (1 - shifted) ** 4 * math.log(shifted)
    loss = multi_label_loss(logits=logits, present=present, kind=kind)  # type: ignore[arg-type]
    assert float(loss) == pytest.approx(total / len(labels), rel=1e-4)


@pytest.mark.parametrize("divergence", ["mse", "kl"])
@pytest.mark.parametrize("which", [0, 1], ids=["dense", "sparse"])
def test_plain_kd_compares_one_softmax_with_the_teachers_mixture(
    divergence: Divergence,
    which: int,
    logits: Tensor,
    teacher: Tensor,
    labels: Tensor,
    hierarchy: SemanticHierarchy,
) -> None:
    targets, probs = dense_and_sparse(teacher, hierarchy)[which]
    exact = dense_targets(teacher, hierarchy).probs
    confidence = teacher_confidence(probs=exact, hierarchy=hierarchy, labels=labels)
    mixture, squares = torch.zeros(6, 29), torch.zeros(6)
    for k, members in enumerate(hierarchy.slices):
        share = (confidence[:, k] / confidence.sum(1))[:, None]
        mixture[:, torch.from_numpy(hierarchy.class_order[members])] = share * probs[:, members]
        squares += (share * exact[:, members]).square().sum(1)
    student = logits.softmax(1)
    if divergence == "mse":
        # The exact teacher's ΣT² is stored; only the cross-term has the even tail.
        expected = student.square().sum(1) - 2 * (student * mixture).sum(1) + squares
    else:
        expected = F.kl_div(student.log(), mixture, reduction="none").sum(1)
    found = single_label_kd_loss(
        student_logits=logits,
        targets=targets,
        labels=labels,
        hierarchy=hierarchy,
        divergence=divergence,
    )
    torch.testing.assert_close(found, expected.mean(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["asl", "bce", "focal"])
@pytest.mark.parametrize("answers", ["softmax", "sigmoid"])
@pytest.mark.parametrize("which", [0, 1], ids=["dense", "sparse"])
def test_multi_label_kd_is_the_loss_on_labels_that_the_teacher_would_give(
    kind: MultiLabelLoss,
    answers: Answers,
    which: int,
    logits: Tensor,
    teacher: Tensor,
    hierarchy: SemanticHierarchy,
) -> None:
    """The mean over tags drawn as the teacher says is the distance; class by class, in closed form.

    A class that is under another is no more probable than that.
    """
    order = torch.from_numpy(hierarchy.class_order)
    targets, probs = dense_and_sparse(teacher, hierarchy)[which]
    if answers == "sigmoid":
        probs = teacher[:, order].sigmoid()
        targets = raw_targets(probs, hierarchy, "sigmoid")
    present = torch.zeros(6, 29)
    for at, c in enumerate(order.tolist()):
        present[:, c] = probs[:, at]
        if answers == "softmax":
            siblings = [
                place
                for place, d in enumerate(order.tolist())
                if hierarchy.parents[d] == hierarchy.parents[c]
            ]
            total = probs[:, siblings].sum(1)  # of none a sparse teacher says anything: even
            share = present[:, c] / total.clamp(min=1e-12)
            present[:, c] = torch.where(total > 0, share, 1 / len(siblings))
            if hierarchy.parents[c] >= 0:
                present[:, c] *= present[:, hierarchy.parents[c]]
    one = torch.ones(1, 1, dtype=torch.bool)
    expected = torch.zeros(())
    for row in range(6):
        for c in order.tolist():
            z, p = logits[row, c].reshape(1, 1), present[row, c]
            yes = multi_label_loss(logits=z, present=one, known=one, kind=kind)
            no = multi_label_loss(logits=z, present=~one, known=one, kind=kind)
            expected = expected + (p * yes + (1 - p) * no) / 6
    given = {"student_logits": logits, "targets": targets, "hierarchy": hierarchy}
    torch.testing.assert_close(multi_label_kd_loss(**given, kind=kind), expected)
    squares = (logits.sigmoid() - present)[:, order].square().sum() / 6
    torch.testing.assert_close(multi_label_kd_loss(**given, divergence="mse"), squares)


@pytest.mark.parametrize("divergence", ["mse", "kl"])
@pytest.mark.parametrize("sparse", [False, True])
def test_a_teacher_with_one_softmax_is_compared_as_it_is(
    divergence: Divergence,
    sparse: bool,
    logits: Tensor,
    teacher: Tensor,
    labels: Tensor,
    hierarchy: SemanticHierarchy,
) -> None:
    assert len(hierarchy.class_order) == 28  # one class is of no hierarchy, and what is left over
    said = teacher.softmax(1)
    exact: TeacherTargets = raw_targets(
        said[:, torch.from_numpy(hierarchy.class_order)], hierarchy, "flat"
    )
    whole = EncodingSpec(entries=hierarchy.classes_per_hierarchy, prob_steps=65535)
    targets = sparsify(exact, hierarchy, whole) if sparse else exact
    arguments = {"student_logits": logits, "labels": labels, "hierarchy": hierarchy}
    found = single_label_kd_loss(**arguments, targets=targets, divergence=divergence)
    expected = (logits.softmax(1) - said).square().sum() / 6
    if divergence == "kl":
        expected = F.kl_div(logits.log_softmax(1), said, reduction="sum") / 6
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    for loss in (semantic_kd_loss, _multi):
        with pytest.raises(ValueError, match="answers 'flat' found"):
            loss(**arguments, targets=targets, divergence=divergence)


@pytest.mark.parametrize("answers", ["sigmoid", "flat"])
def test_a_few_raw_answers_and_their_mass_turn_the_gradient_little(
    answers: Answers, teacher: Tensor, labels: Tensor, hierarchy: SemanticHierarchy
) -> None:
    """Angles against gradients that autograd finds, of the loss that trains."""
    said, loss = (teacher - 4).sigmoid(), _multi
    if answers == "flat":
        said, loss = teacher.softmax(1), _single
    said = said[:, torch.from_numpy(hierarchy.class_order)]
    exact = raw_targets(said, hierarchy, answers)
    few = sparsify(exact, hierarchy, EncodingSpec(entries=(4, 4, 4, 3)))
    angles = gradient_angles(
        exact=exact, sparse=few, others=said.roll(1, 0), labels=labels, hierarchy=hierarchy
    )
    for divergence in ("mse", "kl"):
        gradients = []
        for targets in (exact, replace(exact, probs=densify(few, hierarchy))):
            student = torch.zeros(6, 29, dtype=torch.float32, requires_grad=True)
            loss(
                labels,
                student_logits=student,
                targets=targets,
                hierarchy=hierarchy,
                divergence=divergence,
            ).backward()
            gradients.append(student.grad)
        cosine = F.cosine_similarity(*gradients, dim=1)  # type: ignore[arg-type]
        found = angles[f"{divergence}_fresh"].float()
        torch.testing.assert_close(found, torch.rad2deg(cosine.acos()), atol=0.05, rtol=0.01)
        assert angles[f"{divergence}_fresh"].max() < 6


@pytest.mark.parametrize("loss", [_single, _multi])
@pytest.mark.parametrize("divergence", ["mse", "kl"])
def test_kd_is_least_where_the_student_is_the_teacher_and_rows_not_seen_add_nothing(
    loss, divergence: str, teacher: Tensor, labels: Tensor, hierarchy: SemanticHierarchy
) -> None:  # type: ignore[no-untyped-def]
    dense = dense_targets(teacher, hierarchy)
    blind = DenseTargets(
        probs=dense.probs, confidence=dense.confidence, valid=torch.zeros(6, dtype=torch.bool)
    )
    student = torch.zeros(6, 29, requires_grad=True)
    value = loss(
        student_logits=student,
        targets=blind,
        labels=labels,
        hierarchy=hierarchy,
        divergence=divergence,
    )
    value.backward()
    assert value == 0
    assert (student.grad == 0).all()
    student = torch.zeros(6, 29, requires_grad=True)
    optimizer, values = torch.optim.Adam([student], lr=0.3), []
    for _ in range(300):
        optimizer.zero_grad()
        value = loss(
            student_logits=student,
            targets=dense,
            labels=labels,
            hierarchy=hierarchy,
            divergence=divergence,
        )
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < values[0] / 20
    assert values[-1] > -1e-4


def test_class_probabilities_walk_down_the_tree(
    logits: Tensor, hierarchy: SemanticHierarchy
) -> None:
    """A parent's probability is shared among its children; without children of it all sum to 1."""
    probs = class_log_probs(logits, hierarchy).exp()
    parents = torch.tensor(hierarchy.parents)
    roots = parents < 0
    torch.testing.assert_close(probs[:, roots].sum(1), torch.ones(6))
    for parent in set(hierarchy.parents) - {-1}:
        children = parents == parent
        torch.testing.assert_close(probs[:, children].sum(1), probs[:, parent])
        known = torch.from_numpy(hierarchy.levels < hierarchy.num_hierarchies)[children]
        if known.all():
            share = logits[:, children].softmax(1) * probs[:, parent, None]
            torch.testing.assert_close(probs[:, children], share)
        else:
            spread = probs[:, children].amax(1) - probs[:, children].amin(1)
            assert (spread < 1e-6).all()
    far = class_log_probs(logits * 100, hierarchy)
    assert far.isfinite().all()  # probabilities that underflow keep their order
    level0 = hierarchy_probs(logits, hierarchy)[:, hierarchy.slices[0]]
    order = torch.from_numpy(hierarchy.class_order[hierarchy.slices[0]])
    torch.testing.assert_close(probs[:, order], level0)
