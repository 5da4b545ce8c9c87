"""WordNet's hypernyms of every synset in an ImageNet label set, as a table that ships with distill.

So a teacher's classes find their place in a hierarchy without WordNet installed. `distill hierarchy
hypernyms` wrote the table from WordNet 3.0, and a test writes it again.
"""

from collections.abc import Container, Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from distill.errors import HierarchyError, did_you_mean
from distill.files import write_atomically
from distill.hierarchy import wordnet
from distill.hierarchy.names import FLAT_LABEL_SETS

TABLE = "hypernyms.txt"
HEAD = "# synset and hypernym; from WordNet 3.0, Copyright 2006 by Princeton University\n"


def flat_label_set(name_or_path: str) -> tuple[str, ...]:
    """The synsets of one of `FLAT_LABEL_SETS`, or of a text file with one wnid per line.

    Raises:
        HierarchyError: it is neither.
    """
    if name_or_path in FLAT_LABEL_SETS:
        from timm.data.imagenet_info import ImageNetInfo

        info: Any = ImageNetInfo(name_or_path)
        return tuple(str(synset) for synset in info.label_names())
    if not Path(name_or_path).exists():
        raise HierarchyError(
            f"label set {name_or_path!r} found{did_you_mean(name_or_path, FLAT_LABEL_SETS)}, "
            f"expected {', '.join(FLAT_LABEL_SETS)} or a text file with one wnid per line"
        )
    synsets = tuple(wordnet.read_label_set(name_or_path))
    if not synsets:
        raise HierarchyError(f"{name_or_path}: no wnids found, expected one per line")
    return synsets


def label_names(name: str) -> dict[str, str]:
    """The first of the names that timm has for the classes of one of `FLAT_LABEL_SETS`."""
    from timm.data.imagenet_info import ImageNetInfo

    info: Any = ImageNetInfo(name)
    described = {str(s): str(info.label_name_to_description(s)) for s in info.label_names()}
    return {synset: names.partition(",")[0].strip() for synset, names in described.items()}


def ancestors(synset: str) -> list[str]:
    """All hypernyms of a synset of ImageNet, nearest first."""
    above: list[str] = []
    while (synset := _table().get(synset, "")) and synset not in above:
        above.append(synset)
    return above


def is_known(synset: str) -> bool:
    """Whether it is a class of ImageNet, or above one."""
    return synset in _table() or synset in _tops()


def nearest_ancestor(synset: str, label_set: Container[str]) -> str | None:
    """The synset itself or its nearest hypernym in `label_set`; None where there is none."""
    above: str | None = synset
    while above is not None and above not in label_set:
        above = _table().get(above)
    return above


def write_table(path: Path) -> int:
    """Each synset of the flat label sets, and of all above them, with its hypernym; how many."""
    synsets = {synset for name in FLAT_LABEL_SETS for synset in flat_label_set(name)}
    hypernym: dict[str, str] = {}
    for synset, above in wordnet.hypernym_paths(sorted(synsets)).items():
        hypernym |= zip((synset, *above), above, strict=False)
    lines = (f"{synset} {above}\n" for synset, above in sorted(hypernym.items()))
    write_atomically(path, (HEAD + "".join(lines)).encode())
    return len(hypernym)


@cache
def _tops() -> frozenset[str]:
    return frozenset(_table().values())


@cache
def _table() -> Mapping[str, str]:
    text = (resources.files("distill.hierarchy") / "bundled" / TABLE).read_text(encoding="utf-8")
    lines = (line.split() for line in text.splitlines() if not line.startswith("#"))
    return {synset: above for synset, above in lines}  # noqa: C416
