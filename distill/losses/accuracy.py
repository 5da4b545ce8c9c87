"""Semantic top-1 (appendix C of arXiv 2104.10972): right or wrong per hierarchy, and in total."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from distill.hierarchy.semantic import SemanticHierarchy
from distill.hierarchy.softmax import hierarchy_logits


@dataclass(frozen=True)
class SemanticAccuracy:
    """Shares in [0, 1]; `counts` samples have a label at each hierarchy. NaN where none has."""

    per_hierarchy: tuple[float, ...]
    counts: tuple[int, ...]

    @property
    def total(self) -> float:
        """The mean over hierarchies, weighted by how many samples have a label there."""
        judged = sum(self.counts)
        right = sum(a * n for a, n in zip(self.per_hierarchy, self.counts, strict=True) if n)
        return right / judged if judged else float("nan")


class SemanticAccuracyMeter:
    """Counts right answers batch by batch; classes deeper than a label are not judged."""

    def __init__(self, hierarchy: SemanticHierarchy, device: torch.device) -> None:
        self.hierarchy = hierarchy
        self.right = torch.zeros(hierarchy.num_hierarchies, dtype=torch.int64, device=device)
        self.judged = torch.zeros_like(self.right)

    def update(
        self, *, logits: Float[Tensor, "batch classes"], labels: Int[Tensor, " batch"]
    ) -> None:
        """Add a batch, without waiting for the device."""
        self.count(logits=logits, expected=self.hierarchy.semantic_labels(labels))

    def count(
        self,
        *,
        logits: Float[Tensor, "batch classes"],
        expected: Int[Tensor, "batch hierarchies"],
    ) -> None:
        """`update` by the expected answers; negative where a hierarchy is not judged."""
        parts = hierarchy_logits(logits, self.hierarchy)
        answers = torch.stack([part.argmax(1) for part in parts], 1)
        self.judged += (expected >= 0).sum(0)
        self.right += ((answers == expected) & (expected >= 0)).sum(0)

    def result(self) -> SemanticAccuracy:
        """Return the accuracy over all batches so far."""
        counts = self.judged.tolist()
        shares = [
            r / n if n else float("nan") for r, n in zip(self.right.tolist(), counts, strict=True)
        ]
        return SemanticAccuracy(tuple(shares), tuple(counts))
