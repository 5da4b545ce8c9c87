"""How strongly the teacher pulls at a student's logits, beside the labels: automatic KD weights.

The gradient of a squared error shrinks with the number of classes, that of a cross-entropy does
not, so one weight teaches much at 29 classes and next to nothing at 11,221. An automatic weight is
the one at which a student that knows nothing yet is pulled by its teacher `PULL` times as hard as
by its labels, measured on the first images of a data set, which are the same for every run.
"""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from distill.data.loader import in_batches, load_views
from distill.data.source import ImageSource
from distill.data.view_policy import ViewPolicy
from distill.errors import DataError
from distill.losses.names import Divergence
from distill.targets.protocol import TrainingTargets
from distill.targets.tensors import TeacherTargets
from distill.trainers.training.objectives import Objective

# Found by benchmarks/kd_weight.py and, for DIST, by benchmarks/kd_gain.py: its gradient falls with
# the spread of the logits, and 30 times at none is 3.5 times at a standard deviation of 1.
PULL: dict[Divergence, float] = {"kl": 3.0, "mse": 3.0, "dist": 30.0}
IMAGES, AT_ONCE = 128, 64


def automatic_weight(
    objective: Objective,
    divergence: Divergence,
    targets: TrainingTargets,
    source: ImageSource,
    rows: NDArray[np.int64],
    policy: ViewPolicy,
) -> float:
    """The KD weight for images of which the first of `rows` are looked at.

    Images without labels, as without answers, tell nothing of the one or the other; where no image
    has a label, the teacher pulls as if labels pulled by 1.

    Raises:
        DataError: none of these images has an answer.
    """
    found = [
        fresh_pulls(objective, objective.labels(some), answers.to("cpu"))
        for some, answers in _answered(targets, source, rows[:IMAGES], policy)
    ]
    if not found:
        return 0.0
    of_labels, of_teacher = zip(*found, strict=True)
    weight = weight_of(torch.cat(of_labels), torch.cat(of_teacher))
    if not weight:
        raise DataError(
            f"{targets.location}: none of {len(rows[:IMAGES])} images has an answer, expected some "
            "to measure the teacher's weight by; pass --kd-weight, or repair the store"
        )
    return PULL[divergence] * weight


def weight_of(by_labels: Float[Tensor, " images"], by_teacher: Float[Tensor, " images"]) -> float:
    """At which both pull alike, by pulls by image, 0 where nothing is to be had; 0 without any."""
    of_teacher = _root_mean_square(by_teacher)
    return (_root_mean_square(by_labels) or 1.0) / of_teacher if of_teacher else 0.0


def _root_mean_square(pulls: Tensor) -> float:
    """Over the images that are pulled at all."""
    pulled = pulls[pulls > 0].double()
    return float(pulled.square().mean().sqrt()) if len(pulled) else 0.0


def _answered(
    targets: TrainingTargets, source: ImageSource, rows: NDArray[np.int64], policy: ViewPolicy
) -> Iterator[tuple[list[int], TeacherTargets]]:
    """Answers for the first epoch's view of those rows, some at a time."""
    view, requests = targets.view(0), in_batches(rows, (targets.drawn_view(0),), AT_ONCE)
    if not targets.sizes:
        for batch in requests:
            some = [request.row for request in batch]
            yield some, targets.fetch(source.ids[some], view)
        return
    for seen in load_views(source, policy, targets.sizes, requests, workers=0):
        if seen.rows:
            pixels = [each[:, 0] for each in seen.pixels]
            yield seen.rows, targets.fetch(source.ids[seen.rows], view, pixels)


def fresh_pulls(
    objective: Objective, labels: Tensor, targets: TeacherTargets
) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
    """Norms of a fresh student's gradients, by image: of the labels' loss, of the teacher's."""
    classes = objective.hierarchy.num_classes
    logits = torch.zeros(len(labels), classes, device=labels.device, requires_grad=True)
    losses = (
        objective.loss(logits=logits, labels=labels),
        objective.distance(logits=logits, targets=targets, labels=labels),
    )
    by_labels, by_teacher = (
        torch.autograd.grad(len(labels) * loss, logits)[0].norm(dim=1) for loss in losses
    )
    return by_labels, by_teacher
