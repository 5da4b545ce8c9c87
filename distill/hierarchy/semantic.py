"""The semantic hierarchy: which classes compete in which softmax, and what a label implies.

Owns the label set, the chains of ancestors, the levels and the tensors that the losses index with.
Where chains come from is elsewhere: `distill.hierarchy.wordnet` walks WordNet.
"""

import hashlib
import json
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from distill.errors import HierarchyError, did_you_mean
from distill.files import write_atomically
from distill.hierarchy import files
from distill.hierarchy.files import ChainSource
from distill.hierarchy.names import (
    FLAT,
    FLAT_LABEL_SETS,
    bundled_names,
    bundled_path,
    require_known_hierarchy,
)

MAX_WEIGHT = 20.0  # the authors clamp W_k here


@dataclass(frozen=True, eq=False)
class HierarchyTensors:
    """What the losses index with, on one device."""

    class_order: Int[Tensor, " members"]  # class of each column in hierarchy order
    label_table: Int[Tensor, "classes_and_none hierarchies"]  # last row: no label
    depths: Int[Tensor, " classes_and_none"]  # level of each class; last: -1
    sizes: Int[Tensor, " hierarchies"]  # N_k
    starts: Int[Tensor, " hierarchies"]  # first column of each hierarchy
    parents: Int[Tensor, " classes"]  # nearest ancestor of each class, -1 for none
    by_level: tuple[Tensor, ...]  # the classes of each level
    outside: Int[Tensor, " outside"]  # the classes of no hierarchy


