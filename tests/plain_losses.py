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
                own = row[_classes(hierarchy, k)]
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
            own = image[_classes(hierarchy, k)].float()
            said = teacher[row, members]
            if divergence == "dist":
                shares = torch.stack([z[_classes(hierarchy, k)].softmax(0) for z in logits])
                n, taught = len(said), teacher[:, members]
                columns = [1 - _plain_correlation(shares[:, c], taught[:, c], n) for c in range(n)]
                distance = 1 - _plain_correlation(shares[row], said, n) + sum(columns) / n
            elif divergence == "mse":
                distance = ((own.softmax(0) - said) ** 2).sum()
            else:
                distance = F.kl_div(own.log_softmax(0), said, reduction="sum")
            sure = 1.0 if depths[row] > k else confidence[row, k]
            total = total + sure * distance / len(logits)
    return total


def _classes(hierarchy: SemanticHierarchy, k: int) -> torch.Tensor:
    return torch.from_numpy(hierarchy.class_order[hierarchy.slices[k]])


def _plain_correlation(a: torch.Tensor, b: torch.Tensor, n: int) -> torch.Tensor:
    """Pearson's of two vectors of shares of n classes; no deviation is below 0.1 / n."""
    a, b = a - a.mean(), b - b.mean()
    least = torch.tensor(0.1 / n)
    spreads = [torch.maximum(x.std(correction=0), least) for x in (a, b)]
    return (a * b).mean() / (spreads[0] * spreads[1])
