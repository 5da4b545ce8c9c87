"""Weight files: read without executing anything in them, and loaded whole."""

from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from distill.errors import ConfigError, first_line


def read_weights(path: Path) -> dict[str, Tensor]:
    """A state dict from safetensors or from a safe torch file; `state_dict` wrappers are opened.

    Raises:
        ConfigError: the file is missing or of another form. Nothing in it is executed.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such weight file; expected .safetensors or a state dict")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
        for wrapper in ("state_dict", "model", "state_dict_ema"):
            if isinstance(loaded, dict) and isinstance(loaded.get(wrapper), dict):
                loaded = loaded[wrapper]
        if not isinstance(loaded, dict) or not all(isinstance(v, Tensor) for v in loaded.values()):
            raise ValueError("no state dict in it")
        return {str(k).removeprefix("module."): v for k, v in loaded.items()}
    except Exception as error:  # parsers raise whatever hostile bytes provoke
        raise ConfigError(
            f"{path}: not readable as weights ({first_line(error)}); expected safetensors or a "
            "state dict that torch.load opens with weights_only=True"
        ) from error


def load_weights(model: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    """Fill the model with those weights, all of them, in the model's own dtype.

    Raises:
        ConfigError: a tensor is missing, left over, or of another shape; says which.
    """
    expected = model.state_dict()
    missing, unknown = (
        sorted(expected.keys() - weights.keys()),
        sorted(weights.keys() - expected.keys()),
    )
    for name in sorted(expected.keys() & weights.keys()):
        if expected[name].shape != weights[name].shape:
            raise ConfigError(
                f"{path}: {name} is {list(weights[name].shape)}, "
                f"expected {list(expected[name].shape)}; "
                "these weights are of another model or another label set: check the model's name "
                "and --label-set"
            )
    if missing or unknown:
        raise ConfigError(
            f"{path}: {len(missing)} tensors missing (first: {', '.join(missing[:2]) or 'none'}), "
            f"{len(unknown)} not of this model (first: {', '.join(unknown[:2]) or 'none'}); "
            "expected a state dict of exactly this timm model: check the model's name"
        )
    model.load_state_dict(weights)
