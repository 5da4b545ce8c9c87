"""One softmax per hierarchy over a single row of logits. Pure, float32, any device."""

from collections.abc import Sequence
from math import ceil

import torch
from jaxtyping import Float
from torch import Tensor

from distill.hierarchy.semantic import SemanticHierarchy

Ranked = Sequence[tuple[Tensor, Tensor]]  # values and places, [batch, largest first]


def hierarchy_logits(
    logits: Float[Tensor, "batch classes"], hierarchy: SemanticHierarchy
) -> list[Float[Tensor, "batch members"]]:
    """Per hierarchy, its own classes' logits in float32.

    Raises:
        ValueError: the logits are not of this hierarchy's label set.
    """
    _require_classes(logits, hierarchy)
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


def class_log_probs(
    logits: Float[Tensor, "batch classes"], hierarchy: SemanticHierarchy
) -> Float[Tensor, "batch classes"]:
    """The log-probability (nats) of every class of a semantic model, walking down the tree.

    Classes of different hierarchies have no common softmax, but those of one parent have: a class's
    probability is its ancestor's times its share among the children of that. Classes that have no
    softmax share evenly. For judging which of many classes an image is, not for training.
    """
    _require_classes(logits, hierarchy)
    tensors = hierarchy.tensors(logits.device)
    family = (tensors.parents + 1).expand_as(logits)
    known = tensors.depths[:-1] < hierarchy.num_hierarchies
    values = torch.where(known, logits.float(), 0.0)
    groups = logits.new_full(
        (logits.shape[0], hierarchy.num_classes + 1), -torch.inf, dtype=torch.float
    )
    highest = groups.scatter_reduce(1, family, values, "amax")
    shifted = values - highest.gather(1, family)
    sums = torch.zeros_like(groups).scatter_add(1, family, shifted.exp())
    total = shifted - sums.gather(1, family).log()
    for members in tensors.by_level[1:]:
        total[:, members] += total[:, tensors.parents[members]]
    return total


def subtree_probs(
    logits: Float[Tensor, "batch classes"], hierarchy: SemanticHierarchy
) -> Float[Tensor, "batch classes"]:
    """Return the probability of each class and all classes below it, from one softmax.

    Whatever is a swan is a bird too: what a single-label model says of a hierarchy.
    """
    tensors = hierarchy.tensors(logits.device)
    probs = logits.float().softmax(1)
    for members in reversed(tensors.by_level[1:]):
        probs = probs.index_add(1, tensors.parents[members], probs[:, members])
    return probs


def ranked_probs(
    probs: Float[Tensor, "batch members"],
    hierarchy: SemanticHierarchy,
    entries: Sequence[int] = (),
) -> Ranked:
    """Values and places of each hierarchy's largest: as many as `top_mass` sums, or `entries`."""
    sizes = hierarchy.classes_per_hierarchy
    wanted = entries or [1] * len(sizes)
    counts = [max(_summed(n), more) for n, more in zip(sizes, wanted, strict=True)]
    parts = zip(probs.split(sizes, dim=1), counts, strict=True)
    return [(top.values, top.indices) for top in (part.topk(n, dim=1) for part, n in parts)]


def top_mass(
    probs: Float[Tensor, "batch members"],
    hierarchy: SemanticHierarchy,
    ranked: Ranked | None = None,
) -> Float[Tensor, "batch hierarchies"]:
    """[B, K]: the sum of the ⌈n_k/20⌉ largest probabilities of each hierarchy.

    The raw confidence: Ridnik et al. 2021 (arXiv 2104.10972), appendix F, without its label clause.
    ranked: `ranked_probs`, where they are at hand.
    """
    tops = zip(
        ranked or ranked_probs(probs, hierarchy), hierarchy.classes_per_hierarchy, strict=True
    )
    return torch.stack([values[:, : _summed(n)].sum(1) for (values, _), n in tops], 1)


def _summed(classes: int) -> int:
    return ceil(classes / 20)


def segment_sums(
    values: Float[Tensor, "batch columns"], sizes: Sequence[int]
) -> Float[Tensor, "batch segments"]:
    """[B, len(sizes)]: row sums over consecutive groups of columns."""
    return torch.stack([part.sum(1) for part in values.split(list(sizes), dim=1)], 1)


def _require_classes(logits: Tensor, hierarchy: SemanticHierarchy) -> None:
    if logits.ndim != 2 or logits.shape[1] != hierarchy.num_classes:
        raise ValueError(
            f"logits of shape {tuple(logits.shape)} found, "
            f"expected [batch, {hierarchy.num_classes}] for hierarchy {hierarchy.name}"
        )
