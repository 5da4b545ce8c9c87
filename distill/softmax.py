"""One softmax per hierarchy over a single row of logits. Pure, float32, any device."""

from collections.abc import Sequence
from math import ceil

import torch
from jaxtyping import Float
from torch import Tensor

from distill.hierarchy import SemanticHierarchy


def hierarchy_logits(
    logits: Float[Tensor, "batch classes"], hierarchy: SemanticHierarchy
) -> list[Float[Tensor, "batch members"]]:
    """Per hierarchy, its own classes' logits in float32.

    Raises:
        ValueError: the logits are not of this hierarchy's label set.
    """
    if logits.ndim != 2 or logits.shape[1] != hierarchy.num_classes:
        raise ValueError(
            f"logits of shape {tuple(logits.shape)} found, "
            f"expected [batch, {hierarchy.num_classes}] for hierarchy {hierarchy.name}"
        )
    order = hierarchy.tensors(logits.device).class_order
    ordered = logits.index_select(1, order).float()
    return list(ordered.split(hierarchy.classes_per_hierarchy, dim=1))


def hierarchy_log_probs(
    logits: Float[Tensor, "batch classes"], hierarchy: SemanticHierarchy
) -> list[Float[Tensor, "batch members"]]:
    """Per hierarchy, the log-softmax (nats) over its own classes."""
    return [part.log_softmax(1) for part in hierarchy_logits(logits, hierarchy)]


def hierarchy_probs(
    logits: Float[Tensor, "batch classes"], hierarchy: SemanticHierarchy
) -> Float[Tensor, "batch members"]:
    """[B, ΣN_k]: the softmax of every hierarchy, side by side in hierarchy order."""
    return torch.cat([part.softmax(1) for part in hierarchy_logits(logits, hierarchy)], 1)


def top_mass(
    probs: Float[Tensor, "batch members"], hierarchy: SemanticHierarchy
) -> Float[Tensor, "batch hierarchies"]:
    """[B, K]: the sum of the ⌈n_k/20⌉ largest probabilities of each hierarchy.

    The raw confidence: Ridnik et al. 2021 (arXiv 2104.10972), appendix F, without its label clause.
    """
    sizes = hierarchy.classes_per_hierarchy
    parts = probs.split(sizes, dim=1)
    sums = [p.topk(ceil(n / 20), dim=1).values.sum(1) for p, n in zip(parts, sizes, strict=True)]
    return torch.stack(sums, 1)


def segment_sums(
    values: Float[Tensor, "batch columns"], sizes: Sequence[int]
) -> Float[Tensor, "batch segments"]:
    """[B, len(sizes)]: row sums over consecutive groups of columns."""
    return torch.stack([part.sum(1) for part in values.split(list(sizes), dim=1)], 1)
