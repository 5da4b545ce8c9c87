"""Classes as a tree to walk down: children, subtrees as ranges, sums over them."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.errors import HierarchyError
from distill.hierarchy.semantic import SemanticHierarchy


@dataclass(frozen=True, eq=False)
class ClassTree:
    """The label set in depth-first order, so that every subtree is a range of it."""

    hierarchy: SemanticHierarchy

    @cached_property
    def children(self) -> list[list[int]]:
        """Children of each class, by display name; the last entry holds the roots."""
        names, parents = self.hierarchy.names, self.hierarchy.parents
        below: list[list[int]] = [[] for _ in range(len(parents) + 1)]
        for c in sorted(range(len(parents)), key=lambda c: (names[c].lower(), c)):
            below[parents[c]].append(c)
        return below

    @property
    def roots(self) -> list[int]:
        """Classes without an ancestor."""
        return self.children[-1]

    @cached_property
    def order(self) -> NDArray[np.int64]:
        """[C]: the classes in depth-first order."""
        order, open_ = [], list(reversed(self.roots))
        while open_:
            order.append(open_.pop())
            open_.extend(reversed(self.children[order[-1]]))
        return np.array(order, np.int64)

    @cached_property
    def rank(self) -> NDArray[np.int64]:
        """[C]: where each class stands in `order`."""
        return np.argsort(self.order)

    @cached_property
    def end(self) -> NDArray[np.int64]:
        """[C]: the first rank behind each class's subtree."""
        end = self.rank + 1
        for c in self.order[::-1]:
            if (parent := self.hierarchy.parents[c]) >= 0:
                end[parent] = max(end[parent], end[c])
        return end

    def name(self, c: int) -> str:
        """Return the display name of a class."""
        return self.hierarchy.display_name(self.hierarchy.synsets[c])

    def named(self, word: str) -> int:
        """The class whose synset or name that is.

        Raises:
            HierarchyError: none is called so, or several are.
        """
        matches = [self.hierarchy.index(synset) for synset in self.hierarchy.find(word)]
        if len(matches) > 1:
            offered = "; ".join(
                f"{self.hierarchy.synsets[c]} ({' > '.join(map(self.name, self.path(c)))})"
                for c in matches
            )
            raise HierarchyError(
                f"{word!r} names {len(matches)} classes, expected one; pass its synset: {offered}"
            )
        return matches[0]

    def subtree(self, c: int) -> slice:
        """The ranks of a class and of all below it."""
        return slice(int(self.rank[c]), int(self.end[c]))

    def summed(self, values: NDArray[Any]) -> NDArray[Any]:
        """[C] → [C]: the sum over each class's subtree."""
        sums = np.concatenate([[0], np.cumsum(values[self.order])])
        return np.asarray(sums[self.end] - sums[self.rank])

    def path(self, c: int) -> list[int]:
        """From the most general ancestor down to the class."""
        path = [c]
        while (parent := self.hierarchy.parents[path[-1]]) >= 0:
            path.append(parent)
        return path[::-1]
