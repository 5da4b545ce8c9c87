"""timm models by name: creation, weight files and the model card that travels with one.

A card is a JSON beside the weights (`student.safetensors`, `student.json`) that says which timm
model, which input and which label set the weights are for. A teacher and a student are the same
kind of file.
"""

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
from huggingface_hub import HfApi, try_to_load_from_cache
from timm.models import get_pretrained_cfg
from torch import Tensor, nn

from distill.errors import ConfigError, first_line, near_names
from distill.files import write_atomically


@dataclass(frozen=True, kw_only=True)
class ModelInput:
    """What a model expects: pixels scaled to [0, 1], then (x - mean) / std per channel."""

    size: tuple[int, int]  # height, width
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        if not all(8 <= side <= 4096 for side in self.size):
            raise ConfigError(f"input size {self.size} found, expected sides of 8 to 4096 pixels")
        if not all(s > 0 for s in self.std):
            raise ConfigError(f"std {self.std} found, expected positive numbers")

    def normalise(self, pixels: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] → float32, on the pixels' device."""
        scale, shift = _constants(self, pixels.device)
        return pixels.float() / scale - shift


@lru_cache(maxsize=64)
def _constants(model_input: ModelInput, device: torch.device) -> tuple[Tensor, Tensor]:
    """[3, 1, 1] scale and shift. Kept: a copy to a GPU waits for all that is queued there."""
    pairs = zip(model_input.mean, model_input.std, strict=True)
    with torch.inference_mode(False):
        scale = torch.tensor([255 * s for s in model_input.std], dtype=torch.float32)
        shift = torch.tensor([m / s for m, s in pairs], dtype=torch.float32)
        return scale[:, None, None].to(device), shift[:, None, None].to(device)


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What the JSON beside a weight file says."""

    model: str
    num_classes: int
    input: ModelInput
    hierarchy_digest: str | None = None

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
        }
        write_atomically(card_path(weights), (json.dumps(document, indent=1) + "\n").encode())

    @classmethod
    def read(cls, weights: Path) -> "ModelCard | None":
        """The card beside `weights`; None where there is none.

        Raises:
            ConfigError: there is one, but it is not a card.
        """
        path = card_path(weights)
        if not path.exists():
            return None
        try:
            document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            height, width = document["input_size"][-2:]
            return cls(
                model=str(document["model"]),
                num_classes=int(document["num_classes"]),
                input=ModelInput(
                    size=(int(height), int(width)),
                    mean=_three(document["mean"]),
                    std=_three(document["std"]),
                ),
                hierarchy_digest=document.get("hierarchy_digest"),
            )
        except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
            raise ConfigError(
                f"{path}: not a model card ({type(error).__name__}: {error}); expected JSON with "
                "model, num_classes, input_size, mean and std, or no such file"
            ) from error


def card_path(weights: Path) -> Path:
    """Where the card of a weight file lies."""
    return weights.with_suffix(".json")


def known_architecture(name: str, what: str) -> str:
    """`name` without its pretrained tag, if timm has that architecture.

    Raises:
        ConfigError: it has not; lists the near ones.
    """
    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        raise ConfigError(
            f"unknown {what} {name!r}; near in timm are "
            f"{near_names(architecture, timm.list_models())}"
        )
    return architecture


def default_input(name: str) -> ModelInput:
    """The input that timm's pretrained configuration of this model states."""
    config = get_pretrained_cfg(name) or get_pretrained_cfg(name.partition(".")[0])
    if config is None:
        return ModelInput(size=(224, 224))
    return ModelInput(
        size=(config.input_size[1], config.input_size[2]),
        mean=_three(config.mean),
        std=_three(config.std),
    )


def create_model(name: str, num_classes: int) -> nn.Module:
    """A timm model with fresh weights, for any input size that the architecture takes."""
    model: nn.Module = timm.create_model(name.partition(".")[0], num_classes=num_classes)
    return model


def check_input(model: nn.Module, name: str, model_input: ModelInput, num_classes: int) -> None:
    """Ask the model about two black images, so that a wrong size is found before any work.

    Raises:
        ConfigError: the model does not take images of this size, or gives no such logits.
    """
    device = next(model.parameters()).device
    training = model.training
    try:
        with torch.no_grad():
            logits = model.eval()(torch.zeros(2, 3, *model_input.size, device=device))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ConfigError(
            f"{name} does not take {model_input.size[0]}×{model_input.size[1]} images "
            f"({first_line(error)}); choose another size or another model"
        ) from error
    finally:
        model.train(training)
    if tuple(logits.shape) != (2, num_classes):
        raise ConfigError(
            f"{name} answers two images with shape {tuple(logits.shape)}, expected one logit for "
            f"each of {num_classes} classes; choose an image classification model"
        )


def classifier_names(model: nn.Module) -> tuple[str, ...]:
    """The modules that hold one row a class, as timm's configuration of the model names them."""
    config: Any = getattr(model, "pretrained_cfg", {})
    names = config.get("classifier") or ()
    return (names,) if isinstance(names, str) else tuple(names)


def download_model(
    name: str, num_classes: int | None = None, *, cure: str | None = None
) -> nn.Module:
    """A timm model with the hub's weights; another `num_classes` gets a fresh classifier.

    Raises:
        ConfigError: there are none, or they are not cached and the hub does not answer.
    """
    config = get_pretrained_cfg(name)
    if config is None or not (config.hf_hub_id or config.url):
        raise ConfigError(f"{name}: timm has no pretrained weights; {cure or 'pass a file'}")
    keywords: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    try:
        files = ("model.safetensors", "pytorch_model.bin")
        if config.hf_hub_id and not any(try_to_load_from_cache(config.hf_hub_id, f) for f in files):
            # Without a network this fails at once; the download itself retries for a minute.
            HfApi().model_info(config.hf_hub_id, timeout=10)
        model: nn.Module = timm.create_model(name, pretrained=True, **keywords)
    except Exception as error:  # the hub client raises whatever the network does
        raise ConfigError(
            f"{name}: its weights cannot be downloaded ({first_line(error)}), expected a network "
            f"or a cached copy; "
            + (cure or f"fetch the file of timm/{name} from the model hub elsewhere and pass it")
        ) from error
    return model


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
    own = model.state_dict()
    missing, unknown = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    for name in sorted(own.keys() & weights.keys()):
        if own[name].shape != weights[name].shape:
            raise ConfigError(
                f"{path}: {name} is {list(weights[name].shape)}, expected {list(own[name].shape)}; "
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


def pick_device(name: str) -> torch.device:
    """`auto` is the first GPU, or the CPU; `auto:N` is GPU N modulo their number, or the CPU.

    Raises:
        ConfigError: there is no such device.
    """
    kind, _, rank = name.partition(":")
    if kind == "auto" and (rank.isdecimal() or name == "auto"):
        gpus = torch.cuda.device_count()
        return torch.device("cuda", int(rank or 0) % gpus) if gpus else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device {name!r} found, expected auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device {name!r} found, but this machine has {torch.cuda.device_count()} CUDA "
            "devices; use --device auto"
        )
    return device


def _three(values: Any) -> tuple[float, float, float]:
    first, second, third = values
    return float(first), float(second), float(third)
