"""Other heads, made semantic or kept: one softmax over a label set, a yes or no for each class.

A softmax's probabilities are summed into the class itself and its ancestors, then every hierarchy
is normalised; of sigmoids, each hierarchy is normalised as it is. What reaches a hierarchy tells
how much it has to do with the image.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from distill.errors import TeacherError
from distill.hierarchy.hypernyms import is_known, nearest_ancestor
from distill.hierarchy.semantic import SemanticHierarchy
from distill.hierarchy.softmax import segment_sums

RawAnswers = Literal["sigmoid", "flat"]


@dataclass(frozen=True, kw_only=True, eq=False)
class FlatHead:
    """What a flat classifier over `synsets` says about a hierarchy.

    sources: for each column in hierarchy order, the classes of the model that it sums up, column
    after column; counts: how many each has. lost: classes that are summed up nowhere.
    """

    synsets: tuple[str, ...]
    hierarchy: SemanticHierarchy
    sources: Int[Tensor, " pairs"]
    counts: Int[Tensor, " members"]
    lost: tuple[str, ...]

    @classmethod
    def of(
        cls, synsets: Sequence[str], hierarchy: SemanticHierarchy, device: torch.device
    ) -> "FlatHead":
        """Classes are matched by wnid; one outside the hierarchy counts as its nearest hypernym.

        Raises:
            TeacherError: none of the classes has to do with the hierarchy, or one is unknown.
        """
        pairs, lost = [], []
        if len({*synsets}) < len(synsets):
            twice = next(s for s in synsets if synsets.count(s) > 1)
            raise TeacherError(
                f"class {twice!r} appears twice in the teacher's head, expected each once; correct "
                "--head"
            )
        for source, synset in enumerate(synsets):
            known = nearest_ancestor(synset, hierarchy)
            if known is None:
                if not is_known(synset):
                    raise TeacherError(
                        f"class {synset!r} of the teacher's head is neither in hierarchy "
                        f"{hierarchy.name} nor a wnid of ImageNet, expected one or the other; "
                        "pass the --label-set of its classes, or correct --head"
                    )
                lost.append(synset)
                continue
            positions = hierarchy.label_table[hierarchy.index(known)]
            levels = np.flatnonzero(positions >= 0)
            pairs += [(hierarchy.slices[k].start + int(positions[k]), source) for k in levels]
        if not pairs:
            raise TeacherError(
                f"none of the teacher's {len(synsets)} classes ({', '.join(synsets[:3])}, …) is in "
                f"hierarchy {hierarchy.name} or below a class of it; pass another --label-set"
            )
        columns, sources = torch.tensor(sorted(pairs)).T.contiguous()
        counts = torch.bincount(columns, minlength=sum(hierarchy.classes_per_hierarchy))
        return cls(
            synsets=tuple(synsets),
            hierarchy=hierarchy,
            sources=sources.to(device),
            counts=counts.to(device),
            lost=tuple(lost),
        )

    def to(self, device: torch.device) -> "FlatHead":
        """The same on that device."""
        if self.sources.device == device:
            return self
        return replace(self, sources=self.sources.to(device), counts=self.counts.to(device))

    def __str__(self) -> str:
        """Say how many classes find no place."""
        found = f"{len(self.synsets)} classes of one softmax"
        if not self.lost:
            return found
        return f"{found}, {len(self.lost)} of them without a place here ({self.lost[0]}, …)"

    def probs_and_reach(
        self, logits: Float[Tensor, "batch classes"]
    ) -> tuple[Float[Tensor, "batch members"], Float[Tensor, "batch hierarchies"]]:
        """[B, ΣN_k] normalised in each hierarchy, and the mass [B, K] that reached each.

        A hierarchy that nothing reaches gets even probabilities.
        """
        sizes = self.hierarchy.classes_per_hierarchy
        flat = logits.float().softmax(1).T.contiguous()
        # In a fixed order: additions that race on a GPU would give other bits each time. Counts are
        # not checked (unsafe): a GPU would be waited for.
        summands = flat.index_select(0, self.sources)
        mass = torch.segment_reduce(summands, "sum", lengths=self.counts, unsafe=True).T
        reach = segment_sums(mass, sizes)
        parts = []
        for k, part in enumerate(mass.split(list(sizes), dim=1)):
            total = reach[:, k, None]
            even = torch.full_like(part, 1 / sizes[k])
            parts.append(torch.where(total > 0, part / torch.where(total > 0, total, 1), even))
        return torch.cat(parts, 1), reach


@dataclass(frozen=True, kw_only=True, eq=False)
class TagHead:
    """What a classifier with a yes or no for each class of `hierarchy` says about it."""

    hierarchy: SemanticHierarchy

    def __str__(self) -> str:
        """Say what it is."""
        return (
            f"{self.hierarchy.num_classes} classes, a yes or no for each, made shares of each "
            "hierarchy"
        )

    def probs_and_reach(
        self, logits: Float[Tensor, "batch classes"]
    ) -> tuple[Float[Tensor, "batch members"], Float[Tensor, "batch hierarchies"]]:
        """[B, ΣN_k] shares of the sigmoids of a hierarchy, and the greatest [B, K] of each."""
        order = self.hierarchy.tensors(logits.device).class_order
        yes = logits.float().index_select(1, order).sigmoid()
        parts = yes.split(list(self.hierarchy.classes_per_hierarchy), dim=1)
        tiny = torch.finfo(torch.float32).tiny
        shares = [part / part.sum(1, keepdim=True).clamp_min(tiny) for part in parts]
        return torch.cat(shares, 1), torch.stack([part.amax(1) for part in parts], 1)


@dataclass(frozen=True, kw_only=True, eq=False)
class RawHead:
    """What a classifier over the classes of `hierarchy` says of each, not made shares of anything.

    answers: sigmoids, or one softmax over all classes.
    """

    hierarchy: SemanticHierarchy
    answers: RawAnswers

    def __str__(self) -> str:
        """Say what it is."""
        kind = "a yes or no for each" if self.answers == "sigmoid" else "one softmax over all"
        return f"{self.hierarchy.num_classes} classes, {kind}, as they are"

    def probs(self, logits: Float[Tensor, "batch classes"]) -> Float[Tensor, "batch members"]:
        """[B, ΣN_k] in hierarchy order."""
        flat = logits.float()
        probs = flat.sigmoid() if self.answers == "sigmoid" else flat.softmax(1)
        return probs.index_select(1, self.hierarchy.tensors(logits.device).class_order)
