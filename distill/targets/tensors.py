"""Teacher predictions for a batch of views, dense or sparse.

Sparse targets are laid out hierarchy after hierarchy with a fixed number of slots each, so that
every operation on them is a dense gather or a sum over a static slice.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from numpy.typing import NDArray
from torch import Tensor

from distill.data.sample_ids import SampleIds
from distill.hierarchy.semantic import SemanticHierarchy
from distill.hierarchy.softmax import Ranked, hierarchy_probs, ranked_probs, segment_sums, top_mass
from distill.targets.encoding import Answers, EncodingSpec, mass
from distill.targets.rows import TargetRows


def to_device(tensor: Tensor, device: torch.device, non_blocking: bool = True) -> Tensor:
    """`tensor` on `device`; a GPU fetches it by itself, which it can from pinned memory alone."""
    if device.type == "cuda" and tensor.device.type == "cpu" and non_blocking:
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=non_blocking)


Own = TypeVar("Own", bound="_Rows")


class _Rows:
    """A dataclass of tensors with one row an image; what is no tensor is the same for all rows."""

    def select(self: Own, rows: Tensor) -> Own:
        """Those rows, by index or by mask, on the targets' device."""
        return self._each(lambda tensor: tensor[rows])

    def flipped(self: Own) -> Own:
        """The last row first."""
        return self._each(lambda tensor: tensor.flip(0))

    @property
    def unanswered(self) -> list[int]:
        """The rows that the teacher has no answer for; asks the device where they are there."""
        valid: Tensor | None = getattr(self, "valid", None)
        return [] if valid is None else (~valid).nonzero()[:, 0].tolist()

    def apart(self: Own) -> list[Own]:
        """Each row by itself, a batch of one that shares memory."""
        values = self._values()
        columns = {n: v.split(1) for n, v in values.items() if isinstance(v, Tensor)}
        same = {n: v for n, v in values.items() if n not in columns}
        rows = zip(*columns.values(), strict=True)
        return [type(self)(**same, **dict(zip(columns, row, strict=True))) for row in rows]

    def to(self: Own, device: torch.device | str, non_blocking: bool = True) -> Own:
        """The same targets on `device`."""
        there = torch.device(device)
        return self._each(lambda tensor: to_device(tensor, there, non_blocking))

    def pin_memory(self: Own) -> Own:
        """In memory that a GPU can fetch from; called by torch's DataLoader."""
        return self._each(lambda tensor: tensor.pin_memory())

    @classmethod
    def concatenate(cls: type[Own], parts: Sequence[Own]) -> Own:
        """Rows after rows, all of one kind."""
        columns = {f.name: [getattr(part, f.name) for part in parts] for f in fields(parts[0])}  # type: ignore[arg-type]
        return replace(
            parts[0],  # type: ignore[type-var]
            **{n: torch.cat(c) for n, c in columns.items() if isinstance(c[0], Tensor)},
        )

    def _values(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]

    def _each(self: Own, change: Callable[[Tensor], Tensor]) -> Own:
        changed = {n: change(v) for n, v in self._values().items() if isinstance(v, Tensor)}
        return replace(self, **changed)  # type: ignore[type-var]


@dataclass(frozen=True, kw_only=True, eq=False)
class DenseTargets(_Rows):
    """The teacher's whole answer: [B, ΣN_k] probabilities in hierarchy order, raw confidence.

    confidence: as of `SparseTargets`.
    """

    probs: Float[Tensor, "batch members"]
    confidence: Float[Tensor, "batch hierarchies"]
    valid: Bool[Tensor, " batch"] | None = None
    answers: Answers = "softmax"


@dataclass(frozen=True, kw_only=True, eq=False)
class SparseTargets(_Rows):
    """The teacher's largest probabilities; what is left of each hierarchy's mass is spread evenly.

    index: position within the slot's own hierarchy. A slot not needed has prob 0.
    confidence: the raw top-5% sum, before the label clause. Answers that have no confidence but
    themselves have what tells their mass: of sigmoids their mean over the hierarchy, of one softmax
    over all classes the sum over it.
    sq_norm: ΣT² of the exact teacher over each hierarchy.
    slots: how many slots each hierarchy has.
    valid: False where the teacher saw no image; such rows take no part in the KD loss.
    """

    index: Int[Tensor, "batch slots"]
    prob: Float[Tensor, "batch slots"]
    confidence: Float[Tensor, "batch hierarchies"]
    sq_norm: Float[Tensor, "batch hierarchies"]
    slots: tuple[int, ...]
    valid: Bool[Tensor, " batch"] | None = None
    answers: Answers = "softmax"

    def to_rows(self) -> TargetRows:
        """Copied to NumPy."""
        valid = self.valid
        return TargetRows(
            index=self.index.cpu().numpy(),
            prob=self.prob.cpu().numpy(),
            confidence=self.confidence.cpu().numpy(),
            sq_norm=self.sq_norm.cpu().numpy(),
            valid=np.ones(len(self.index), np.bool_) if valid is None else valid.cpu().numpy(),
        )

    @classmethod
    def from_rows(
        cls, rows: TargetRows, slots: tuple[int, ...], answers: Answers = "softmax"
    ) -> "SparseTargets":
        """Sharing memory where NumPy allows it."""
        return cls(
            index=torch.from_numpy(rows.index),
            prob=torch.from_numpy(rows.prob),
            confidence=torch.from_numpy(rows.confidence),
            sq_norm=torch.from_numpy(rows.sq_norm),
            slots=slots,
            valid=torch.from_numpy(rows.valid),
            answers=answers,
        )


