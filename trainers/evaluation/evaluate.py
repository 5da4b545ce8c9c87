"""Evaluate a trained model: one pass over labelled images into meters.

Images are squished, as they were in training; for timm's own weights prepared as timm says.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from distill.curate.real_label_classes import classes_by_row, published_classes
from distill.curate.real_labels import Label
from distill.data.loader import in_batches, load_views
from distill.data.source import ImageSource, label_indices
from distill.data.truth import read_truth
from distill.data.view_policy import PLAIN, ViewPolicy
from distill.errors import ConfigError, DataError, NotFiniteError
from distill.hierarchy.semantic import SemanticHierarchy
from distill.models.card import ModelInput
from distill.models.frames import logits_of
from distill.trainers.evaluation.meters import (
    Meter,
    MissingTagsMeter,
    RealMeter,
    SemanticMeter,
    SingleLabelMeter,
    label_meter,
    tag_meter,
)
from distill.trainers.evaluation.tags import TagFile
from distill.trainers.models.meaning import LogitsMeaning
from distill.trainers.models.trained import TrainedModel
from distill.trainers.process_group import Machine

# Figures of a model; raises `Stopped` where the last argument says to stop.
Validate = Callable[[nn.Module, ModelInput, Callable[[], bool]], dict[str, Any]]


class Stopped(Exception):
    """Judging was given up because the command is to end."""


@torch.no_grad()
def run_evaluation(
    model: nn.Module,
    meters: Sequence[Meter],
    *,
    model_input: ModelInput,
    source: ImageSource,
    machine: Machine,
    policy: ViewPolicy = PLAIN,
    batch_size: int = 256,
    stop: Callable[[], bool] = lambda: False,
) -> int:
    """Feed the meters this process's share of the images; how many could not be read.

    Raises:
        NotFiniteError: a logit is none.
        Stopped: `stop` said so. Of several processes none asks it.
    """
    training, bad = model.training, 0
    finite = torch.ones((), dtype=torch.bool, device=machine.device)
    model.eval()
    policy = replace(policy, frames=source.frames)
    rows = range(machine.world.rank, len(source), machine.world.size)
    requests = in_batches(rows, (0,), batch_size)
    for batch in load_views(
        source,
        policy,
        [model_input.size],
        requests,
        workers=machine.workers,
        pin_memory=machine.device.type == "cuda",
    ):
        if machine.world.size == 1 and stop():
            model.train(training)
            raise Stopped
        bad += len(batch.bad)
        if batch.rows:
            pixels = batch.pixels[0][:, 0].to(machine.device, non_blocking=True)
            logits = logits_of(model, model_input.normalise(pixels)).float()
            finite &= logits.isfinite().all()
            for meter in meters:
                meter.update(logits=logits, rows=batch.rows)
    model.train(training)
    if not finite:
        raise NotFiniteError(
            "the model's logits contain NaN or Inf, expected finite numbers; check its weights, "
            "and mean and std in its card"
        )
    return bad


def validation_on(
    source: ImageSource, new_meter: Callable[[], Meter], machine: Machine
) -> Validate:
    """Judges a model on those images, with a new meter each time."""

    def validate(
        model: nn.Module, model_input: ModelInput, stop: Callable[[], bool]
    ) -> dict[str, Any]:
        meter = new_meter()
        run_evaluation(
            model, [meter], model_input=model_input, source=source, machine=machine, stop=stop
        )
        return dict(meter.result(machine.world))

    return validate


def evaluate(
    trained: TrainedModel,
    *,
    hierarchy: SemanticHierarchy,
    reading: LogitsMeaning,
    source: ImageSource,
    machine: Machine,
) -> dict[str, Any]:
    """All figures that the labels of `source` allow.

    Semantic top-1, in total by images and by classes; top-1 and top-5 among the most specific
    classes that occur as labels, and among all classes; mean average precision over labels and
    their ancestors.

    Raises:
        DataError: no image has a label.
    """
    _require_classes(trained, hierarchy.num_classes)
    labels = label_indices(source, hierarchy)
    if not (labels >= 0).any():
        raise DataError(
            f"{source.location}: no image has a label of {hierarchy.name}, expected labels to judge"
            " by; pass the --label-set of the data"
        )
    device = machine.device
    meters: list[Meter] = [
        SemanticMeter(labels, hierarchy, reading, device),
        SingleLabelMeter(labels, hierarchy, reading, most_specific(labels, hierarchy), device),
        SingleLabelMeter(
            labels, hierarchy, reading, range(hierarchy.num_classes), device, among="all"
        ),
        label_meter(labels, hierarchy, reading, device),
    ]
    figures = _judged(trained, meters, source, machine)
    shares = figures["semantic_top1_per_hierarchy"]
    return figures | {
        "semantic_top1_by_classes": total_by_classes(shares, hierarchy.classes_per_hierarchy),
        "classes": hierarchy.num_classes,
        "most_specific_classes": len(most_specific(labels, hierarchy)),
    }


def total_by_classes(shares: Sequence[float | None], sizes: Sequence[int]) -> float | None:
    """The mean over the hierarchies that were judged, weighted by how many classes each has.

    The paper's text weighs so (appendix C), the authors' code by images, as `semantic_top1` does.
    """
    judged = [(a, size) for a, size in zip(shares, sizes, strict=True) if a is not None]
    classes = sum(size for _, size in judged)
    return sum(a * size for a, size in judged) / classes if classes else None


def exclusive_classes(labels: NDArray[np.int64], hierarchy: SemanticHierarchy) -> list[int]:
    """Those among which one answer is looked for where any may be right: all of one level.

    Of a hierarchy its leaves, and the most specific classes that occur as labels: what has others
    below it is never less probable than they are.
    """
    leaves = np.flatnonzero(~hierarchy.inner).tolist()
    return sorted({*leaves, *most_specific(labels, hierarchy)})


def most_specific(labels: NDArray[np.int64], hierarchy: SemanticHierarchy) -> list[int]:
    """The classes that occur and are no ancestors of others that do: a single answer is one."""
    occurring = set(labels[labels >= 0].tolist())
    ancestors = {
        hierarchy.index(ancestor)
        for c in occurring
        for ancestor in hierarchy.ancestors(hierarchy.synsets[c])
    }
    return sorted(occurring - ancestors)


def evaluate_tags(
    trained: TrainedModel,
    *,
    tags: TagFile,
    source: ImageSource,
    machine: Machine,
) -> dict[str, Any]:
    """Mean average precision of a model of tags."""
    classes = trained.hierarchy
    if classes is None:
        raise ConfigError(
            f"{trained.name}: nothing says which tags its logits are of, expected a hierarchy.json "
            "beside it, as `distill finetune --tags` leaves one"
        )
    present = tags.present(source, classes.synsets)
    reading = LogitsMeaning(trained.scheme or "multi-label")
    meter = tag_meter(present, classes, reading, machine.device)
    return _judged(trained, [meter], source, machine)


def evaluate_recovery(
    trained: TrainedModel,
    *,
    hierarchy: SemanticHierarchy,
    reading: LogitsMeaning,
    source: ImageSource,
    truth: Path,
    machine: Machine,
) -> dict[str, Any]:
    """How many of the tags that are missing in `source` the model supplies."""
    _require_classes(trained, hierarchy.num_classes)
    meter = MissingTagsMeter(
        tagged=label_indices(source, hierarchy),
        true=read_truth(truth, source, hierarchy),
        hierarchy=hierarchy,
        reading=reading,
        device=machine.device,
    )
    return _judged(trained, [meter], source, machine)


def evaluate_real(
    trained: TrainedModel,
    *,
    labels: Mapping[str, Sequence[Label]] | None,
    hierarchy: SemanticHierarchy | None,
    reading: LogitsMeaning,
    source: ImageSource,
    machine: Machine,
) -> dict[str, Any]:
    """Accuracy by reassessed labels; by the published ones of ImageNet-1K without `labels`.

    Raises:
        DataError: the images are not those that the labels are of.
    """
    if labels is None:
        _require_classes(trained, 1000)
        allowed = published_classes(source)
    else:
        allowed = classes_by_row(labels, source, hierarchy, trained.num_classes)
    answerable = None
    if hierarchy:
        right = np.array([c for classes in allowed for c in classes], np.int64)
        answerable = exclusive_classes(right, hierarchy)
    meter = RealMeter(allowed, answerable, hierarchy, reading, machine.device)
    return _judged(trained, [meter], source, machine)


def _judged(
    trained: TrainedModel, meters: Sequence[Meter], source: ImageSource, machine: Machine
) -> dict[str, Any]:
    model = trained.model.to(machine.device)
    bad = run_evaluation(
        model,
        meters,
        model_input=trained.input,
        source=source,
        machine=machine,
        policy=trained.policy,
    )
    if bad == len(source):
        raise DataError(
            f"{source.location}: none of {bad} images can be read, expected images; repair the data"
        )
    figures: dict[str, Any] = {"images": len(source) - bad, "unreadable": bad}
    for meter in meters:
        figures |= meter.result(machine.world)
    return figures


def _require_classes(trained: TrainedModel, expected: int) -> None:
    if trained.num_classes != expected:
        raise ConfigError(
            f"{trained.name}: {trained.num_classes} classes found, expected {expected}; pass the "
            "--label-set that the model was trained on"
        )
