"""Files that hold chains of ancestors: our JSON, label sets and taxonomies, the authors' tree."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.errors import HierarchyError, first_line
from distill.models.torch_files import load_torch_file

FORMAT = "distill-hierarchy/1"


@dataclass(frozen=True, kw_only=True)
class ChainSource:
    """What a file says: each synset's ancestors, nearest first.

    num_hierarchies: levels with a softmax; None leaves the deepest out.
    """

    name: str
    synsets: Sequence[str]
    ancestors: Mapping[str, Sequence[str]]
    names: Mapping[str, str] | None
    num_hierarchies: int | None = None


def read_json(path: Path) -> ChainSource:
    """A JSON that `SemanticHierarchy.save` wrote, or a label set.

    Raises:
        HierarchyError: it cannot be read, or is neither.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise HierarchyError(
            f"{path}: cannot be read ({error.strerror}); expected a hierarchy JSON"
        ) from error
    except (ValueError, RecursionError) as error:
        raise HierarchyError(f"{path}: not JSON ({error}); expected a hierarchy file") from error
    try:
        return parse_json(document, path.stem)
    except HierarchyError as error:
        raise HierarchyError(f"{path}: {error}") from error


def parse_json(document: Any, name: str) -> ChainSource:
    """`read_json` for a document at hand; `name` where it has none.

    Raises:
        HierarchyError: it is of neither form, or its chains run in a circle or out of the set.
    """
    try:
        if "classes" in document:
            return _parse_saved(document, name)
        if "parents" in document:
            return _parse_parents(document, name)
        ancestors = {
            str(synset): [str(a) for a in chain]
            for synset, chain in document["ancestors_nearest_first"].items()
        }
        return ChainSource(
            name=str(document.get("name", name)),
            synsets=[str(s) for s in document["synsets"]],
            ancestors=ancestors,
            names={str(s): str(n) for s, n in document.get("lemmas", {}).items()},
        )
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise HierarchyError(
            f"not a hierarchy ({type(error).__name__}: {error}); expected what `distill hierarchy "
            "build` writes, or JSON with parents, or with synsets and ancestors_nearest_first"
        ) from error


def read_miil_tree(path: Path) -> ChainSource:
    """`class_tree_list` (class indices, self first) and `class_list` of a torch file; safe load.

    Raises:
        HierarchyError: the file is not such a tree.
    """
    try:
        tree = load_torch_file(path)
        chains = [[int(c) for c in chain] for chain in tree["class_tree_list"]]
        listed = tree.get("class_list")
        synsets = [str(s) for s in (range(len(chains)) if listed is None else listed)]
        described = tree.get("class_description")
        if len(synsets) != len(chains) or not all(chains):
            raise ValueError(f"{len(chains)} chains for {len(synsets)} classes")
        ancestors = {synsets[c]: [synsets[a] for a in above] for c, *above in chains}
    except Exception as error:  # torch.load raises whatever the bytes provoke
        raise HierarchyError(
            f"{path}: not a readable tree ({first_line(error)}); expected a torch file with "
            "class_tree_list and class_list, such as imagenet21k_miil_tree.pth"
        ) from error
    names = {str(k): str(v) for k, v in described.items()} if isinstance(described, dict) else None
    return ChainSource(name=path.stem, synsets=synsets, ancestors=ancestors, names=names)


def _parse_saved(document: Any, name: str) -> ChainSource:
    if document.get("format") != FORMAT:
        raise HierarchyError(f"format {document.get('format')!r} found, expected {FORMAT!r}")
    rows = [(str(s), str(n), p) for s, n, p in document["classes"]]
    parent = {synset: above for synset, _, above in rows}
    return ChainSource(
        name=str(document.get("name", name)),
        synsets=[synset for synset, _, _ in rows],
        ancestors={synset: _follow(synset, parent) for synset, _, _ in rows},
        names={synset: n for synset, n, _ in rows},
        num_hierarchies=int(document["num_hierarchies"]),
    )


def _parse_parents(document: Any, name: str) -> ChainSource:
    """A taxonomy of one's own: each class's parent, null at the top; names for people if wanted.

    Every level has a softmax: the deepest one is what its owner cares about.
    """
    parent = {str(c): None if p is None else str(p) for c, p in document["parents"].items()}
    ancestors = {c: _follow(c, parent) for c in parent}
    return ChainSource(
        name=str(document.get("name", name)),
        synsets=list(parent),
        ancestors=ancestors,
        names={str(c): str(n) for c, n in document.get("names", {}).items()},
        num_hierarchies=1 + max(map(len, ancestors.values()), default=0),
    )


def _follow(synset: str, parent: Mapping[str, str | None]) -> list[str]:
    chain: list[str] = []
    step = parent[synset]
    while step is not None:
        if step not in parent:
            raise HierarchyError(f"{synset}: its ancestor {step!r} is not in the label set")
        if step == synset or step in chain:
            raise HierarchyError(f"{synset}: its ancestors run in a circle through {step}")
        chain.append(step)
        step = parent[step]
    return chain
