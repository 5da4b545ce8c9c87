"""How strongly the teacher pulls at a student's logits, beside the labels: automatic KD weights.

The gradient of a squared error shrinks with the number of classes, that of a cross-entropy does
not, so one weight teaches much at 29 classes and next to nothing at 11,221. An automatic weight is
the one at which a student that knows nothing yet is pulled by its teacher `PULL` times as hard as
by its labels, measured on the first images of a data set, which are the same for every run.
"""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distill.data.loader import in_batches, load_views
from distill.data.source import ImageSource
from distill.data.view_policy import ViewPolicy
from distill.targets.protocol import TrainingTargets
from distill.targets.tensors import TeacherTargets
from distill.trainers.training.objectives import Objective

PULL = 3.0  # found by benchmarks/kd_weight.py
IMAGES, AT_ONCE = 512, 64


def automatic_weight(
    objective: Objective,
    targets: TrainingTargets,
    source: ImageSource,
    rows: NDArray[np.int64],
    policy: ViewPolicy,
) -> float:
    """The KD weight for images of which the first of `rows` are looked at.

    Images without labels are pulled by nothing else: as hard then as by a label of one softmax.
    """
    squares = np.zeros(2)
    for some, answers in _answered(targets, source, rows[:IMAGES], policy):
        pulls = fresh_pulls(objective, objective.labels(some), answers.to("cpu"))
        squares += len(some) * np.square(pulls)
    by_labels, by_teacher = np.sqrt(squares / max(1, len(rows[:IMAGES])))
    return float(PULL * (by_labels or 1.0) / by_teacher) if by_teacher else 0.0


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
        pixels = [each[:, 0] for each in seen.pixels]
        yield seen.rows, targets.fetch(source.ids[seen.rows], view, pixels)


def fresh_pulls(
    objective: Objective, labels: Tensor, targets: TeacherTargets
) -> tuple[float, float]:
    """Norms of the gradients at logits of 0, by image: of the loss on labels, of that on targets.

    Root mean squares over the images of a batch.
    """
    classes = objective.hierarchy.num_classes
    logits = torch.zeros(len(labels), classes, device=labels.device, requires_grad=True)
    losses = (
        objective.loss(logits=logits, labels=labels),
        objective.distance(logits=logits, targets=targets, labels=labels),
    )
    by_labels, by_teacher = (
        float(torch.autograd.grad(len(labels) * loss, logits)[0].norm(dim=1).square().mean().sqrt())
        for loss in losses
    )
    return by_labels, by_teacher