TeacherTargets = DenseTargets | SparseTargets

# A view of all samples, or one for each.
View = int | NDArray[np.int64]


@runtime_checkable
class TargetSource(Protocol):
    """Where a student's targets come from: a store, a live server, a teacher in the process."""

    def fetch(
        self,
        sample_ids: SampleIds,
        view: View,
        pixels: Sequence[UInt8[Tensor, "batch channels _ _"]] = (),
    ) -> TeacherTargets:
        """Targets of those samples' `view`, in that order, on any device.

        pixels: that view, for a source that must see the images.

        Raises:
            DataError: the source has no such sample or view.
            TeacherUnavailableError: a live teacher does not answer in time.
        """
        ...


def dense_targets(
    teacher_logits: Float[Tensor, "batch classes"], hierarchy: SemanticHierarchy
) -> DenseTargets:
    """The exact targets that these logits mean, in float32."""
    probs = hierarchy_probs(teacher_logits, hierarchy)
    return DenseTargets(probs=probs, confidence=top_mass(probs, hierarchy))


def raw_targets(
    probs: Float[Tensor, "batch members"], hierarchy: SemanticHierarchy, answers: Answers
) -> DenseTargets:
    """Targets of sigmoids, or of one softmax over all classes, [B, ΣN_k] in hierarchy order."""
    confidence = segment_sums(probs, hierarchy.classes_per_hierarchy)
    if answers == "sigmoid":
        confidence = confidence / hierarchy.tensors(probs.device).sizes
    return DenseTargets(probs=probs, confidence=confidence, answers=answers)


def encode(
    teacher_logits: Float[Tensor, "batch classes"],
    hierarchy: SemanticHierarchy,
    spec: EncodingSpec,
) -> SparseTargets:
    """The entries that `spec` keeps, largest first in each hierarchy, on the logits' device.

    Confidence and ΣT² come from the exact probabilities, before anything is cut off.
    """
    return sparsify(dense_targets(teacher_logits, hierarchy), hierarchy, spec)


def sparsify(
    dense: DenseTargets,
    hierarchy: SemanticHierarchy,
    spec: EncodingSpec,
    ranked: Ranked | None = None,
) -> SparseTargets:
    """`encode` for targets that are at hand already.

    Probabilities are rounded to the spec's steps, so that a store gives back the very same ones.
    ranked: `ranked_probs` of them, at least as many as the spec's entries, where they are at hand.

    Raises:
        ValueError: the spec is of another hierarchy.
    """
    sizes, slots = hierarchy.classes_per_hierarchy, spec.entries
    if len(slots) != len(sizes) or any(s > n for s, n in zip(slots, sizes, strict=True)):
        raise ValueError(f"entries {slots} found, expected at most {sizes}")
    tops = [*zip(ranked or ranked_probs(dense.probs, hierarchy, slots), slots, strict=True)]
    prob = torch.cat([values[:, :slot] for (values, _), slot in tops], 1)
    return SparseTargets(
        index=torch.cat([places[:, :slot] for (_, places), slot in tops], 1),
        prob=(prob * spec.prob_steps + 0.5).floor() / spec.prob_steps,
        confidence=dense.confidence,
        sq_norm=segment_sums(dense.probs.square(), sizes),
        slots=slots,
        valid=dense.valid,
        answers=dense.answers,
    )


def densify(targets: SparseTargets, hierarchy: SemanticHierarchy) -> Float[Tensor, "batch members"]:
    """T̂: what sparse targets stand for, [B, ΣN_k]. Semantic students never need it."""
    tails = even_tail(targets, hierarchy)
    parts = []
    for k, (index, prob) in enumerate(
        zip(
            targets.index.split(targets.slots, 1), targets.prob.split(targets.slots, 1), strict=True
        )
    ):
        tail = tails[:, k, None]
        part = tail.expand(-1, hierarchy.classes_per_hierarchy[k]).clone()
        # Empty slots may name any class, also one that a full slot holds: add to the tail instead.
        part.scatter_add_(1, index.long(), torch.where(prob > 0, prob - tail, 0.0))
        parts.append(part)
    return torch.cat(parts, 1)


def even_tail(
    targets: SparseTargets, hierarchy: SemanticHierarchy
) -> Float[Tensor, "batch hierarchies"]:
    """[B, K]: r_k / (n_k − K_k), the probability of each class that no slot holds."""
    kept = segment_sums((targets.prob > 0).float(), targets.slots)
    sizes = hierarchy.tensors(targets.prob.device).sizes
    total = mass(targets.answers, targets.confidence, sizes)
    left = (total - segment_sums(targets.prob, targets.slots)).clamp(min=0)
    return torch.where(kept < sizes, left / (sizes - kept).clamp(min=1), 0.0)
