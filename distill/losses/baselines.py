"""The losses that the paper compares with: one softmax over all classes, one sigmoid for each.

Each has its own form of distillation from the same targets, so that schemes differ in nothing else.
Pure functions over [batch, classes] logits, computed in float32, averaged over the whole batch.
"""

from typing import get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from timm.loss import AsymmetricLossMultiLabel
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from distill.hierarchy.semantic import SemanticHierarchy
from distill.hierarchy.softmax import class_log_probs, hierarchy_logits
from distill.losses.distances import (
    negative_entropy,
    squared_error,
    teacher_product,
    teacher_squares,
)
from distill.losses.names import Divergence, MultiLabelLoss
from distill.losses.semantic import confidence_of, require_softmax
from distill.targets.tensors import DenseTargets, TeacherTargets, densify

FOCAL_GAMMA = 2.0  # Lin et al. 2017, arXiv 1708.02002
ASL_GAMMA_NEG, ASL_GAMMA_POS = 4.0, 0.0  # what the paper takes of Ridnik et al. 2020, 2009.14119


def single_label_loss(
    *,
    logits: Float[Tensor, "batch classes"],
    labels: Int[Tensor, " batch"],
    label_smoothing: float = 0.0,
) -> Float[Tensor, ""]:
    """Cross-entropy (nats) of one softmax over all classes; a negative label adds nothing."""
    labels = torch.where(labels < 0, -1, labels.long())
    total: Tensor = F.cross_entropy(
        logits.float(),
        labels,
        ignore_index=-1,
        label_smoothing=label_smoothing,
        reduction="sum",
    )
    return total / max(1, len(labels))


def multi_label_loss(
    *,
    logits: Float[Tensor, "batch classes"],
    present: Bool[Tensor, "batch classes"],
    kind: MultiLabelLoss = "asl",
    known: Bool[Tensor, "batch classes"] | None = None,
) -> Float[Tensor, ""]:
    """One yes or no for each class, summed over the classes (nats).

    known: decisions that count; None takes all of the rows that have a class.
    kind: plain binary cross-entropy, focal (γ = 2), or asymmetric (γ⁻ = 4, γ⁺ = 0, shift 0.05).
    """
    each = _each(logits.float(), present.float(), kind)
    if known is None:
        total = torch.where(present.any(1), each.sum(1), 0.0).sum()
    else:
        total = torch.where(known, each, 0.0).sum()
    return total / max(1, len(present))


def _each(
    logits: Float[Tensor, "batch classes"],
    wanted: Float[Tensor, "batch classes"],
    kind: MultiLabelLoss,
) -> Float[Tensor, "batch classes"]:
    if kind == "bce":
        return F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    if kind == "focal":
        focal: Tensor = sigmoid_focal_loss(
            logits, wanted, alpha=-1, gamma=FOCAL_GAMMA, reduction="none"
        )
        return focal
    asymmetric: Tensor = AsymmetricLossMultiLabel(
        gamma_neg=ASL_GAMMA_NEG,
        gamma_pos=ASL_GAMMA_POS,
        disable_torch_grad_focal_loss=True,  # as its authors train (decision 84)
        reduction="none",
    )(logits, wanted)
    return asymmetric


def present_classes(
    labels: Int[Tensor, " batch"], hierarchy: SemanticHierarchy
) -> Bool[Tensor, "batch classes"]:
    """Each label and all its ancestors, those of dropped levels too; none for a negative label."""
    none, tensors = hierarchy.num_classes, hierarchy.tensors(labels.device)
    label = torch.where(labels < 0, none, labels.long())
    semantic = hierarchy.semantic_labels(labels)
    columns = (semantic + tensors.starts).clamp(min=0)
    chain = torch.where(semantic < 0, none, tensors.class_order[columns])
    present = torch.zeros(len(labels), none + 1, dtype=torch.bool, device=labels.device)
    present.scatter_(1, torch.cat([label[:, None], chain], 1), True)
    return present[:, :none]


def single_label_kd_loss(
    *,
    student_logits: Float[Tensor, "batch classes"],
    targets: TeacherTargets,
    labels: Int[Tensor, " batch"] | None,
    hierarchy: SemanticHierarchy,
    divergence: Divergence = "kl",
) -> Float[Tensor, ""]:
    """Distance of one softmax over all classes from the teacher's answers as one distribution.

    Of a teacher with one softmax it is that, with classes of no hierarchy taken together, as it is
    stored; hierarchies are mixed in proportion to confidence, T = Σ_k (P_k / ΣP) · T_k. Squared
    error or KL(T‖S) in nats.

    Raises:
        ValueError: as `semantic_kd_loss`.
    """
    if targets.answers == "flat":
        return _flat_kd_loss(student_logits, targets, hierarchy, divergence)
    require_softmax(targets)
    _require_pointwise(divergence)
    confidence = confidence_of(targets, labels, hierarchy, student_logits)
    sums = confidence.sum(1, keepdim=True)
    share = confidence / sums.clamp(min=1e-12)
    if divergence == "mse":
        probs = student_logits.float().softmax(1)
        product = _product(probs, targets, hierarchy)
        ours = probs.square().sum(1)
        theirs = (share.square() * teacher_squares(targets, hierarchy)).sum(1)
        distance = ours + theirs - 2 * (share * product).sum(1)
    else:
        product = _product(student_logits.float().log_softmax(1), targets, hierarchy)
        entropy = share * negative_entropy(targets, hierarchy) + torch.special.xlogy(share, share)
        distance = (entropy - share * product).sum(1)
    return torch.where(sums[:, 0] > 0, distance, 0.0).sum() / max(1, len(student_logits))


