"""Distances between student and teacher, per hierarchy.

Everything is a sum over the members of each hierarchy, [batch, hierarchies], of values that the
student has for each of them. Sparse targets stand for an evenly spread tail; nothing of the size
[batch, classes] is built for them here that the student does not have anyway.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from distill.hierarchy.semantic import SemanticHierarchy
from distill.hierarchy.softmax import segment_sums
from distill.targets.tensors import DenseTargets, SparseTargets, TeacherTargets, even_tail

Members = Float[Tensor, "batch members"]
PerHierarchy = Float[Tensor, "batch hierarchies"]


def squared_error(
    *,
    student: Members,
    targets: TeacherTargets,
    hierarchy: SemanticHierarchy,
    student_sums: PerHierarchy | None = None,
) -> PerHierarchy:
    """Σ(S − T)²; sparse: exact but for the cross-term of student and tail.

    student_sums: ΣS where it is known, as of a softmax.
    """
    sizes = hierarchy.classes_per_hierarchy
    if isinstance(targets, DenseTargets):
        return segment_sums((student - targets.probs.float()).square(), sizes)
    cross = teacher_product(
        student=student, targets=targets, hierarchy=hierarchy, student_sums=student_sums
    )
    student_squares: PerHierarchy = segment_sums(student.square(), sizes)
    return student_squares + targets.sq_norm.float() - 2 * cross


def teacher_squares(targets: TeacherTargets, hierarchy: SemanticHierarchy) -> PerHierarchy:
    """ΣT² of the exact teacher."""
    if isinstance(targets, DenseTargets):
        return segment_sums(targets.probs.float().square(), hierarchy.classes_per_hierarchy)
    return targets.sq_norm.float()


def teacher_product(
    *,
    student: Members,
    targets: TeacherTargets,
    hierarchy: SemanticHierarchy,
    student_sums: PerHierarchy | None = None,
) -> PerHierarchy:
    """ΣT·S, with S any value a member has: kept entries, and the tail times ΣS elsewhere."""
    sizes = hierarchy.classes_per_hierarchy
    if isinstance(targets, DenseTargets):
        return segment_sums(targets.probs.float() * student, sizes)
    at_slots = student.gather(1, _columns(targets, hierarchy))
    kept = segment_sums(targets.prob.float() * at_slots, targets.slots)
    if student_sums is None:
        student_sums = segment_sums(student, sizes)
    elsewhere = student_sums - segment_sums((targets.prob > 0) * at_slots, targets.slots)
    product: PerHierarchy = kept + even_tail(targets, hierarchy) * elsewhere
    return product


def negative_entropy(targets: TeacherTargets, hierarchy: SemanticHierarchy) -> PerHierarchy:
    """ΣT·log T, in nats."""
    return _over_teacher(targets, hierarchy, lambda prob: torch.special.xlogy(prob, prob))


def _over_teacher(
    targets: TeacherTargets,
    hierarchy: SemanticHierarchy,
    function: Callable[[Tensor], Tensor],
) -> PerHierarchy:
    """Σf(T), with f(0) = 0."""
    if isinstance(targets, DenseTargets):
        return segment_sums(function(targets.probs.float()), hierarchy.classes_per_hierarchy)
    kept = segment_sums(function(targets.prob.float()), targets.slots)
    filled = segment_sums((targets.prob > 0).float(), targets.slots)
    tail = even_tail(targets, hierarchy)
    left_out = hierarchy.tensors(tail.device).sizes - filled
    total: PerHierarchy = kept + left_out * function(tail)
    return total


def _columns(targets: SparseTargets, hierarchy: SemanticHierarchy) -> Int[Tensor, "batch slots"]:
    """Each slot's column among all members in hierarchy order."""
    parts = targets.index.long().split(targets.slots, dim=1)
    starts: list[int] = [members.start for members in hierarchy.slices]
    return torch.cat([part + start for part, start in zip(parts, starts, strict=True)], 1)
