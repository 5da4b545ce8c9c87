"""How much less than the teacher's exact answer teaches a student: angles between KD gradients.

The gradient is that of the semantic KD loss with respect to the student's logits, weighted as in
training. It depends on the student, so three are looked at: one that knows nothing (uniform in
every hierarchy), one half-way, and one near the teacher (the teacher at temperature 2). Half-way is
the geometric mean of the teacher's answers to this image and another: of forty models that need the
teacher alone it fits real students best (benchmarks/encoding_frontier.py). Of sigmoids it is the
multi-label KD loss, and the students are the same in terms of logits: 0, the mean of two, half. Of
one softmax over all classes it is the single-label KD loss, as with one hierarchy.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from distill.hierarchy.semantic import SemanticHierarchy
from distill.losses.semantic import apply_label_clause
from distill.targets.tensors import DenseTargets, SparseTargets, densify

Angles = dict[str, Float[Tensor, " rows"]]
LEAST = 1e-30
LEAST_ODDS = 1e-12


def gradient_angles(
    *,
    exact: DenseTargets,
    sparse: SparseTargets,
    others: Float[Tensor, "rows members"],
    labels: Int[Tensor, " rows"],
    hierarchy: SemanticHierarchy,
) -> Angles:
    """Between what a student learns from the store and from the teacher, in degrees, by row.

    others: the teacher's probabilities for another image each. labels: class indices, -1 where
    there is none. Named by loss (mse, kl) and student (fresh, middle, near). In float64.
    """
    decoded = replace(exact, probs=densify(sparse, hierarchy), confidence=sparse.confidence)
    return {
        f"{loss}_{student}": angle
        for student, probs in _students(exact, others, hierarchy)
        for loss, angle in _angles(probs, exact, decoded, labels, hierarchy).items()
    }


def precision_angle(
    *,
    exact: DenseTargets,
    reference: DenseTargets,
    labels: Int[Tensor, " rows"],
    hierarchy: SemanticHierarchy,
) -> Float[Tensor, " rows"]:
    """The same between answers of one teacher in two precisions: MSE, a fresh student."""
    _, fresh = next(_students(reference, reference.probs, hierarchy))
    return _angles(fresh, reference, exact, labels, hierarchy)["mse"]


def others_of(rows: Sequence[int], probs: Float[Tensor, "rows members"]) -> Tensor:
    """The probabilities of another image for each of `rows`, of which views may follow each other.

    Of a single image, even ones: as much as another image's answer tells of it.
    """
    images = list(dict.fromkeys(rows))
    if len(images) < 2:
        return torch.ones_like(probs)
    first = {row: rows.index(row) for row in images}
    before = dict(zip(images, [images[-1], *images[:-1]], strict=True))
    return probs[[first[before[row]] for row in rows]]


def _students(
    exact: DenseTargets, others: Tensor, hierarchy: SemanticHierarchy
) -> Iterator[tuple[str, Tensor]]:
    """Probabilities [rows, members] of students, as far as a teacher's answers tell of them."""
    teacher, others = exact.probs.double(), others.double()
    if exact.answers == "sigmoid":
        own, other = torch.logit(teacher, LEAST_ODDS), torch.logit(others, LEAST_ODDS)
        yield "fresh", torch.full_like(teacher, 0.5)
        yield "middle", ((own + other) / 2).sigmoid()
        yield "near", (own / 2).sigmoid()
        return
    sizes = _softmaxes(exact, hierarchy)
    yield "fresh", _normalised(torch.ones_like(teacher), sizes)
    yield "middle", _normalised((teacher * others).clamp(min=LEAST).sqrt(), sizes)
    yield "near", _normalised(teacher.clamp(min=LEAST).sqrt(), sizes)


def _softmaxes(exact: DenseTargets, hierarchy: SemanticHierarchy) -> tuple[int, ...]:
    """How many classes each softmax of a student has."""
    sizes = hierarchy.classes_per_hierarchy
    return (sum(sizes),) if exact.answers == "flat" else sizes


def _normalised(values: Tensor, sizes: tuple[int, ...]) -> Tensor:
    return torch.cat([part / part.sum(1, keepdim=True) for part in values.split(sizes, 1)], 1)


def _angles(
    student: Tensor,
    exact: DenseTargets,
    approximate: DenseTargets,
    labels: Tensor,
    hierarchy: SemanticHierarchy,
) -> Angles:
    """By loss. KL: P_k (S − T). MSE: 2 P_k · S ∘ (d − ⟨S, d⟩) with d = S − T, of sigmoids
    2 · S ∘ (1 − S) ∘ d.
    """
    if exact.answers == "sigmoid":
        differences = [student - targets.probs.double() for targets in (exact, approximate)]
        slope = 2 * student * (1 - student)
        return {
            "mse": _angle(slope * differences[0], slope * differences[1]),
            "kl": _angle(*differences),
        }
    by_teacher = []
    for targets in (exact, approximate):
        weights = torch.ones_like(targets.confidence[:, :1])
        if exact.answers == "softmax":
            weights = apply_label_clause(
                confidence=targets.confidence, labels=labels, hierarchy=hierarchy
            )
        kl, mse = [], []
        sizes = _softmaxes(exact, hierarchy)
        parts = zip(student.split(sizes, 1), targets.probs.double().split(sizes, 1), strict=True)
        for k, (s, t) in enumerate(parts):
            weight, difference = weights[:, k, None].double(), s - t
            kl.append(weight * difference)
            centred = difference - (s * difference).sum(1, keepdim=True)
            mse.append(2 * weight * s * centred)
        by_teacher.append({"mse": torch.cat(mse, 1), "kl": torch.cat(kl, 1)})
    return {loss: _angle(by_teacher[0][loss], by_teacher[1][loss]) for loss in ("mse", "kl")}


def _angle(exact: Tensor, approximate: Tensor) -> Tensor:
    # atan2 of the parts along and across: acos loses all digits below a hundredth of a degree.
    norm = exact.norm(dim=1).clamp(min=LEAST)
    along = (exact * approximate).sum(1) / norm
    across = (approximate - along[:, None] * exact / norm[:, None]).norm(dim=1)
    return torch.rad2deg(torch.atan2(across, along))
