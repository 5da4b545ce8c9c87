"""The model card: a JSON beside a weight file that says which model, input and label set it is for.

`student.safetensors` has `student.json`. A teacher and a student are the same kind of file.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill.errors import ConfigError
from distill.files import write_atomically

MOST_CLASSES = 1_000_000
SCHEMES = ("semantic", "single-label", "multi-label")


@dataclass(frozen=True, kw_only=True)
class ModelInput:
    """What a model expects: pixels scaled to [0, 1], then (x - mean) / std per channel."""

    size: tuple[int, int]  # height, width
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        if not all(8 <= side <= 4096 for side in self.size):
            raise ConfigError(f"input size {self.size} found, expected sides of 8 to 4096 pixels")
        if not all(0 < s < math.inf for s in self.std):
            raise ConfigError(f"std {self.std} found, expected positive numbers")
        if not all(map(math.isfinite, self.mean)):
            raise ConfigError(f"mean {self.mean} found, expected finite numbers")

    def __str__(self) -> str:
        """Say size, mean and std."""
        mean, std = (" ".join(f"{x:g}" for x in each) for each in (self.mean, self.std))
        return f"{self.size[0]}×{self.size[1]}, mean {mean}, std {std}"

    def normalise(self, pixels: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] → float32, on the pixels' device; or [B, 3·frames, H, W] of clips."""
        scale, shift = _constants(self, pixels.device, pixels.shape[1] // 3)
        return pixels.float() / scale - shift


@lru_cache(maxsize=64)
def _constants(model_input: ModelInput, device: torch.device, frames: int) -> tuple[Tensor, Tensor]:
    """[3·frames, 1, 1] scale, shift. Kept: a copy to a GPU waits for all that is queued there."""
    pairs = zip(model_input.mean, model_input.std, strict=True)
    with torch.inference_mode(False):
        scale = torch.tensor([255 * s for s in model_input.std], dtype=torch.float32)
        shift = torch.tensor([m / s for m, s in pairs], dtype=torch.float32)
        each = (values.repeat(frames)[:, None, None] for values in (scale, shift))
        return next(each).to(device), next(each).to(device)


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What the JSON beside a weight file says.

    scheme: how it was trained, "semantic", "single-label" or "multi-label". taught: by a teacher's
    predictions, so that each hierarchy has a softmax of its own. label_set: its name. classes: of
    the logits, where the card lists them. arguments: for timm's create_model, beside these.
    """

    model: str
    num_classes: int
    input: ModelInput
    hierarchy_digest: str | None = None
    scheme: str | None = None
    taught: bool = False
    label_set: str | None = None
    classes: tuple[str, ...] | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def write(self, weights: Path) -> None:
        """Beside `weights`."""
        document = {
            "model": self.model,
            "library": "timm",
            "num_classes": self.num_classes,
            "input_size": [3, *self.input.size],
            "mean": list(self.input.mean),
            "std": list(self.input.std),
            "hierarchy_digest": self.hierarchy_digest,
            "scheme": self.scheme,
            "taught": self.taught,
            "label_set": self.label_set,
            "model_args": dict(self.arguments),
        }
        write_atomically(card_path(weights), (json.dumps(document, indent=1) + "\n").encode())

    @classmethod
    def read(cls, weights: Path) -> "ModelCard | None":
        """The card beside `weights`, or timm's config.json of an exported folder; None without.

        Raises:
            ConfigError: there is one, but it is not a card.
        """
        path, of_timm = card_path(weights), weights.with_name("config.json")
        if not path.exists():
            path = of_timm
        if not path.exists():
            return None
        try:
            document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if path == of_timm:
                if "architecture" not in document:
                    return None  # somebody else's
                document = _card_of_timm(document)
            height, width = document["input_size"][-2:]
            names = document.get("classes")
            digest, scheme = document.get("hierarchy_digest"), document.get("scheme")
            if scheme not in (None, *SCHEMES):
                raise ValueError(f"scheme {scheme!r}, expected {', '.join(SCHEMES)}")
            if not 1 <= int(document["num_classes"]) <= MOST_CLASSES:
                raise ValueError(f"num_classes {document['num_classes']}")
            return cls(
                model=str(document["model"]),
                num_classes=int(document["num_classes"]),
                input=ModelInput(
                    size=(int(height), int(width)),
                    mean=three_floats(document["mean"]),
                    std=three_floats(document["std"]),
                ),
                hierarchy_digest=None if digest is None else str(digest),
                scheme=scheme,
                taught=bool(document.get("taught")),
                label_set=document.get("label_set"),
                classes=tuple(map(str, names)) if names else None,
                arguments=_arguments(document.get("model_args")),
            )
        except (
            ValueError,
            TypeError,
            LookupError,
            AttributeError,
            OSError,
            RecursionError,
        ) as error:
            raise ConfigError(
                f"{path}: not a model card ({type(error).__name__}: {error}); expected JSON with "
                "model, num_classes, input_size, mean and std, or no such file"
            ) from error


def _arguments(document: Any) -> dict[str, Any]:
    """All but the size of the input, which the input says."""
    if not isinstance(document, dict | None):
        raise ValueError(f"model_args {document!r}, expected an object")
    return {str(key): value for key, value in (document or {}).items() if key != "img_size"}


def _card_of_timm(document: dict[str, Any]) -> dict[str, Any]:
    """timm's config.json as a card; older ones have no pretrained_cfg of their own."""
    config = document.get("pretrained_cfg") or document
    names = document.get("label_names") or config.get("label_names") or config.get("labels")
    return {
        "model": document["architecture"],
        "num_classes": document.get("num_classes", config.get("num_classes")),
        "input_size": config["input_size"],
        "mean": config["mean"],
        "std": config["std"],
        "classes": names if isinstance(names, list) else None,
        "scheme": document.get("distill_scheme"),
        "taught": document.get("distill_taught", False),
        "model_args": document.get("model_args"),
    }


def card_path(weights: Path) -> Path:
    """Where the card of a weight file lies."""
    return weights.with_suffix(".json")


def three_floats(values: Any) -> tuple[float, float, float]:
    """One value per channel."""
    first, second, third = values
    return float(first), float(second), float(third)
