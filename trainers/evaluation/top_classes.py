"""The most probable classes of a trained model for every image of a data set."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from distill.curate.proposals import ModelPredictions
from distill.curate.real_label_classes import IMAGENET_1K
from distill.data.source import ImageSource
from distill.errors import ConfigError
from distill.hierarchy.hypernyms import flat_label_set
from distill.hierarchy.semantic import SemanticHierarchy, resolve
from distill.trainers.evaluation.evaluate import exclusive_classes, run_evaluation
from distill.trainers.models.meaning import LogitsMeaning
from distill.trainers.models.trained import TrainedModel
from distill.trainers.process_group import Machine, World
from distill.trainers.recipe import Scheme

KEPT = 16  # classes for each image


def predict_top_classes(
    trained: TrainedModel,
    *,
    source: ImageSource,
    labels: NDArray[np.int64],
    hierarchy: SemanticHierarchy,
    machine: Machine,
    scheme: Scheme | None = None,
) -> ModelPredictions:
    """Predict the most probable leaves, or most specific classes that occur as tags, per image.

    labels: [n] class of each tag, -1 for none. scheme: how logits are read; as the model was
    trained by default.

    Raises:
        ConfigError: the model has other classes.
    """
    if trained.num_classes != hierarchy.num_classes:
        raise ConfigError(
            f"{trained.name}: {trained.num_classes} classes found, expected those of "
            f"{hierarchy.name} ({hierarchy.num_classes}); pass models of one --label-set"
        )
    candidates = np.array(exclusive_classes(labels, hierarchy), np.int64)
    reading = LogitsMeaning(scheme or trained.scheme or "single-label", trained.taught)
    top = _TopClasses(len(source), candidates, hierarchy, reading)
    model = trained.model.to(machine.device)
    run_evaluation(model, [top], model_input=trained.input, source=source, machine=machine)
    return ModelPredictions(
        model=trained.name,
        classes=top.classes,
        scores=top.scores,
        probs=top.probs,
        seen=top.seen,
    )


def label_set_of(
    named: str | None, trained_on: SemanticHierarchy | None, num_classes: int
) -> SemanticHierarchy:
    """The label set that is named, or the model's; 1,000 classes without names are ImageNet-1K's.

    Raises:
        ConfigError: nothing says which classes the model has.
    """
    if named:
        return resolve(named)
    if trained_on:
        return trained_on
    if num_classes == IMAGENET_1K:
        return SemanticHierarchy.from_chains(flat_label_set("imagenet-1k"), {}, name="imagenet-1k")
    raise ConfigError(
        f"{num_classes} classes found and nothing that names them, expected a hierarchy.json "
        "beside the model; pass --label-set"
    )


class _TopClasses:
    """A meter that keeps the most probable classes of each image.

    classes, scores, probs: [n, KEPT], best first. seen: [n] images that could be read.
    """

    def __init__(
        self,
        rows: int,
        candidates: NDArray[np.int64],
        hierarchy: SemanticHierarchy,
        reading: LogitsMeaning,
    ) -> None:
        kept = min(KEPT, len(candidates))
        self.candidates = torch.from_numpy(candidates)
        self.hierarchy, self.reading = hierarchy, reading
        self.classes = np.zeros((rows, kept), np.int64)
        self.scores = np.zeros((rows, kept), np.float32)
        self.probs = np.zeros((rows, kept), np.float32)
        self.seen = np.zeros(rows, np.bool_)

    def update(self, *, logits: Float[Tensor, "batch classes"], rows: list[int]) -> None:
        """See `Meter`."""
        chosen = self.candidates.to(logits.device)
        scores = self.reading.scores(logits, self.hierarchy).float()[:, chosen]
        best, places = scores.topk(self.classes.shape[1], dim=1)
        self.classes[rows] = chosen[places].cpu().numpy()
        self.scores[rows] = best.cpu().numpy()
        self.probs[rows] = torch.exp(best - scores.logsumexp(1, keepdim=True)).cpu().numpy()
        self.seen[rows] = True

    def result(self, world: World) -> dict[str, Any]:
        """None."""
        return {}
