"""A teacher: a timm model, its input, its precision, and the fingerprint of all three."""

import hashlib
import json
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, UInt8
from timm.models import get_pretrained_cfg
from torch import Tensor, nn

from distill.errors import ConfigError, TeacherError
from distill.hierarchy import SemanticHierarchy
from distill.models import (
    ModelCard,
    ModelInput,
    check_input,
    create_model,
    default_input,
    download_model,
    known_architecture,
    load_weights,
    read_weights,
)
from store.manifest import TeacherIdentity

# What people call a teacher, and what timm calls those weights. TResNet-L here means the paper's,
# with ImageNet-21K-P weights; timm's own `tresnet_l` is an ImageNet-1K model of another layout.
ALIASES = {
    "tresnet_l": "tresnet_v2_l.miil_in21k",
    "tresnet_m": "tresnet_m.miil_in21k",
}

Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Teacher:
    """Ready to answer, in evaluation mode on its device."""

    model: nn.Module
    input: ModelInput
    hierarchy: SemanticHierarchy
    device: torch.device
    identity: TeacherIdentity

    @torch.inference_mode()
    def logits(
        self, pixels: UInt8[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch classes"]:
        """float32 logits on the teacher's device."""
        on_device = pixels.to(self.device, non_blocking=True)
        images = self.input.normalise(on_device).contiguous(memory_format=torch.channels_last)
        with self._autocast():
            answer: Tensor = self.model(images)
        return answer.float()

    def _autocast(self) -> AbstractContextManager[object]:
        if self.identity.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)


def load_teacher(
    name: str,
    hierarchy: SemanticHierarchy,
    *,
    device: torch.device,
    weights: Path | None = None,
    random_weights: bool = False,
    input_size: int | None = None,
    precision: Precision | None = None,
) -> Teacher:
    """A teacher by timm name or alias, with the hub's weights, a file's, or openly random ones.

    input_size: pixels; None takes the weights' card, then timm's configuration.
    precision: None is bfloat16 on a GPU and float32 elsewhere.

    Raises:
        ConfigError: the name is unknown, or the file is not the weights of this model.
        TeacherError: the weights cannot be had, or are for another number of classes.
    """
    full_name = ALIASES.get(name, name)
    known_architecture(full_name, "teacher")
    if weights and random_weights:
        raise ConfigError("--weights and --random-weights found; expected one of them")
    card = ModelCard.read(weights) if weights else None
    model_input = card.input if card else default_input(full_name)
    if input_size:
        model_input = ModelInput(
            size=(input_size, input_size), mean=model_input.mean, std=model_input.std
        )
    if card and card.hierarchy_digest not in (None, hierarchy.digest):
        raise TeacherError(
            f"{weights}: trained on hierarchy {str(card.hierarchy_digest)[:12]}, this run uses "
            f"{hierarchy.name} ({hierarchy.digest[:12]}); pass the --label-set it was trained on"
        )
    if weights:
        model = create_model(full_name, hierarchy.num_classes)
        load_weights(model, read_weights(weights), weights)
    elif random_weights:
        torch.manual_seed(0)
        model = create_model(full_name, hierarchy.num_classes)
    else:
        model = _from_hub(name, full_name, hierarchy)
    model = model.eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    check_input(model, full_name, model_input, hierarchy.num_classes)
    precision = precision or ("bfloat16" if device.type == "cuda" else "float32")
    return Teacher(
        model=model,
        input=model_input,
        hierarchy=hierarchy,
        device=device,
        identity=TeacherIdentity(
            name=full_name,
            fingerprint=_fingerprint(full_name, model, model_input, precision),
            input_size=model_input.size,
            precision=precision,
            random_weights=random_weights,
        ),
    )


def _from_hub(name: str, full_name: str, hierarchy: SemanticHierarchy) -> nn.Module:
    config = get_pretrained_cfg(full_name)
    if config and config.num_classes != hierarchy.num_classes:
        raise TeacherError(
            f"teacher {full_name} predicts {config.num_classes} classes, hierarchy "
            f"{hierarchy.name} has {hierarchy.num_classes}; pass the --label-set of these weights, "
            f"or --weights FILE"
        )
    try:
        return download_model(full_name)
    except ConfigError as error:
        raise TeacherError(
            f"teacher {name}: {error} with --weights FILE, or try the machinery with "
            "--random-weights"
        ) from error


def _fingerprint(name: str, model: nn.Module, model_input: ModelInput, precision: str) -> str:
    """SHA-256 over the architecture, every tensor, the input and the precision."""
    about = [name, model_input.size, model_input.mean, model_input.std, precision]
    digest = hashlib.sha256(json.dumps(about).encode())
    for key, tensor in sorted(model.state_dict().items()):
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(raw.numpy().data)
    return digest.hexdigest()
