"""Pretrain a student on synsets, with what a teacher says of the same views.

`distill.trainers.training.matching` checks that everything belongs together,
`distill.trainers.training.loop` trains.
"""

from collections.abc import Callable
from pathlib import Path

from distill.data.sample_list import SampleList
from distill.data.source import ImageSource, label_indices
from distill.hierarchy.semantic import SemanticHierarchy
from distill.targets.protocol import TrainingTargets
from distill.trainers.evaluation.evaluate import validation_on
from distill.trainers.evaluation.meters import SemanticMeter
from distill.trainers.models.meaning import LogitsMeaning, is_taught
from distill.trainers.process_group import Machine
from distill.trainers.recipe import Recipe
from distill.trainers.training.loop import DEFAULT_KEEPING, RunKeeping, TrainReport, train
from distill.trainers.training.matching import match_targets, require_hierarchy
from distill.trainers.training.objectives import objective_of


def pretrain(
    *,
    recipe: Recipe,
    source: ImageSource,
    validation: ImageSource | None,
    hierarchy: SemanticHierarchy,
    targets: TrainingTargets | None,
    samples: SampleList | None = None,
    limit: int | None = None,
    out: Path,
    machine: Machine,
    max_bad_fraction: float = 0.001,
    keeping: RunKeeping = DEFAULT_KEEPING,
    stop: Callable[[], bool] = lambda: False,
    say: Callable[[str], None] = print,
) -> TrainReport:
    """Train, or go on training, what `recipe` says; leaves student.safetensors in `out`.

    targets: None trains on labels alone. Their views, where they have some, replace the recipe's.
    samples: the cleaned list to train on; None takes all. limit: at most so many images. Epoch e
    draws view e, or the view that the targets say.

    Raises:
        StoreMismatchError: the targets are of another data set, hierarchy or set of views.
        ConfigError: `out` holds another run, or a loss is no number.
        DataError: too many images cannot be read.
    """
    require_hierarchy(targets, hierarchy)
    inputs = match_targets(
        recipe=recipe,
        source=source,
        labels=label_indices(source, hierarchy),
        hierarchy=hierarchy,
        targets=targets,
        samples=samples,
        limit=limit,
        max_bad_fraction=max_bad_fraction,
        say=say,
    )
    validate = None
    if validation:
        labels = label_indices(validation, hierarchy)
        reading = LogitsMeaning(recipe.scheme, taught=is_taught(targets, recipe.kd_weight))
        validate = validation_on(
            validation, lambda: SemanticMeter(labels, hierarchy, reading, machine.device), machine
        )
    return train(
        recipe=inputs.recipe,
        objective=objective_of(inputs.recipe, hierarchy, inputs.labels),
        images=inputs.images,
        validate=validate,
        identity=inputs.identity,
        out=out,
        machine=machine,
        keeping=keeping,
        stop=stop,
        say=say,
    )
