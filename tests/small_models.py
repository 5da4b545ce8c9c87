"""Files of small models with weights that a test chooses."""

from pathlib import Path

import safetensors.torch
from torch import Tensor

from distill.hierarchy.semantic import SemanticHierarchy
from distill.models.card import ModelCard, ModelInput


def write_test_vit(path: Path, state: dict[str, Tensor], hierarchy: SemanticHierarchy) -> None:
    """Weights of a test_vit for 32 × 32 pixels, and their card."""
    safetensors.torch.save_file(state, path)
    ModelCard(
        model="test_vit",
        num_classes=hierarchy.num_classes,
        input=ModelInput(size=(32, 32)),
        hierarchy_digest=hierarchy.digest,
    ).write(path)


def as_the_authors_have_it(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """TResNet's tensors by the names that the authors' files have."""
    authors = {}
    for name, tensor in state.items():
        other = name.replace("downsample.1.conv", "downsample.1.0")
        for part, number in ((".conv.", ".0."), (".bn.", ".1.")):
            other = other.replace(part, number) if "conv" in other.split(part)[0] else other
        authors[other] = tensor
    return authors
