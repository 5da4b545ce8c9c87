"""Labels that several models propose for images, as questions for raters.

After "Are we done with ImageNet?" (Beyer et al. 2020, arXiv 2006.07159), section 3.1 and appendix
A: proposals are pooled from models of different kinds; an image of which all say what its tag says
is not rated. Proposed are an image's tag, each model's first answer, and those of its answers that
are among the most confident of the whole data set, by logit or by probability.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from distill.data import ImageSource
from distill.errors import ConfigError
from distill.hierarchy import SemanticHierarchy
from trainers.evaluate import exclusive_classes, judge
from trainers.meters import Reading, class_scores
from trainers.recipe import Scheme
from trainers.trained import TrainedModel
from trainers.world import Machine, World

KEPT = 16  # answers of a model for each image
PER_QUESTION = 8  # labels that a rater is asked about at a time


@dataclass(frozen=True, eq=False)
class Proposals:
    """by_row: class → the models that propose it, for each image to be rated.

    agreed: class of each image of which all models say what its tag says.
    """

    by_row: Mapping[int, Mapping[int, Sequence[str]]]
    agreed: Mapping[int, int]


def propose(
    models: Sequence[TrainedModel],
    *,
    source: ImageSource,
    labels: NDArray[np.int64],
    hierarchy: SemanticHierarchy,
    per_image: float,
    machine: Machine,
    scheme: Scheme | None = None,
) -> Proposals:
    """Ask every model about every image.

    Of a hierarchy the answers are leaves, or the most specific classes that occur as tags.

    labels: [n] class of each tag, -1 for none. scheme: how logits are to be read; as the models
    were trained by default. per_image: how many of a model's most confident
    answers count, by logit and by probability, on average over images.

    Raises:
        ConfigError: a model has other classes.
    """
    answerable = np.array(exclusive_classes(labels, hierarchy), np.int64)
    found: dict[int, dict[int, list[str]]] = {row: {} for row in range(len(source))}
    first: list[NDArray[np.int64]] = []
    for trained in models:
        if trained.num_classes != hierarchy.num_classes:
            raise ConfigError(
                f"{trained.name}: {trained.num_classes} classes found, expected those of "
                f"{hierarchy.name} ({hierarchy.num_classes}); pass models of one --label-set"
            )
        reading = Reading(scheme or trained.scheme or "single-label", trained.taught)
        answers = _Highest(len(source), answerable, hierarchy, reading)
        model = trained.model.to(machine.device)
        judge(model, [answers], model_input=trained.input, source=source, machine=machine)
        first.append(np.where(answers.seen, answers.classes[:, 0], -2))
        for row, c in answers.confident(int(per_image * len(source))):
            found[row].setdefault(c, []).append(trained.name)
    firsts = np.stack(first, 1)
    agree = (firsts == labels[:, None]).all(1)
    for tagged in np.flatnonzero(~agree & (labels >= 0)):
        found[int(tagged)].setdefault(int(labels[tagged]), [])
    return Proposals(
        by_row={row: each for row, each in found.items() if each and not agree[row]},
        agreed={int(row): int(labels[row]) for row in np.flatnonzero(agree)},
    )


class _Highest:
    """A meter that keeps the highest answers for each image.

    classes, scores, probs: [n, KEPT], best first. seen: [n] images that could be read.
    """

    def __init__(
        self,
        rows: int,
        answerable: NDArray[np.int64],
        hierarchy: SemanticHierarchy,
        reading: Reading,
    ) -> None:
        kept = min(KEPT, len(answerable))
        self.answerable = torch.from_numpy(answerable)
        self.hierarchy, self.reading = hierarchy, reading
        self.classes = np.zeros((rows, kept), np.int64)
        self.scores = np.zeros((rows, kept), np.float32)
        self.probs = np.zeros((rows, kept), np.float32)
        self.seen = np.zeros(rows, np.bool_)

    def update(self, *, logits: Float[Tensor, "batch classes"], rows: list[int]) -> None:
        """See `Meter`."""
        chosen = self.answerable.to(logits.device)
        scores = class_scores(logits, self.hierarchy, self.reading).float()[:, chosen]
        best, places = scores.topk(self.classes.shape[1], dim=1)
        self.classes[rows] = chosen[places].cpu().numpy()
        self.scores[rows] = best.cpu().numpy()
        self.probs[rows] = torch.exp(best - scores.logsumexp(1, keepdim=True)).cpu().numpy()
        self.seen[rows] = True

    def result(self, world: World) -> dict[str, Any]:
        """None."""
        return {}

    def confident(self, count: int) -> list[tuple[int, int]]:
        """(row, class): each image's first, and the `count` highest by score and by probability."""
        chosen = np.zeros(self.classes.shape, np.bool_)
        chosen[:, 0] = True
        seen = self.seen[:, None]
        for values in (self.scores, self.probs):
            order = np.argsort(np.where(seen, -values, np.inf), axis=None, kind="stable")
            chosen.reshape(-1)[order[:count]] = True
        return [(int(row), int(self.classes[row, i])) for row, i in np.argwhere(chosen & seen)]


def in_questions(classes: Sequence[int]) -> list[list[int]]:
    """At most eight at a time; neighbours in the label set, which look alike, stay together."""
    ordered = sorted(classes)
    parts = -(-len(ordered) // PER_QUESTION)
    return [part.tolist() for part in np.array_split(np.array(ordered, np.int64), parts)]
