"""The losses that the paper compares with: one softmax over all classes, one sigmoid for each.

Each has its own form of distillation from the same targets, so that schemes differ in nothing else.
Pure functions over [batch, classes] logits, computed in float32, averaged over the whole batch.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from timm.loss import AsymmetricLossMultiLabel
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from distill.hierarchy.semantic import SemanticHierarchy
from distill.hierarchy.softmax import hierarchy_logits, segment_sums
from distill.losses.distances import (
    negative_binary_entropy,
    negative_entropy,
    squared_error,
    teacher_product,
    teacher_squares,
)
from distill.losses.names import Divergence, MultiLabelLoss
from distill.losses.semantic import confidence_of, require_softmax
from distill.targets.tensors import TeacherTargets

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
    logits, wanted = logits.float(), present.float()
    if kind == "bce":
        each = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    elif kind == "focal":
        each = sigmoid_focal_loss(logits, wanted, alpha=-1, gamma=FOCAL_GAMMA, reduction="none")
    else:
        asymmetric = AsymmetricLossMultiLabel(
            gamma_neg=ASL_GAMMA_NEG, gamma_pos=ASL_GAMMA_POS, reduction="none"
        )
        each = asymmetric(logits, wanted)
    if known is None:
        total = torch.where(present.any(1), each.sum(1), 0.0).sum()
    else:
        total = torch.where(known, each, 0.0).sum()
    return total / max(1, len(present))


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
    divergence: Divergence = "mse",
) -> Float[Tensor, ""]:
    """Distance of one softmax over all classes from the teacher's answers as one distribution.

    Of a teacher with one softmax it is that; hierarchies are mixed in proportion to confidence,
    T = Σ_k (P_k / ΣP) · T_k. Squared error or KL(T‖S) in nats.

    Raises:
        ValueError: as `semantic_kd_loss`.
    """
    if targets.answers != "flat":
        require_softmax(targets)
    confidence = confidence_of(targets, labels, hierarchy, student_logits)
    sums = confidence.sum(1, keepdim=True)
    share = confidence if targets.answers == "flat" else confidence / sums.clamp(min=1e-12)
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


def multi_label_kd_loss(
    *,
    student_logits: Float[Tensor, "batch classes"],
    targets: TeacherTargets,
    labels: Int[Tensor, " batch"] | None,
    hierarchy: SemanticHierarchy,
    divergence: Divergence = "mse",
) -> Float[Tensor, ""]:
    """Σ_k P_k · distance of each class's sigmoid from the teacher's probability of it in k.

    Squared error, or the divergence of two yes-or-no answers in nats, summed over the classes. Of a
    teacher with sigmoids P_k is 1.
    """
    if targets.answers == "flat":
        require_softmax(targets)
    confidence = confidence_of(targets, labels, hierarchy, student_logits)
    logits = torch.cat(hierarchy_logits(student_logits, hierarchy), 1)
    if divergence == "mse":
        distance = squared_error(student=logits.sigmoid(), targets=targets, hierarchy=hierarchy)
    else:
        # Σ −T·log σ(z) − (1 − T)·log σ(−z) = Σ log(1 + eᶻ) − T·z
        softplus = segment_sums(F.softplus(logits), hierarchy.classes_per_hierarchy)
        product = teacher_product(student=logits, targets=targets, hierarchy=hierarchy)
        distance = negative_binary_entropy(targets, hierarchy) + softplus - product
    return (confidence * distance).sum() / max(1, len(student_logits))


def _product(
    values: Float[Tensor, "batch classes"], targets: TeacherTargets, hierarchy: SemanticHierarchy
) -> Float[Tensor, "batch hierarchies"]:
    members = values.index_select(1, hierarchy.tensors(values.device).class_order)
    return teacher_product(student=members, targets=targets, hierarchy=hierarchy)
