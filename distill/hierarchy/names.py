"""Hierarchies that ship with distill, by name. Imports no torch."""

from importlib import resources
from pathlib import Path

from distill.errors import HierarchyError, did_you_mean

FOLDER = Path(str(resources.files("distill.hierarchy") / "bundled"))


def bundled_names() -> tuple[str, ...]:
    """Names of the bundled hierarchies."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.json")))


def bundled_path(name: str) -> Path:
    """The file of a bundled hierarchy."""
    return FOLDER / f"{name}.json"


def require_known_hierarchy(name_or_path: str) -> None:
    """Raises HierarchyError where it is neither bundled nor a file."""
    if name_or_path not in bundled_names() and not Path(name_or_path).exists():
        raise HierarchyError(
            f"unknown hierarchy {name_or_path!r}{did_you_mean(name_or_path, bundled_names())}: "
            f"neither a file nor bundled, expected {', '.join(bundled_names())} or a JSON file"
        )
