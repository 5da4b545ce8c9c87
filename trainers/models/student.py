"""The student: a timm model that starts from a recipe and ends as a file timm loads."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from distill.files import write_atomically
from distill.hierarchy.model_classes import classes_beside, classes_of_timm
from distill.hierarchy.semantic import SemanticHierarchy
from distill.models.card import ModelCard, ModelInput
from distill.models.creation import classifier_names, create_model, default_input, download_model
from distill.models.names import require_known_model
from distill.models.weights import (
    Weights,
    find_weights,
    load_weights,
    read_weights,
    with_classifier,
)
from distill.trainers.recipe import Recipe


def create_student(
    recipe: Recipe, classes: Sequence[str], say: Callable[[str], None] = lambda text: None
) -> nn.Module:
    """A model with one logit a class; the same weights for the same seed.

    A classifier is kept where its classes are known to be these, in whatever order; else it is new.

    Raises:
        ConfigError: unknown name, weights that do not fit, or a hub that does not answer.
    """
    require_known_model(recipe.student, "student")
    torch.manual_seed(recipe.seed)
    if recipe.init == "random":
        return _fresh(recipe, classes)
    if recipe.init == "pretrained":
        trained = download_model(recipe.student, cure="pass --init random, or a file")
        weights = Weights(path=Path(recipe.student), state=trained.state_dict())
        known = classes_of_timm(recipe.student)
    else:
        path = find_weights(recipe.init)
        weights, known = read_weights(path), classes_beside(path, ModelCard.read(path))
    torch.manual_seed(recipe.seed)
    model = _fresh(recipe, classes)
    chosen = with_classifier(weights, model, classifier_names(model), known, classes)
    notes = load_weights(model, chosen).notes
    say(f"init: {recipe.init}{''.join(f'; {note}' for note in notes)}")
    return model


def _fresh(recipe: Recipe, classes: Sequence[str]) -> nn.Module:
    size = (recipe.image_size, recipe.image_size)
    return create_model(recipe.student, len(classes), size, recipe.model)


def student_input(recipe: Recipe) -> ModelInput:
    """Pixels scaled to [0, 1], or normalised as timm's configuration says."""
    size = (recipe.image_size, recipe.image_size)
    if recipe.normalisation == "none":
        return ModelInput(size=size)
    known = default_input(recipe.student)
    return ModelInput(size=size, mean=known.mean, std=known.std)


def recipe_input(given: ModelInput, student: str) -> dict[str, Any]:
    """What a recipe says of an input, as far as it can: `student_input` the other way."""
    height, width = given.size
    known = default_input(student)
    said: dict[str, Any] = {"image_size": height} if height == width else {}
    pixels = given.mean, given.std
    if pixels == (known.mean, known.std):
        said["normalisation"] = "model"
    elif pixels == (ModelInput.mean, ModelInput.std):
        said["normalisation"] = "none"
    return said


def write_student(
    state: dict[str, Tensor],
    recipe: Recipe,
    hierarchy: SemanticHierarchy,
    path: Path,
    *,
    taught: bool,
) -> None:
    """safetensors that `timm.create_model(..., checkpoint_path=path)` loads, and its card.

    taught: by a teacher's predictions.
    """
    card = ModelCard(
        model=recipe.student,
        num_classes=hierarchy.num_classes,
        input=student_input(recipe),
        hierarchy_digest=hierarchy.digest,
        scheme=recipe.scheme,
        taught=taught,
        label_set=hierarchy.name,
        arguments=recipe.model,
    )
    write_weights(state, card, hierarchy, path)


def write_weights(
    state: Mapping[str, Tensor], card: ModelCard, hierarchy: SemanticHierarchy, path: Path
) -> None:
    """Weights as safetensors, and beside them what they are."""
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    write_atomically(path, safetensors.torch.save(weights))
    card.write(path)
    hierarchy.save(path.with_name("hierarchy.json"))
