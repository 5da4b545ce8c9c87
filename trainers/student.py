"""The student: a timm model that starts from a recipe and ends as a file timm loads."""

from pathlib import Path

import safetensors.torch
import torch
from torch import nn

from distill.files import write_atomically
from distill.hierarchy import SemanticHierarchy
from distill.models import (
    ModelCard,
    ModelInput,
    create_model,
    download_model,
    known_architecture,
    load_weights,
    read_weights,
)
from trainers.recipe import Recipe


def create_student(recipe: Recipe, hierarchy: SemanticHierarchy) -> nn.Module:
    """A model with one logit a class of the label set.

    Raises:
        ConfigError: unknown name, weights that do not fit, or a hub that does not answer.
    """
    known_architecture(recipe.student, "student")
    if recipe.init == "pretrained":
        return download_model(recipe.student, hierarchy.num_classes)
    torch.manual_seed(recipe.seed)
    model = create_model(recipe.student, hierarchy.num_classes)
    if recipe.init != "random":
        load_weights(model, read_weights(Path(recipe.init)), Path(recipe.init))
    return model


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Weights that decay, and those that do not: norms and biases."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]


def export_student(
    model: nn.Module, recipe: Recipe, hierarchy: SemanticHierarchy, path: Path
) -> None:
    """safetensors that `timm.create_model(..., checkpoint_path=path)` loads, and its card."""
    state = {
        name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()
    }
    write_atomically(path, safetensors.torch.save(state))
    side = recipe.image_size
    ModelCard(
        model=recipe.student,
        num_classes=hierarchy.num_classes,
        input=ModelInput(size=(side, side)),
        hierarchy_digest=hierarchy.digest,
    ).write(path)
