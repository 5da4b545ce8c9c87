"""How much an encoding changes what a student learns: errors of T̂ and of the KD gradient.

The gradient is that of the semantic MSE KD loss with respect to the student's logits, weighted by
the teacher's own confidence. It depends on the student, so two are looked at: one that knows
nothing (uniform in every hierarchy), and one near the teacher (the teacher at temperature 2).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from distill.hierarchy.semantic import SemanticHierarchy
from distill.hierarchy.softmax import segment_sums
from distill.targets.tensors import DenseTargets, SparseTargets, densify


@dataclass(frozen=True, kw_only=True, eq=False)
class FidelityErrors:
    """Per row of an audit sample.

    l2: ‖T − T̂‖₂ of each hierarchy. angle_deg: between dense and sparse gradient, in degrees.
    relative: ‖g − ĝ‖ / ‖g‖. The `_near_teacher` ones are for the student near the teacher.
    """

    l2: Float[Tensor, "rows hierarchies"]
    angle_deg: Float[Tensor, " rows"]
    relative: Float[Tensor, " rows"]
    angle_deg_near_teacher: Float[Tensor, " rows"]
    relative_near_teacher: Float[Tensor, " rows"]

    def cpu(self) -> "FidelityErrors":
        """The same on the CPU."""
        return FidelityErrors(**{name: values.cpu() for name, values in vars(self).items()})


def fidelity_errors(
    *, exact: DenseTargets, sparse: SparseTargets, hierarchy: SemanticHierarchy
) -> FidelityErrors:
    """Compare what a student would get from the store with what the teacher said, in float64."""
    sizes = hierarchy.classes_per_hierarchy
    teacher, decoded = exact.probs.double(), densify(sparse, hierarchy).double()
    uniform = torch.cat([torch.full((n,), 1 / n, dtype=torch.float64) for n in sizes])
    uniform = uniform.to(teacher.device).expand_as(teacher)
    roots = teacher.clamp(min=1e-30).sqrt()
    near = torch.cat([part / part.sum(1, keepdim=True) for part in roots.split(sizes, 1)], 1)
    measures = []
    for student in (uniform, near):
        dense_gradient = _kd_gradient(student, teacher, exact.confidence, sizes)
        sparse_gradient = _kd_gradient(student, decoded, sparse.confidence, sizes)
        measures.append(_angle_and_relative(dense_gradient, sparse_gradient))
    return FidelityErrors(
        l2=segment_sums((teacher - decoded).square(), sizes).sqrt(),
        angle_deg=measures[0][0],
        relative=measures[0][1],
        angle_deg_near_teacher=measures[1][0],
        relative_near_teacher=measures[1][1],
    )


def fidelity_figures(errors: Sequence[FidelityErrors]) -> dict[str, Any]:
    """Median, p99 and maximum of each error over all rows, for a certificate."""
    columns = {
        name: torch.cat([getattr(e, name) for e in errors]).numpy() for name in vars(errors[0])
    }
    return {
        "rows": len(columns["relative"]),
        "l2_per_hierarchy": [_spread(column) for column in columns["l2"].T],
        "gradient_angle_deg": _spread(columns["angle_deg"]),
        "gradient_relative_error": _spread(columns["relative"]),
        "near_teacher": {
            "gradient_angle_deg": _spread(columns["angle_deg_near_teacher"]),
            "gradient_relative_error": _spread(columns["relative_near_teacher"]),
        },
        "how": "semantic MSE KD gradient by the student's logits, weighted by the teacher's own "
        "confidence, from the store against dense float32; for a student that is uniform in every "
        "hierarchy, and under near_teacher for one that is the teacher at temperature 2",
    }


def reencoding_fidelity(
    *, before: SparseTargets, after: SparseTargets, hierarchy: SemanticHierarchy
) -> dict[str, Any]:
    """`fidelity_figures` of `after` as if `before` were all that the teacher said."""
    seen = torch.ones(len(before.index), dtype=torch.bool) if before.valid is None else before.valid
    exact = DenseTargets(probs=densify(before, hierarchy), confidence=before.confidence).select(
        seen
    )
    sparse = after.select(seen)
    return fidelity_figures([fidelity_errors(exact=exact, sparse=sparse, hierarchy=hierarchy)])


def _spread(values: NDArray[np.float64]) -> dict[str, float]:
    median, p99 = np.quantile(values, [0.5, 0.99])
    # Four digits: more are noise, and no number needs an exponent in the store's documents.
    figures = {"median": median, "p99": p99, "max": values.max()}
    return {name: round(float(value), 4) for name, value in figures.items()}


def _kd_gradient(
    student: Tensor, teacher: Tensor, confidence: Tensor, sizes: tuple[int, ...]
) -> Tensor:
    """d/dz Σ_k P_k ‖S_k − T_k‖² through the softmax: 2 P_k · S ∘ (d − ⟨S, d⟩) with d = S − T."""
    gradients = []
    parts = zip(student.split(sizes, 1), teacher.split(sizes, 1), strict=True)
    for k, (s, t) in enumerate(parts):
        difference = s - t
        centred = difference - (s * difference).sum(1, keepdim=True)
        gradients.append(2 * confidence[:, k, None].double() * s * centred)
    return torch.cat(gradients, 1)


def _angle_and_relative(exact: Tensor, approximate: Tensor) -> tuple[Tensor, Tensor]:
    norm = exact.norm(dim=1).clamp(min=1e-30)
    relative = (exact - approximate).norm(dim=1) / norm
    # atan2 of the parts along and across: acos loses all digits below a hundredth of a degree.
    along = (exact * approximate).sum(1) / norm
    across = (approximate - along[:, None] * exact / norm[:, None]).norm(dim=1)
    return torch.rad2deg(torch.atan2(across, along)), relative
