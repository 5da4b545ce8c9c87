"""The training losses: semantic softmax, and semantic distillation weighted by confidence.

Pure functions over [batch, classes] logits; softmaxes and sums in float32 whatever the input is.
Teacher and student are keyword arguments throughout, so that they cannot be swapped.
"""

from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from distill.hierarchy.semantic import SemanticHierarchy
from distill.hierarchy.softmax import hierarchy_log_probs, hierarchy_probs, top_mass
from distill.losses.distances import negative_entropy, relations, squared_error, teacher_product
from distill.losses.names import Divergence, HierarchyWeights
from distill.targets.tensors import DenseTargets, TeacherTargets

POWERS: dict[HierarchyWeights, float] = {"paper": 1.0, "sqrt": 0.5, "even": 0.0}  # of W_k


def semantic_softmax_loss(
    *,
    logits: Float[Tensor, "batch classes"],
    labels: Int[Tensor, " batch"],
    hierarchy: SemanticHierarchy,
    label_smoothing: float = 0.0,
    weights: HierarchyWeights = "even",
) -> Float[Tensor, ""]:
    """Σ_k W_k · cross-entropy (nats) of hierarchy k's own softmax, mean over the whole batch.

    An image adds nothing at a hierarchy where its label says nothing; a negative label says nothing
    anywhere. Ridnik et al. 2021 (arXiv 2104.10972), eq. 4. weights: W_k = 1 (even), those of the
    paper, or their square roots (sqrt).

    Raises:
        ValueError: batch sizes differ, or the logits are of another label set.
    """
    _same_batch("labels", labels.shape[0], logits)
    semantic_labels, power = hierarchy.semantic_labels(labels), POWERS[weights]
    total = logits.new_zeros((), dtype=torch.float32)
    for k, log_probs in enumerate(hierarchy_log_probs(logits, hierarchy)):
        target = semantic_labels[:, k]
        picked = log_probs.gather(1, target.clamp(min=0)[:, None])[:, 0]
        expected = (1 - label_smoothing) * picked
        if label_smoothing:
            expected = expected + label_smoothing * log_probs.mean(1)
        weight = hierarchy.weights[k] ** power
        total = total - weight * torch.where(target >= 0, expected, 0.0).mean()
    return total


def teacher_confidence(
    *,
    probs: Float[Tensor, "batch members"],
    hierarchy: SemanticHierarchy,
    labels: Int[Tensor, " batch"] | None = None,
    rule: Literal["paper", "teacher_only"] = "paper",
) -> Float[Tensor, "batch hierarchies"]:
    """[B, K]: P_k from the teacher's probabilities in hierarchy order.

    The sum of the ⌈n_k/20⌉ largest; under `rule="paper"`, 1 where the image's own label lies deeper
    than k. `rule="teacher_only"` is what the authors' code does. Appendix F of arXiv 2104.10972.
    """
    raw = top_mass(probs, hierarchy)
    if rule == "teacher_only" or labels is None:
        return raw
    return apply_label_clause(confidence=raw, labels=labels, hierarchy=hierarchy)


def apply_label_clause(
    *,
    confidence: Float[Tensor, "batch hierarchies"],
    labels: Int[Tensor, " batch"],
    hierarchy: SemanticHierarchy,
) -> Float[Tensor, "batch hierarchies"]:
    """P_k = 1 where the label lies deeper than k: there the image's class is known, not guessed."""
    levels = torch.arange(hierarchy.num_hierarchies, device=confidence.device)
    deeper = hierarchy.label_depths(labels)[:, None] > levels
    return torch.where(deeper, 1.0, confidence.float())


