"""The student: a timm model that starts from a recipe and ends as a file timm loads."""

from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from distill.files import write_atomically
from distill.hierarchy.semantic import SemanticHierarchy
from distill.models.card import ModelCard, ModelInput
from distill.models.creation import classifier_names, create_model, default_input, download_model
from distill.models.names import require_known_model
from distill.models.weights import load_weights, read_weights
from trainers.recipe import Recipe


def create_student(recipe: Recipe, num_classes: int) -> nn.Module:
    """A model with one logit a class; the same weights for the same seed.

    Weights of another number of classes give all but their classifier.

    Raises:
        ConfigError: unknown name, weights that do not fit, or a hub that does not answer.
    """
    require_known_model(recipe.student, "student")
    torch.manual_seed(recipe.seed)
    if recipe.init == "pretrained":
        return download_model(recipe.student, num_classes, cure="pass --init random, or a file")
    model = create_model(recipe.student, num_classes)
    if recipe.init != "random":
        path = Path(recipe.init)
        path = path / "student.safetensors" if path.is_dir() else path
        load_weights(model, _with_own_classifier(model, read_weights(path)), path)
    return model


def student_input(recipe: Recipe) -> ModelInput:
    """Pixels scaled to [0, 1], or normalised as timm's configuration says."""
    size = (recipe.image_size, recipe.image_size)
    if recipe.normalisation == "none":
        return ModelInput(size=size)
    known = default_input(recipe.student)
    return ModelInput(size=size, mean=known.mean, std=known.std)


def write_student(
    state: dict[str, Tensor], recipe: Recipe, hierarchy: SemanticHierarchy, path: Path
) -> None:
    """safetensors that `timm.create_model(..., checkpoint_path=path)` loads, and its card."""
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    write_atomically(path, safetensors.torch.save(weights))
    ModelCard(
        model=recipe.student,
        num_classes=hierarchy.num_classes,
        input=student_input(recipe),
        hierarchy_digest=hierarchy.digest,
    ).write(path)
    hierarchy.save(path.with_name("hierarchy.json"))


def _with_own_classifier(model: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    fresh = model.state_dict()
    heads = tuple(f"{name}." for name in classifier_names(model))
    other = [
        name
        for name in fresh
        if name.startswith(heads)
        and (name not in weights or weights[name].shape != fresh[name].shape)
    ]
    return {**weights, **{name: fresh[name] for name in other}}
