"""Labels that several models propose for images, as questions for raters.

After "Are we done with ImageNet?" (Beyer et al. 2020, arXiv 2006.07159), section 3.1 and appendix
A: proposals are pooled from models of different kinds; an image of which all say what its tag says
is not rated. Proposed are an image's tag, each model's first answer, and those of its answers that
are among the most confident of the whole data set, by logit or by probability.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PER_QUESTION = 8  # labels that a rater is asked about at a time


@dataclass(frozen=True, eq=False)
class Proposals:
    """by_row: class → the models that propose it, for each image to be rated.

    agreed: class of each image of which all models say what its tag says.
    """

    by_row: Mapping[int, Mapping[int, Sequence[str]]]
    agreed: Mapping[int, int]


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelPredictions:
    """The most probable classes of one model for each image.

    classes, scores, probs: [n, k], best first. seen: [n] images that could be read.
    """

    model: str
    classes: NDArray[np.int64]
    scores: NDArray[np.float32]
    probs: NDArray[np.float32]
    seen: NDArray[np.bool_]

    def confident(self, count: int) -> list[tuple[int, int]]:
        """(row, class): each image's first, and the `count` highest by score and by probability."""
        chosen = np.zeros(self.classes.shape, np.bool_)
        chosen[:, 0] = True
        seen = self.seen[:, None]
        for values in (self.scores, self.probs):
            order = np.argsort(np.where(seen, -values, np.inf), axis=None, kind="stable")
            chosen.reshape(-1)[order[:count]] = True
        return [(int(row), int(self.classes[row, i])) for row, i in np.argwhere(chosen & seen)]


def propose(
    models: Sequence[ModelPredictions], labels: NDArray[np.int64], *, per_image: float
) -> Proposals:
    """Pool what the models predict.

    labels: [n] class of each tag, -1 for none. per_image: how many of a model's most confident
    predictions count, by logit and by probability, on average over images.
    """
    proposed: dict[int, dict[int, list[str]]] = {row: {} for row in range(len(labels))}
    for model in models:
        for row, c in model.confident(int(per_image * len(labels))):
            proposed[row].setdefault(c, []).append(model.model)
    top = np.stack([np.where(each.seen, each.classes[:, 0], -2) for each in models], 1)
    agree = (top == labels[:, None]).all(1)
    for tagged in np.flatnonzero(~agree & (labels >= 0)):
        proposed[int(tagged)].setdefault(int(labels[tagged]), [])
    return Proposals(
        by_row={row: each for row, each in proposed.items() if each and not agree[row]},
        agreed={int(row): int(labels[row]) for row in np.flatnonzero(agree)},
    )


def in_questions(classes: Sequence[int]) -> list[list[int]]:
    """At most eight at a time; neighbours in the label set, which look alike, stay together."""
    ordered = sorted(classes)
    parts = -(-len(ordered) // PER_QUESTION)
    return [part.tolist() for part in np.array_split(np.array(ordered, np.int64), parts)]
