"""The losses as the formulas read, one image and one hierarchy at a time. The reference."""

import torch
import torch.nn.functional as F

from distill.hierarchy.semantic import SemanticHierarchy


def plain_softmax_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    hierarchy: SemanticHierarchy,
    smoothing: float,
    weights: str = "paper",
) -> torch.Tensor:
    """Semantic softmax loss."""
    total = torch.zeros(())
    for row, semantic in zip(logits, hierarchy.semantic_labels(labels), strict=True):
        for k, position in enumerate(semantic.tolist()):
            if position >= 0:
                own = row[torch.from_numpy(hierarchy.class_order[hierarchy.slices[k]])]
                one = F.cross_entropy(
                    own[None].float(), torch.tensor([position]), label_smoothing=smoothing
                )
                weight = {"paper": 1, "sqrt": 0.5, "even": 0}[weights]
                weight = hierarchy.weights[k] ** weight
                total = total + weight * one / len(logits)
    return total


def plain_kd_loss(
    logits: torch.Tensor,
    teacher: torch.Tensor,
    confidence: torch.Tensor,
    labels: torch.Tensor,
    hierarchy: SemanticHierarchy,
    divergence: str,
) -> torch.Tensor:
    """Semantic KD loss on dense teacher probabilities [B, ΣN_k], mean over the batch."""
    total = torch.zeros(())
    depths = hierarchy.label_depths(labels).tolist()
    for row, image in enumerate(logits.unbind()):
        for k, members in enumerate(hierarchy.slices):
            own = image[torch.from_numpy(hierarchy.class_order[members])].float()
            said = teacher[row, members]
            if divergence == "mse":
                distance = ((own.softmax(0) - said) ** 2).sum()
            else:
                distance = F.kl_div(own.log_softmax(0), said, reduction="sum")
            sure = 1.0 if depths[row] > k else confidence[row, k]
            total = total + sure * distance / len(logits)
    return total
