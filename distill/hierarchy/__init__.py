"""Label sets and their hierarchies, and which of them a model's logits are of."""

from importlib import import_module
from typing import Any

PUBLIC = {"SemanticHierarchy": "semantic"}


def __getattr__(name: str) -> Any:
    """Import a public name only when somebody asks for it: `semantic` takes torch with it."""
    if name not in PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{PUBLIC[name]}"), name)
