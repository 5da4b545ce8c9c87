"""Hierarchies that ship with distill, by name. Imports no torch."""

from importlib import resources
from pathlib import Path

from distill.errors import HierarchyError, did_you_mean

# ImageNet's label sets as timm knows them; their hierarchies come from WordNet.
FLAT_LABEL_SETS = ("imagenet-1k", "imagenet-12k", "imagenet-21k", "imagenet-22k", "imagenet-22k-ms")
DEFAULT_LABEL_SET = "imagenet21k-p-fall11"
FLAT = ":flat"  # behind a name: its classes without their hierarchy, in one softmax
FOLDER = Path(str(resources.files("distill.hierarchy") / "bundled"))


def bundled_names() -> tuple[str, ...]:
    """Names of the bundled hierarchies."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.json")))


def bundled_path(name: str) -> Path:
    """The file of a bundled hierarchy."""
    return FOLDER / f"{name}.json"


def require_known_hierarchy(name_or_path: str) -> None:
    """Raises HierarchyError where it is neither bundled nor a file; `FLAT` may stand behind it."""
    known = (*bundled_names(), *FLAT_LABEL_SETS)
    name_or_path = name_or_path.removesuffix(FLAT)
    if name_or_path not in known and not Path(name_or_path).exists():
        raise HierarchyError(
            f"unknown hierarchy {name_or_path!r}{did_you_mean(name_or_path, known)}: "
            f"neither a file nor bundled, expected {', '.join(known)} or a JSON file"
        )