@dataclass(frozen=True, eq=False)
class SemanticHierarchy:
    """An ordered label set and the softmax each of its classes belongs to.

    `parents[c]` is the class index of c's nearest ancestor, -1 where it has none. A class with k
    ancestors is of hierarchy k; levels from `num_hierarchies` on have no softmax of their own.
    """

    name: str
    synsets: tuple[str, ...]
    names: tuple[str, ...]
    parents: tuple[int, ...]
    num_hierarchies: int

    # -- construction -----------------------------------------------------------------------------

    @classmethod
    def from_chains(
        cls,
        synsets: Sequence[str],
        ancestors: Mapping[str, Sequence[str]],
        *,
        names: Mapping[str, str] | None = None,
        name: str = "custom",
        drop_deepest: bool = True,
    ) -> "SemanticHierarchy":
        """From each synset's ancestors, nearest first; those outside the label set are passed over.

        A synset without an entry has no ancestors. `drop_deepest` leaves the deepest level without
        a softmax, as the paper's authors do, unless it is the only level.

        Raises:
            HierarchyError: a synset appears twice, or a chain disagrees with its ancestors' chains.
        """
        index = _index_of(synsets)
        chains = {s: [a for a in ancestors.get(s, ()) if a in index] for s in synsets}
        for synset, chain in chains.items():
            if chain and chain[1:] != chains[chain[0]]:
                raise HierarchyError(
                    f"{synset}: its ancestors are {_path(chain)}, but its nearest one, {chain[0]}, "
                    f"has {_path(chains[chain[0]])}; every chain must go on as its ancestor's does"
                )
        parents = tuple(index[chains[s][0]] if chains[s] else -1 for s in synsets)
        levels = 1 + max(len(chain) for chain in chains.values())
        return cls(
            name=name,
            synsets=tuple(synsets),
            names=tuple((names or {}).get(s, s) for s in synsets),
            parents=parents,
            num_hierarchies=max(1, levels - 1) if drop_deepest else levels,
        )

    @classmethod
    def from_wordnet(
        cls, synsets: Sequence[str], *, name: str = "wordnet", drop_deepest: bool = True
    ) -> "SemanticHierarchy":
        """From WordNet 3.0 hypernyms (nltk); where there are several, the first by name."""
        from distill.hierarchy import wordnet

        _index_of(synsets)
        paths = wordnet.hypernym_paths(synsets)
        return cls.from_chains(
            synsets,
            paths,
            names=wordnet.lemmas(synsets),
            name=name,
            drop_deepest=drop_deepest,
        )

    @classmethod
    def from_miil_tree(cls, path: str | Path) -> "SemanticHierarchy":
        """From the authors' `imagenet21k_miil_tree.pth`; nothing in the file is executed."""
        return cls._from_source(files.read_miil_tree(Path(path)))

    @classmethod
    def bundled(cls, name: str) -> "SemanticHierarchy":
        """One of the hierarchies that ship with distill; `bundled_names()` lists them."""
        if name not in bundled_names():
            raise HierarchyError(
                f"unknown hierarchy {name!r}; bundled are {', '.join(bundled_names())}; "
                "or give the path of a hierarchy or label-set JSON"
            )
        return cls.load(bundled_path(name))

    @classmethod
    def of_imagenet(cls, name: str) -> "SemanticHierarchy":
        """One of `FLAT_LABEL_SETS` in timm's order, with WordNet's hypernyms."""
        from distill.hierarchy import hypernyms

        names = hypernyms.label_names(name)
        above = {synset: hypernyms.ancestors(synset) for synset in names}
        return cls.from_chains(tuple(names), above, names=names, name=name)

    @classmethod
    def load(cls, path: str | Path) -> "SemanticHierarchy":
        """From a JSON that `save` wrote, or one with `synsets` and `ancestors_nearest_first`."""
        return cls._from_source(files.read_json(Path(path)))

    @classmethod
    def from_json(cls, document: Any, *, name: str = "custom") -> "SemanticHierarchy":
        """What `to_json` gave, or a label set with `synsets` and `ancestors_nearest_first`.

        Raises:
            HierarchyError: it is neither, or its chains run in a circle or out of the label set.
        """
        return cls._from_source(files.parse_json(document, name))

    @classmethod
    def _from_source(cls, source: ChainSource) -> "SemanticHierarchy":
        kept = source.num_hierarchies
        built = cls.from_chains(
            source.synsets,
            source.ancestors,
            names=source.names,
            name=source.name,
            drop_deepest=kept is None,
        )
        if kept is None:
            return built
        if not 1 <= kept <= built.num_hierarchies:
            raise HierarchyError(
                f"{source.name}: num_hierarchies {kept} found, "
                f"expected 1 to {built.num_hierarchies}"
            )
        return replace(built, num_hierarchies=kept)

    def flattened(self) -> "SemanticHierarchy":
        """The same classes without their hierarchy: one softmax over all."""
        names = dict(zip(self.synsets, self.names, strict=True))
        return self.from_chains(self.synsets, {}, names=names, name=f"{self.name}{FLAT}")

    def to_json(self) -> dict[str, Any]:
        """classes: [synset, name, nearest ancestor or null] in the order of the label set."""
        rows = zip(self.synsets, self.names, self.parents, strict=True)
        return {
            "format": files.FORMAT,
            "name": self.name,
            "num_hierarchies": self.num_hierarchies,
            "classes": [[s, n, self.synsets[p] if p >= 0 else None] for s, n, p in rows],
        }

    def save(self, path: str | Path) -> None:
        """One class a line, so that two versions of a label set can be compared by eye."""
        document = self.to_json()
        rows = [json.dumps(row, ensure_ascii=False) for row in document.pop("classes")]
        head = json.dumps(document, ensure_ascii=False, indent=1).removesuffix("\n}")
        body = ",\n  ".join(rows)
        text = f'{head},\n "classes": [\n  {body}\n ]\n}}\n'
        write_atomically(Path(path), text.encode())

    # -- sizes and identity -----------------------------------------------------------------------

    @property
    def num_classes(self) -> int:
        """Classes in the label set, those of the dropped level included."""
        return len(self.synsets)

    @cached_property
    def levels(self) -> NDArray[np.int64]:
        """[num_classes]: the number of ancestors of each class."""
        return np.array([len(self._ancestor_indices(c)) for c in range(self.num_classes)], np.int64)

    @cached_property
    def inner(self) -> NDArray[np.bool_]:
        """[num_classes]: whether other classes are below."""
        inner = np.zeros(self.num_classes, np.bool_)
        inner[[parent for parent in self.parents if parent >= 0]] = True
        return inner

    @cached_property
    def level_sizes(self) -> tuple[int, ...]:
        """Classes of every level, the dropped one included."""
        return tuple(int(n) for n in np.bincount(self.levels))

    @property
    def classes_per_hierarchy(self) -> tuple[int, ...]:
        """N_k: classes that compete in each hierarchy's softmax."""
        return self.level_sizes[: self.num_hierarchies]

    @cached_property
    def weights(self) -> tuple[float, ...]:
        """W_k = O_0 / O_k, at most 20; O_k counts the classes of level k and deeper.

        Ridnik et al. 2021 (arXiv 2104.10972), section 3.2.3, with eq. 3's sum the other way round:
        as printed it divides by zero at k = 0.
        """
        activating = np.cumsum(self.level_sizes[::-1])[::-1]
        ratio = activating[0] / activating[: self.num_hierarchies]
        return tuple(float(w) for w in np.minimum(ratio, MAX_WEIGHT))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the label set, its chains and its number of hierarchies; not of the names."""
        content = json.dumps([self.synsets, self.parents, self.num_hierarchies])
        return hashlib.sha256(content.encode()).hexdigest()

    @cached_property
    def slices(self) -> tuple[slice, ...]:
        """Where each hierarchy stands among the columns in hierarchy order."""
        ends = np.cumsum(self.classes_per_hierarchy)
        return tuple(
            slice(int(end) - n, int(end))
            for end, n in zip(ends, self.classes_per_hierarchy, strict=True)
        )

    # -- labels -----------------------------------------------------------------------------------

    @cached_property
    def class_order(self) -> NDArray[np.int64]:
        """[sum N_k]: the class of each column in hierarchy order, hierarchy after hierarchy."""
        order = np.argsort(self.levels, kind="stable")
        return order[: sum(self.classes_per_hierarchy)]

    @cached_property
    def label_table(self) -> NDArray[np.int64]:
        """[num_classes + 1, K]: what each label says in each hierarchy, -1 where nothing.

        The last row is all -1, so that indexing with -1 means "no label".
        """
        position = np.empty(self.num_classes, np.int64)
        for level in range(len(self.level_sizes)):
            members = np.flatnonzero(self.levels == level)
            position[members] = np.arange(len(members))
        table = np.full((self.num_classes + 1, self.num_hierarchies), -1, np.int64)
        for c in range(self.num_classes):
            for member in (c, *self._ancestor_indices(c)):
                if self.levels[member] < self.num_hierarchies:
                    table[c, self.levels[member]] = position[member]
        return table

    def semantic_labels(self, labels: Int[Tensor, " batch"]) -> Int[Tensor, "batch hierarchies"]:
        """[B, K]: each label's position within each hierarchy, -1 where it says nothing there.

        A negative label means that the image has none.

        Raises:
            ValueError: a label is not below `num_classes` (checked on the CPU, outside compile).
        """
        checkable = labels.device.type == "cpu" and not torch.compiler.is_compiling()
        if checkable and labels.numel() and int(labels.max()) >= self.num_classes:
            raise ValueError(f"label {int(labels.max())} found, expected < {self.num_classes}")
        rows = torch.where(labels < 0, self.num_classes, labels.long())
        return self.tensors(labels.device).label_table[rows]

    def label_depths(self, labels: Int[Tensor, " batch"]) -> Int[Tensor, " batch"]:
        """[B]: the level of each label; -1 where there is none."""
        rows = torch.where(labels < 0, self.num_classes, labels.long())
        return self.tensors(labels.device).depths[rows]

    def tensors(self, device: torch.device) -> HierarchyTensors:
        """The index tensors on `device`, moved there once."""
        key = str(device)
        if key not in self._moved:
            with torch.inference_mode(False):  # whoever asks first, losses must be able to use them
                self._moved[key] = HierarchyTensors(
                    class_order=torch.from_numpy(self.class_order).to(device),
                    label_table=torch.from_numpy(self.label_table).to(device),
                    depths=torch.tensor([*self.levels.tolist(), -1], device=device),
                    sizes=torch.tensor(self.classes_per_hierarchy, device=device),
                    starts=torch.tensor([part.start for part in self.slices], device=device),
                    parents=torch.tensor(self.parents, device=device),
                    by_level=tuple(
                        torch.from_numpy(np.flatnonzero(self.levels == level)).to(device)
                        for level in range(len(self.level_sizes))
                    ),
                    outside=torch.from_numpy(
                        np.flatnonzero(self.levels >= self.num_hierarchies)
                    ).to(device),
                )
        return self._moved[key]

    # -- for people -------------------------------------------------------------------------------

    def index(self, synset: str) -> int:
        """The class index of a synset."""
        position = self._index.get(synset)
        if position is None:
            raise HierarchyError(
                f"{synset!r} is not in the label set {self.name} ({self.num_classes} classes)"
                f"{did_you_mean(synset, self.synsets)}"
            )
        return position

    def __contains__(self, synset: object) -> bool:
        return synset in self._index

    def find(self, word: str) -> tuple[str, ...]:
        """The synsets that are `word`, or are named so (case and underscores do not matter)."""
        if word in self._index:
            return (word,)
        synsets = self.named(word)
        if not synsets:
            raise HierarchyError(
                f"{word!r} is neither a synset nor a name in {self.name}"
                f"{did_you_mean(_plain(word), self._by_name)}"
            )
        return synsets

    def named(self, word: str) -> tuple[str, ...]:
        """The synsets that are named so; case, underscores and spaces around do not matter.

        Of several names with commas between, as in "goldfish, Carassius auratus", those that all
        known ones of them name.
        """
        if found := self._by_name.get(_plain(word)):
            return tuple(found)
        each = [self._by_name.get(_plain(name)) for name in word.split(",")]
        known = [synsets for synsets in each if synsets]
        return tuple(s for s in known[0] if all(s in more for more in known)) if known else ()

    @cached_property
    def numbered(self) -> dict[int, int]:
        """By number, the classes whose synsets are numbers; empty where none is.

        Raises:
            HierarchyError: two are the same number.
        """
        numbers: dict[int, int] = {}
        for c, synset in enumerate(self.synsets):
            is_number = synset.isascii() and synset.isdecimal() and len(synset) < 10
            if is_number and numbers.setdefault(int(synset), c) != c:
                raise HierarchyError(
                    f"{self.name}: classes {self.synsets[numbers[int(synset)]]!r} and {synset!r} "
                    "are the same number, expected one of them; rename one"
                )
        return numbers

    def ancestors(self, synset: str) -> tuple[str, ...]:
        """A synset's ancestors in the label set, nearest first."""
        return tuple(self.synsets[a] for a in self._ancestor_indices(self.index(synset)))

    def display_name(self, synset: str) -> str:
        """A synset's name for people, such as "aquatic bird"."""
        return self.names[self.index(synset)].replace("_", " ")

    # -- internals --------------------------------------------------------------------------------

    @cached_property
    def _index(self) -> dict[str, int]:
        normal = {unicodedata.normalize("NFC", s): c for c, s in enumerate(self.synsets)}
        return {**normal, **{synset: c for c, synset in enumerate(self.synsets)}}

    @cached_property
    def _by_name(self) -> dict[str, list[str]]:
        synsets_by_name: dict[str, list[str]] = {}
        for synset, name in zip(self.synsets, self.names, strict=True):
            synsets_by_name.setdefault(_plain(name), []).append(synset)
        return synsets_by_name

    @cached_property
    def _moved(self) -> dict[str, HierarchyTensors]:
        return {}

    def _ancestor_indices(self, c: int) -> list[int]:
        chain: list[int] = []
        while (c := self.parents[c]) >= 0:
            chain.append(c)
        return chain


def resolve(name_or_path: str) -> SemanticHierarchy:
    """A bundled hierarchy by name, or one from a file; NAME:flat is its classes in one softmax."""
    require_known_hierarchy(name_or_path)
    if name_or_path.endswith(FLAT):
        return resolve(name_or_path.removesuffix(FLAT)).flattened()
    if name_or_path in bundled_names():
        return SemanticHierarchy.bundled(name_or_path)
    if name_or_path in FLAT_LABEL_SETS:
        return SemanticHierarchy.of_imagenet(name_or_path)
    return SemanticHierarchy.load(name_or_path)


def _index_of(synsets: Iterable[str]) -> dict[str, int]:
    index: dict[str, int] = {}
    for position, synset in enumerate(synsets):
        if synset in index:
            raise HierarchyError(
                f"{synset} stands at {index[synset]} and at {position}; expected each synset once"
            )
        index[synset] = position
    if not index:
        raise HierarchyError("the label set is empty; expected at least one synset")
    return index


def _path(chain: Sequence[str]) -> str:
    return " → ".join(chain) or "none"


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name.replace("_", " ").strip().lower())
