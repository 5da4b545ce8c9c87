"""Distances between student and teacher, per hierarchy.

Everything is a sum over the members of each hierarchy, [batch, hierarchies], of values that the
student has for each of them. Sparse targets stand for an evenly spread tail; of all distances only
`relations` builds anything of the size [batch, classes] for them.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from distill.hierarchy.semantic import SemanticHierarchy
from distill.hierarchy.softmax import segment_sums
from distill.targets.tensors import (
    DenseTargets,
    SparseTargets,
    TeacherTargets,
    densify,
    even_tail,
)

FLOOR = 0.1

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


def relations(
    *, student: Members, targets: TeacherTargets, hierarchy: SemanticHierarchy
) -> PerHierarchy:
    """`relation` of each hierarchy, within the images that the teacher saw."""
    sizes = hierarchy.classes_per_hierarchy
    dense = targets.probs if isinstance(targets, DenseTargets) else densify(targets, hierarchy)
    parts = zip(student.split(sizes, 1), dense.float().split(sizes, 1), strict=True)
    return torch.stack([relation(own, said, targets.valid) for own, said in parts], 1)


def relation(
    student: Float[Tensor, "batch classes"],
    teacher: Float[Tensor, "batch classes"],
    seen: Bool[Tensor, " batch"] | None = None,
) -> Float[Tensor, " batch"]:
    """How far student and teacher are from ranking alike, twice 0 to 2.

    1 − Pearson's correlation of S and T over the classes of an image, and the mean over classes of
    1 − that over the images of the batch, of those that were seen. Both kinds of relation of DIST
    (Huang et al. 2022, arXiv 2205.10536, eq. 9 and 10), weighted alike, without a temperature; but
    a deviation of less than FLOOR / n from n equal probabilities counts as one of that size, or
    students that know nothing would get gradients without bound, and noise be as good as an answer.
    """
    n = student.shape[1]
    images: int | Tensor = len(student)
    of_classes = _correlation(student - 1 / n, teacher - 1 / n, 1, floor=n**0.5 * FLOOR / n)
    if seen is not None:
        student, teacher = (torch.where(seen[:, None], each, 0) for each in (student, teacher))
        images = seen.sum().clamp(min=1)
    own, said = (each - each.sum(0) / images for each in (student, teacher))
    if seen is not None:
        own, said = (torch.where(seen[:, None], each, 0) for each in (own, said))
    of_images = _correlation(own, said, 0, floor=images**0.5 * FLOOR / n)
    return (1 - of_classes) + (1 - of_images).mean()


def _correlation(a: Tensor, b: Tensor, dim: int, floor: float | Tensor) -> Tensor:
    """Pearson's, of what has a mean of 0; norms below the floor count as the floor."""
    norms = [each.square().sum(dim).clamp(min=floor**2).sqrt() for each in (a, b)]
    return (a * b).sum(dim) / (norms[0] * norms[1])


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
