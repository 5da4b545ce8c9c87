"""The training losses: semantic softmax, and semantic distillation weighted by confidence.

Pure functions over [batch, classes] logits; softmaxes and sums in float32 whatever the input is.
Teacher and student are keyword arguments throughout, so that they cannot be swapped.
"""

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from distill.hierarchy import SemanticHierarchy
from distill.softmax import hierarchy_log_probs, hierarchy_probs, segment_sums, top_mass
from distill.targets import DenseTargets, SparseTargets, TeacherTargets, even_tail


def semantic_softmax_loss(
    *,
    logits: Float[Tensor, "batch classes"],
    labels: Int[Tensor, " batch"],
    hierarchy: SemanticHierarchy,
    label_smoothing: float = 0.0,
) -> Float[Tensor, ""]:
    """Σ_k W_k · cross-entropy (nats) of hierarchy k's own softmax, mean over the whole batch.

    An image adds nothing at a hierarchy where its label says nothing; a negative label says nothing
    anywhere. Ridnik et al. 2021 (arXiv 2104.10972), eq. 4.

    Raises:
        ValueError: batch sizes differ, or the logits are of another label set.
    """
    _same_batch("labels", labels.shape[0], logits)
    semantic_labels = hierarchy.semantic_labels(labels)
    total = logits.new_zeros((), dtype=torch.float32)
    for k, log_probs in enumerate(hierarchy_log_probs(logits, hierarchy)):
        target = semantic_labels[:, k]
        picked = log_probs.gather(1, target.clamp(min=0)[:, None])[:, 0]
        expected = (1 - label_smoothing) * picked
        if label_smoothing:
            expected = expected + label_smoothing * log_probs.mean(1)
        total = total - hierarchy.weights[k] * torch.where(target >= 0, expected, 0.0).mean()
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
    divergence: Literal["mse", "kl"] = "mse",
    reduction: Literal["mean", "sum"] = "mean",
) -> Float[Tensor, ""]:
    """Confidence-weighted distance between student and teacher.

    Σ_k P_k · d(T_k, S_k) with d the squared error summed over the classes of hierarchy k
    (dimensionless), or KL(T‖S) in nats; then the mean over the batch, or its sum as in the authors'
    code. Without `labels` P_k is the teacher's alone. Rows that the teacher did not see add
    nothing. Ridnik et al. 2021 (arXiv 2104.10972), eq. 5, 7 and appendix F.

    With sparse targets the squared error is exact but for the cross-term of student and tail, and
    KL is that of the even-tailed teacher. No [batch, classes] teacher tensor is built for them.

    Raises:
        ValueError: batch sizes differ, or the targets are of another hierarchy.
    """
    if divergence not in ("mse", "kl"):
        raise ValueError(f"divergence {divergence!r} found, expected 'mse' or 'kl'")
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction {reduction!r} found, expected 'mean' or 'sum'")
    _check_targets(targets, student_logits, hierarchy)
    if divergence == "mse":
        distance = _squared_error(hierarchy_probs(student_logits, hierarchy), targets, hierarchy)
    else:
        log_probs = torch.cat(hierarchy_log_probs(student_logits, hierarchy), 1)
        distance = _kl_divergence(log_probs, targets, hierarchy)
    confidence = targets.confidence.float()
    if labels is not None:
        _same_batch("labels", labels.shape[0], student_logits)
        confidence = apply_label_clause(confidence=confidence, labels=labels, hierarchy=hierarchy)
    if targets.valid is not None:
        confidence = torch.where(targets.valid[:, None], confidence, 0.0)
    total = (confidence * distance).sum()
    return total / max(1, student_logits.shape[0]) if reduction == "mean" else total


def _squared_error(
    student: Float[Tensor, "batch members"],
    targets: TeacherTargets,
    hierarchy: SemanticHierarchy,
) -> Float[Tensor, "batch hierarchies"]:
    """Σ(S−T)² of each hierarchy; sparse: ΣS² − 2ΣTS over the kept − 2·tail·ΣS elsewhere + ΣT²."""
    sizes = hierarchy.classes_per_hierarchy
    if isinstance(targets, DenseTargets):
        return segment_sums((student - targets.probs.float()).square(), sizes)
    at_slots = student.gather(1, _columns(targets, hierarchy))
    cross = segment_sums(targets.prob.float() * at_slots, targets.slots)
    elsewhere = 1 - segment_sums((targets.prob > 0) * at_slots, targets.slots)
    squares: Tensor = segment_sums(student.square(), sizes) + targets.sq_norm.float()
    return squares - 2 * cross - 2 * even_tail(targets, hierarchy) * elsewhere


def _kl_divergence(
    log_student: Float[Tensor, "batch members"],
    targets: TeacherTargets,
    hierarchy: SemanticHierarchy,
) -> Float[Tensor, "batch hierarchies"]:
    """ΣT·(log T − log S) of each hierarchy, in nats; sparse: of the even-tailed teacher."""
    sizes = hierarchy.classes_per_hierarchy
    if isinstance(targets, DenseTargets):
        teacher = targets.probs.float()
        return segment_sums(torch.special.xlogy(teacher, teacher) - teacher * log_student, sizes)
    kept, is_kept, slots = targets.prob.float(), targets.prob > 0, targets.slots
    tail = even_tail(targets, hierarchy)
    at_slots = log_student.gather(1, _columns(targets, hierarchy))
    cross = segment_sums(kept * at_slots, slots)
    elsewhere = segment_sums(log_student, sizes) - segment_sums(is_kept * at_slots, slots)
    left_out = hierarchy.tensors(tail.device).sizes - segment_sums(is_kept.float(), slots)
    tail_entropy = left_out * torch.special.xlogy(tail, tail)
    entropy: Tensor = segment_sums(torch.special.xlogy(kept, kept), slots) + tail_entropy
    return entropy - cross - tail * elsewhere


def _columns(targets: SparseTargets, hierarchy: SemanticHierarchy) -> Int[Tensor, "batch slots"]:
    """Each slot's column among all members in hierarchy order."""
    parts = targets.index.long().split(targets.slots, dim=1)
    starts: list[int] = [members.start for members in hierarchy.slices]
    return torch.cat([part + start for part, start in zip(parts, starts, strict=True)], 1)


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
        found, expected = targets.probs.shape[1], sum(hierarchy.classes_per_hierarchy)
    else:
        found, expected = targets.index.shape[1], sum(targets.slots)
        if any(s > n for s, n in zip(targets.slots, hierarchy.classes_per_hierarchy, strict=True)):
            raise ValueError(
                f"targets with slots {targets.slots} found, expected at most "
                f"{hierarchy.classes_per_hierarchy}"
            )
    if found != expected:
        raise ValueError(f"targets with {found} columns found, expected {expected}")


def _same_batch(what: str, found: int, logits: Tensor) -> None:
    if found != logits.shape[0]:
        raise ValueError(f"{what} for {found} images found, expected {logits.shape[0]}")