def _flat_kd_loss(
    student_logits: Float[Tensor, "batch classes"],
    targets: TeacherTargets,
    hierarchy: SemanticHierarchy,
    divergence: Divergence,
) -> Float[Tensor, ""]:
    _require_pointwise(divergence)
    seen = confidence_of(targets, None, hierarchy, student_logits).any(1)
    log_probs = student_logits.float().log_softmax(1)
    tensors = hierarchy.tensors(log_probs.device)
    members = log_probs.index_select(1, tensors.class_order)
    elsewhere = log_probs.index_select(1, tensors.outside).logsumexp(1)  # -inf where there is none
    left = (1 - targets.confidence.float().sum(1)).clamp(min=0)
    if divergence == "mse":
        each = squared_error(student=members.exp(), targets=targets, hierarchy=hierarchy)
        rest = (elsewhere.exp() - left).square()
    else:
        each = negative_entropy(targets, hierarchy) - teacher_product(
            student=members, targets=targets, hierarchy=hierarchy
        )
        rest = torch.special.xlogy(left, left) - left * elsewhere
    distance = each.sum(1) + (rest if len(tensors.outside) else 0.0)
    return torch.where(seen, distance, 0.0).sum() / max(1, len(student_logits))


def multi_label_kd_loss(
    *,
    student_logits: Float[Tensor, "batch classes"],
    targets: TeacherTargets,
    hierarchy: SemanticHierarchy,
    divergence: Divergence = "kl",
    kind: MultiLabelLoss = "asl",
) -> Float[Tensor, ""]:
    """What `multi_label_loss` of that kind would be on average, if tags were as the teacher says.

    Σ_c T(c) · loss of a yes + (1 − T(c)) · loss of a no, whose gradient is that of KL for "bce";
    divergence "mse": Σ_c (T(c) − σ(z_c))². T(c) is the probability that class c is there: a sigmoid
    as it is; softmaxes as a walk down the tree, a class's share among the children of its parent
    times the parent's (`class_log_probs`). Classes of no hierarchy and rows that the teacher did
    not see add nothing.

    Raises:
        ValueError: batch sizes differ, the targets are of another hierarchy, or of one softmax.
    """
    if targets.answers == "flat":
        raise ValueError(
            "targets of answers 'flat' found, expected softmaxes by hierarchy, or sigmoids; "
            "single_label_kd_loss learns from one softmax"
        )
    _require_pointwise(divergence)
    if kind not in get_args(MultiLabelLoss):
        raise ValueError(f"kind {kind!r} found, expected one of {get_args(MultiLabelLoss)}")
    seen = confidence_of(targets, None, hierarchy, student_logits).any(1)
    logits = torch.cat(hierarchy_logits(student_logits, hierarchy), 1)
    present = _presence(targets, hierarchy)
    if divergence == "mse":
        distance = (logits.sigmoid() - present).square()
    else:
        yes = _each(logits, torch.ones_like(logits), kind)
        no = _each(logits, torch.zeros_like(logits), kind)
        distance = present * yes + (1 - present) * no
    return torch.where(seen, distance.sum(1), 0.0).sum() / max(1, len(student_logits))


def _require_pointwise(divergence: Divergence) -> None:
    """That nothing relates the images of a batch; semantic students alone learn from that."""
    if divergence not in ("mse", "kl"):
        raise ValueError(f"divergence {divergence!r} found, expected 'mse' or 'kl'")


def _presence(
    targets: TeacherTargets, hierarchy: SemanticHierarchy
) -> Float[Tensor, "batch members"]:
    """The probability that an image has a class, itself or by one below it, in hierarchy order."""
    probs = targets.probs if isinstance(targets, DenseTargets) else densify(targets, hierarchy)
    if targets.answers == "sigmoid":
        return probs.float()
    order = hierarchy.tensors(probs.device).class_order
    logits = probs.new_zeros(len(probs), hierarchy.num_classes, dtype=torch.float32)
    logits.index_copy_(1, order, probs.float().clamp_min(torch.finfo(torch.float32).tiny).log())
    return class_log_probs(logits, hierarchy).exp().index_select(1, order)


def _product(
    values: Float[Tensor, "batch classes"], targets: TeacherTargets, hierarchy: SemanticHierarchy
) -> Float[Tensor, "batch hierarchies"]:
    members = values.index_select(1, hierarchy.tensors(values.device).class_order)
    return teacher_product(student=members, targets=targets, hierarchy=hierarchy)
