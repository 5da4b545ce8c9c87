"""Torch files of others: tensors and plain values come out, and nothing in them is executed."""

import argparse
import codecs
from pathlib import Path
from typing import Any

import numpy as np
import torch

# What timm's checkpoints and the authors' trees hold beside tensors: options, NumPy's numbers.
_SCALAR = np.float64(0).__reduce__()[0]
_ARRAY = np.zeros(0).__reduce__()[0]
HARMLESS: list[Any] = [
    argparse.Namespace,
    codecs.encode,
    np.dtype,
    np.ndarray,
    *(type(np.dtype(code)) for code in "?bBhHiIlLqQefdSU"),
    *((_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *((_ARRAY, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
]


def load_torch_file(path: Path) -> Any:
    """What `torch.load` gives, with tensors on the CPU.

    Raises:
        ValueError: it cannot be read, or holds code; says which.
    """
    try:
        with torch.serialization.safe_globals(HARMLESS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever hostile bytes provoke
        code = _code_in(path)
        if code:
            raise ValueError(
                f"it holds {', '.join(code[:3])}, which is code and is not executed; save the "
                "tensors alone, as torch.save(model.state_dict(), …)"
            ) from error
        raise ValueError("it is damaged, or no torch file of plain tensors") from error


def _code_in(path: Path) -> list[str]:
    try:
        with torch.serialization.safe_globals(HARMLESS):
            return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:
        return []
