"""A flat head made semantic: one softmax over a label set becomes one for each hierarchy.

Each class's probability is summed into the class itself and its ancestors, then every hierarchy is
normalised. The mass that reaches a hierarchy tells how much it has to do with the image.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from distill.errors import TeacherError
from distill.hierarchy.hypernyms import nearest_ancestor
from distill.hierarchy.semantic import SemanticHierarchy
from distill.hierarchy.softmax import segment_sums


@dataclass(frozen=True, kw_only=True, eq=False)
class FlatHead:
    """What a flat classifier over `synsets` says about a hierarchy.

    sources: for each column in hierarchy order, the classes of the model that it sums up, column
    after column; counts: how many each has. mapped: classes that are summed up anywhere; what
    others get is lost.
    """

    synsets: tuple[str, ...]
    hierarchy: SemanticHierarchy
    sources: Int[Tensor, " pairs"]
    counts: Int[Tensor, " members"]
    mapped: int

    @classmethod
    def of(
        cls, synsets: Sequence[str], hierarchy: SemanticHierarchy, device: torch.device
    ) -> "FlatHead":
        """Classes are matched by wnid; one outside the hierarchy counts as its nearest hypernym.

        Raises:
            TeacherError: none of the classes has to do with the hierarchy.
        """
        pairs, mapped = [], 0
        for source, synset in enumerate(synsets):
            known = nearest_ancestor(synset, hierarchy)
            if known is None:
                continue
            positions = hierarchy.label_table[hierarchy.index(known)]
            levels = np.flatnonzero(positions >= 0)
            pairs += [(hierarchy.slices[k].start + int(positions[k]), source) for k in levels]
            mapped += 1
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
            mapped=mapped,
        )

    def probs_and_reach(
        self, logits: Float[Tensor, "batch classes"]
    ) -> tuple[Float[Tensor, "batch members"], Float[Tensor, "batch hierarchies"]]:
        """[B, ΣN_k] normalised in each hierarchy, and the mass [B, K] that reached each.

        A hierarchy that nothing reaches gets even probabilities.
        """
        sizes = self.hierarchy.classes_per_hierarchy
        flat = logits.float().softmax(1).T.contiguous()
        # In a fixed order: additions that race on a GPU would give other bits each time.
        summands = flat.index_select(0, self.sources)
        mass = torch.segment_reduce(summands, "sum", lengths=self.counts, axis=0).T
        reach = segment_sums(mass, sizes)
        parts = []
        for k, part in enumerate(mass.split(list(sizes), dim=1)):
            total = reach[:, k, None]
            even = torch.full_like(part, 1 / sizes[k])
            parts.append(torch.where(total > 0, part / torch.where(total > 0, total, 1), even))
        return torch.cat(parts, 1), reach
