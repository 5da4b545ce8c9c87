"""The recipe of a student: every number that training depends on, in one frozen object."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from distill.errors import ConfigError, near_names

SCHEMES = ("semantic",)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Defaults follow Ridnik et al. 2021 (arXiv 2104.10972), appendix B, where they fit any size.

    student: timm model name. image_size: pixels a side. kd_weight: of the KD term; the paper gives
    none. lr: of the one-cycle schedule's top. warmup: its share of all steps. weight_decay:
    decoupled, not on norms and biases. init: "random", "pretrained" (timm's hub) or a weight file.
    """

    student: str
    image_size: int
    scheme: str = "semantic"
    kd_weight: float = 20.0
    divergence: Literal["mse", "kl"] = "mse"
    epochs: int = 80
    batch_size: int = 128
    lr: float = 3e-4
    warmup: float = 0.1
    weight_decay: float = 1e-4
    label_smoothing: float = 0.2
    init: str = "random"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.scheme not in SCHEMES:
            raise ConfigError(
                f"unknown scheme {self.scheme!r}; known are {near_names(self.scheme, SCHEMES)}"
            )
        positive = {
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "lr": self.lr,
            "image_size": self.image_size,
        }
        for name, value in positive.items():
            if value <= 0:
                raise ConfigError(f"{name} {value} found, expected more than 0")
        if not 0 <= self.label_smoothing < 1 or not 0 < self.warmup < 1:
            raise ConfigError(
                f"label smoothing {self.label_smoothing}, warm-up {self.warmup} found, "
                "expected shares below 1"
            )
        if self.kd_weight < 0 or self.weight_decay < 0:
            raise ConfigError(
                f"kd_weight {self.kd_weight}, weight_decay {self.weight_decay} found, expected 0 "
                f"or more"
            )

    def to_json(self) -> dict[str, Any]:
        """For checkpoints."""
        return asdict(self)
