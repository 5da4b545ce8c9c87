"""Images: where they are, what they are labelled as, and the views drawn from them."""

from importlib import import_module
from typing import Any

PUBLIC = {"open_source": "source", "label_indices": "source", "ImageSource": "source"}


def __getattr__(name: str) -> Any:
    """Import a public name only when somebody asks for it: `source` takes torch with it."""
    if name not in PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{PUBLIC[name]}"), name)