def semantic_kd_loss(
    *,
    student_logits: Float[Tensor, "batch classes"],
    targets: TeacherTargets,
    labels: Int[Tensor, " batch"] | None,
    hierarchy: SemanticHierarchy,
    divergence: Divergence = "kl",
    reduction: Literal["mean", "sum"] = "mean",
) -> Float[Tensor, ""]:
    """Confidence-weighted distance between student and teacher.

    Σ_k P_k · d(T_k, S_k) with d the squared error summed over the classes of hierarchy k
    (dimensionless), KL(T‖S) in nats, or how they are related within images and within the batch
    ("dist", `distill.losses.distances.relation`); then the mean over the batch, or its sum as in
    the authors' code. Without `labels` P_k is the teacher's alone. Rows that the teacher did not
    see add nothing. Ridnik et al. 2021 (arXiv 2104.10972), eq. 5, 7 and appendix F.

    With sparse targets the squared error is exact but for the cross-term of student and tail, and
    the others are those of the even-tailed teacher. No [batch, classes] teacher tensor is built for
    them but for "dist".

    Raises:
        ValueError: batch sizes differ, or the targets are of another hierarchy or another kind.
    """
    require_softmax(targets)
    if divergence not in get_args(Divergence):
        choices = ", ".join(get_args(Divergence))
        raise ValueError(f"divergence {divergence!r} found, expected one of {choices}")
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction {reduction!r} found, expected 'mean' or 'sum'")
    confidence = confidence_of(targets, labels, hierarchy, student_logits)
    if divergence == "mse":
        distance = squared_error(
            student=hierarchy_probs(student_logits, hierarchy),
            targets=targets,
            hierarchy=hierarchy,
            student_sums=torch.ones_like(confidence),
        )
    elif divergence == "dist":
        distance = relations(
            student=hierarchy_probs(student_logits, hierarchy), targets=targets, hierarchy=hierarchy
        )
    else:
        log_probs = torch.cat(hierarchy_log_probs(student_logits, hierarchy), 1)
        distance = negative_entropy(targets, hierarchy) - teacher_product(
            student=log_probs, targets=targets, hierarchy=hierarchy
        )
    total = (confidence * distance).sum()
    return total / max(1, student_logits.shape[0]) if reduction == "mean" else total


def confidence_of(
    targets: TeacherTargets,
    labels: Int[Tensor, " batch"] | None,
    hierarchy: SemanticHierarchy,
    student_logits: Float[Tensor, "batch classes"],
) -> Float[Tensor, "batch hierarchies"]:
    """[B, K]: P_k with the label clause; 0 in rows that the teacher did not see.

    Raw answers say themselves how sure they are: their P_k is 1.

    Raises:
        ValueError: the targets are of another batch or hierarchy than the logits.
    """
    _check_targets(targets, student_logits, hierarchy)
    confidence = targets.confidence.float()
    if targets.answers != "softmax":
        confidence = torch.ones_like(confidence)
    elif labels is not None:
        _same_batch("labels", labels.shape[0], student_logits)
        confidence = apply_label_clause(confidence=confidence, labels=labels, hierarchy=hierarchy)
    if targets.valid is not None:
        confidence = torch.where(targets.valid[:, None], confidence, 0.0)
    return confidence


def require_softmax(targets: TeacherTargets) -> None:
    """Raises ValueError where each hierarchy's softmax would learn from something else."""
    if targets.answers != "softmax":
        raise ValueError(
            f"targets of answers {targets.answers!r} found, expected those of a softmax for each "
            "hierarchy; multi_label_kd_loss learns from sigmoids, single_label_kd_loss from one "
            "softmax"
        )


def _check_targets(
    targets: TeacherTargets, student_logits: Tensor, hierarchy: SemanticHierarchy
) -> None:
    _same_batch("targets", targets.confidence.shape[0], student_logits)
    if targets.confidence.shape[1] != hierarchy.num_hierarchies:
        raise ValueError(
            f"targets of {targets.confidence.shape[1]} hierarchies found, "
            f"expected {hierarchy.num_hierarchies}"
        )
    if isinstance(targets, DenseTargets):
        given, expected = targets.probs.shape[1], sum(hierarchy.classes_per_hierarchy)
    else:
        given, expected = targets.index.shape[1], sum(targets.slots)
        if any(s > n for s, n in zip(targets.slots, hierarchy.classes_per_hierarchy, strict=True)):
            raise ValueError(
                f"targets with slots {targets.slots} found, expected at most "
                f"{hierarchy.classes_per_hierarchy}"
            )
    if given != expected:
        raise ValueError(f"targets with {given} columns found, expected {expected}")


def _same_batch(name: str, given: int, logits: Tensor) -> None:
    if given != logits.shape[0]:
        raise ValueError(f"{name} for {given} images found, expected {logits.shape[0]}")
