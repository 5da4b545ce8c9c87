"""Train a student on for another task: one class an image, or any number of tags.

The classes are those of the data, without a hierarchy. `compare` answers whether pretraining was
worth it, by training from several starting points.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from distill.charts import draw_curves
from distill.data.sample_list import SampleList
from distill.data.source import ImageSource, label_indices
from distill.errors import ConfigError, DataError
from distill.hierarchy.semantic import SemanticHierarchy
from distill.models.names import WITHOUT_FILE
from distill.targets.protocol import TrainingTargets
from distill.trainers.evaluation.evaluate import validation_on
from distill.trainers.evaluation.meters import Meter, SingleLabelMeter, tag_meter
from distill.trainers.evaluation.tags import TagFile
from distill.trainers.models.meaning import LogitsMeaning
from distill.trainers.process_group import Machine
from distill.trainers.recipe import Recipe
from distill.trainers.training.loop import DEFAULT_KEEPING, RunKeeping, TrainReport, train
from distill.trainers.training.matching import match_targets, require_hierarchy
from distill.trainers.training.objectives import TagsObjective, objective_of

RANDOM = "random"
MOST_CLASSES = 100_000


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelledImages:
    """tags: [n, classes] of images with any number of tags; None where each has one class."""

    source: ImageSource
    tags: NDArray[np.int8] | None = None

    @classmethod
    def of(
        cls, source: ImageSource, tags: TagFile | None, classes: SemanticHierarchy
    ) -> "LabelledImages":
        """With what a file of tags says of them, where there is one."""
        return cls(source=source, tags=tags.present(source, classes.synsets) if tags else None)


@dataclass(frozen=True, kw_only=True)
class Crossing:
    """Where the curve of random weights reaches the one of pretrained weights.

    leads: from the first epoch on; it was never below.
    """

    epoch: float
    accuracy: float
    leads: bool = False


def classes_of(source: ImageSource) -> SemanticHierarchy:
    """The classes that occur, as a hierarchy of one level.

    Raises:
        DataError: an image has no label, or names and numbers are mixed.
    """
    labels = set(source.samples.labels)
    if None in labels or not labels:
        raise DataError(
            f"{source.location}: images without a label found, expected one folder per class; for "
            "images with tags pass --tags"
        )
    if all(isinstance(label, int) for label in labels):
        most = max(int(label or 0) for label in labels)
        if most >= MOST_CLASSES:
            raise DataError(
                f"{source.location}: class {most} found, expected numbers below {MOST_CLASSES}"
            )
        names = [str(number) for number in range(1 + most)]
    elif all(isinstance(label, str) for label in labels):
        names = sorted(str(label) for label in labels)
    else:
        raise DataError(f"{source.location}: names and numbers found as labels, expected one kind")
    return SemanticHierarchy.from_chains(names, {}, name=Path(source.location).name)


def finetune(
    *,
    recipe: Recipe,
    training: LabelledImages,
    validation: LabelledImages | None,
    classes: SemanticHierarchy,
    targets: TrainingTargets | None,
    samples: SampleList | None,
    limit: int | None = None,
    out: Path,
    machine: Machine,
    max_bad_fraction: float = 0.001,
    keeping: RunKeeping = DEFAULT_KEEPING,
    stop: Callable[[], bool] = lambda: False,
    say: Callable[[str], None] = print,
) -> TrainReport:
    """Train, or go on training, what `recipe` says; leaves student.safetensors in `out`.

    Raises:
        ConfigError: the scheme does not fit the data, or `out` holds another run.
        StoreMismatchError: the targets are of other images or classes.
    """
    if training.tags is not None and samples and any(samples.wnids):
        raise ConfigError(
            f"{samples.location}: labels found for images with tags, expected keys alone; change "
            "the tags in their own file"
        )
    if training.tags is not None and recipe.scheme != "multi-label":
        raise ConfigError(
            f"scheme {recipe.scheme} found for images with tags, expected multi-label; leave "
            "--scheme out"
        )
    require_hierarchy(targets, classes)
    source = training.source
    # Images with tags need no label; a store of them knows which they have.
    labelled = training.tags is None or (targets is not None and targets.rows > 0)
    inputs = match_targets(
        recipe=recipe,
        source=source,
        labels=label_indices(source, classes) if labelled else np.zeros(len(source), np.int64),
        hierarchy=classes,
        targets=targets,
        samples=samples,
        limit=limit,
        max_bad_fraction=max_bad_fraction,
        say=say,
    )
    objective = (
        objective_of(recipe, classes, inputs.labels)
        if training.tags is None
        else TagsObjective(
            hierarchy=classes, given=training.tags[: len(inputs.images.source)], recipe=recipe
        )
    )
    validate = None
    if validation:
        new_meter = _meters(recipe, validation, classes, machine.device)
        validate = validation_on(validation.source, new_meter, machine)
    return train(
        recipe=inputs.recipe,
        objective=objective,
        images=inputs.images,
        validate=validate,
        identity={**inputs.identity, "tags_digest": _digest(training.tags)},
        out=out,
        machine=machine,
        keeping=keeping,
        stop=stop,
        say=say,
    )


def compare(
    inits: Sequence[str],
    longer: float,
    recipe: Recipe,
    out: Path,
    run: Callable[[Recipe, Path], TrainReport],
) -> dict[str, TrainReport]:
    """One run for each start, in a folder of its own; random weights get `longer` times the epochs.

    "Rethinking ImageNet pre-training" (He et al. 2018, arXiv 1811.08883): given time, they may
    catch up. Ends early where a run was stopped.
    """
    reports: dict[str, TrainReport] = {}
    absent = [i for i in inits if i not in WITHOUT_FILE and not Path(i).exists()]
    if absent:
        raise ConfigError(
            f"{absent[0]} found in --compare, but no such file; expected pretrained, random, a "
            "weight file or a run's folder"
        )
    for init, name in zip(inits, start_names(inits), strict=True):
        epochs = round(recipe.epochs * (longer if init == RANDOM else 1))
        start = replace(recipe, init=init, epochs=epochs)
        reports[name] = run(start, out / name)
        if reports[name].stopped:
            break
    return reports


def start_names(inits: Sequence[str]) -> list[str]:
    """`start_name` of each start of a comparison.

    Raises:
        ConfigError: fewer than two, or two of one name.
    """
    names = [start_name(init) for init in inits]
    if len({*names}) < max(2, len(names)):
        raise ConfigError(
            f"{', '.join(names) or 'nothing'} found in --compare, expected two or more starts of "
            "other names, such as pretrained,random"
        )
    return names


def start_name(init: str) -> str:
    """What the folder of a start is called: its own word, or a run's folder, or a file's stem.

    Raises:
        ConfigError: a run or a file has a name that means something else, or none.
    """
    if init in WITHOUT_FILE:
        return init
    path = Path(init).resolve()
    name = path.name if path.is_dir() else path.stem
    if name in ("", *WITHOUT_FILE):
        raise ConfigError(
            f"{init} found in --compare, whose name is {name!r}, expected one of its own; rename it"
        )
    return name


def crossing(
    first: Sequence[tuple[float, float]], other: Sequence[tuple[float, float]]
) -> Crossing | None:
    """Where `other` (epoch, accuracy) reaches `first`; None if it does not.

    `first` stays where it ends.
    """
    x0 = [x for x, _ in first]
    y0 = [y for _, y in first]
    below: tuple[float, float, float] | None = None
    for x, y in other:
        level = float(np.interp(x, x0, y0))
        if y >= level and below:
            x1, y1, level1 = below
            share = (level1 - y1) / max((level1 - y1) + (y - level), 1e-12)
            return Crossing(epoch=x1 + share * (x - x1), accuracy=y1 + share * (y - y1))
        below = (x, y, level) if y < level else None
    if other and not below and other[-1][1] > 0:  # and it never was
        return Crossing(epoch=other[0][0], accuracy=other[0][1], leads=True)
    return None


def draw_comparison(
    path: Path,
    histories: Mapping[str, Sequence[Mapping[str, Any]]],
    figure: str,
    *,
    x: str = "epoch",
    y: str = "",
    decimals: int = 1,
) -> Crossing | None:
    """The curves, and where random weights reach the first other start.

    x: what histories count by, and is shown with so many decimals. y: what the figure is called.
    """
    curves = {
        name: [(float(r[x]), float(r["validation"][figure] or 0)) for r in history]
        for name, history in histories.items()
    }
    starts = [name for name in curves if name != RANDOM]
    met = crossing(curves[starts[0]], curves[RANDOM]) if starts and RANDOM in curves else None
    draw_curves(
        path,
        curves,
        x=x,
        y=f"{y or figure.replace('_', ' ')} on validation images",
        title="Was pretraining worth it?",
        mark=(met.epoch, met.accuracy, f"{x} {met.epoch:.{decimals}f}") if met else None,
    )
    return met


def _digest(tags: NDArray[np.int8] | None) -> str | None:
    return None if tags is None else hashlib.sha256(tags.tobytes()).hexdigest()


def _meters(
    recipe: Recipe, images: LabelledImages, classes: SemanticHierarchy, device: torch.device
) -> Callable[[], Meter]:
    """Makes a new meter."""
    source, tags = images.source, images.tags
    if tags is not None:
        return lambda: tag_meter(tags, classes, LogitsMeaning(recipe.scheme), device)
    strange = {label for label in source.samples.labels if isinstance(label, str)}
    if strange := strange - {*classes.synsets}:
        raise DataError(
            f"{source.location}: {len(strange)} classes of the validation images are not among "
            f"the {classes.num_classes} of the training images (first: {min(strange)!r}), expected "
            "the same; leave them out, or add images of them to both"
        )
    labels, everything = label_indices(source, classes), range(classes.num_classes)
    reading = LogitsMeaning(recipe.scheme)
    return lambda: SingleLabelMeter(labels, classes, reading, everything, device)
