"""Mixup and CutMix: images of a batch mixed in pairs, taught by the labels and answers of both.

Each image is mixed with the one that stands opposite in its batch, as timm's Mixup does, and its
loss is the mixture of both losses. Where both weigh alike, its gradient is that of the mixed
target, exactly, for squared error as for KL, sparse or dense, and nothing is looked up that the
batch does not have anyway. A teacher that saw the mixed image might say something else
(docs/training.md).
"""

from collections.abc import Callable
from itertools import count
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Beta

from distill.targets.tensors import TeacherTargets
from distill.trainers.training.objectives import Objective

Images = Float[Tensor, "batch channels height width"]
Losses = tuple[Float[Tensor, ""], Float[Tensor, ""]]


def mixed(images: Images, *, mixup: float, cutmix: float) -> tuple[Images, float]:
    """The images, and the share of each that is its own.

    mixup: α of Zhang et al. 2018 (arXiv 1710.09412); cutmix: of Yun et al. 2019 (1905.04899); 0 is
    never, and with both each batch takes one of them. Draws from torch's generator.
    """
    if not (mixup or cutmix) or len(images) < 2:
        return images, 1.0
    cutting = bool(cutmix) and (not mixup or bool(torch.rand(()) < 0.5))
    alpha = cutmix if cutting else mixup
    share = float(Beta(alpha, alpha).sample())
    return (cut if cutting else mix)(images, share)


def mix(images: Images, share: float) -> tuple[Images, float]:
    """Each image, so much of it its own, over the one that stands opposite; and that share."""
    return images.flip(0).lerp(images, share), share


def cut(images: Images, share: float) -> tuple[Images, float]:
    """Each image with a box of the one that stands opposite; and the share of the rest.

    share: aimed at; a box that reaches beyond the border is cut off there.
    """
    height, width = images.shape[-2:]
    side = (1 - share) ** 0.5
    (top, bottom), (left, right) = (_span(length, side) for length in (height, width))
    made = images.clone()
    made[..., top:bottom, left:right] = images.flip(0)[..., top:bottom, left:right]
    return made, 1 - (bottom - top) * (right - left) / (height * width)


def mixed_losses(
    objective: Objective,
    logits: Float[Tensor, "batch classes"],
    labels: Tensor,
    answers: TeacherTargets | None,
    own: float,
) -> Losses:
    """On labels and on answers, 0 without them. own: the share of each image that is its own."""
    parts = [(own, labels, answers)]
    if own < 1:
        parts.append((1 - own, labels.flip(0), answers.flipped() if answers else None))
    loss = kd = logits.new_zeros((), dtype=torch.float32)
    for share, some_labels, some_answers in parts:
        loss = loss + share * objective.loss(logits=logits, labels=some_labels)
        if some_answers:
            kd = kd + share * objective.distance(
                logits=logits, targets=some_answers, labels=some_labels
            )
    return loss, kd


def compiled_losses(backend: Any = "inductor") -> Callable[..., Losses]:
    """`mixed_losses` in few kernels instead of five hundred, for batches of all sizes.

    Compiled from its second call on: the first computes what a hierarchy keeps, under locks that
    cannot be compiled.
    """
    compiled = torch.compile(mixed_losses, dynamic=True, backend=backend)
    calls = count()

    def losses(*given: Any) -> Losses:
        return (compiled if next(calls) else mixed_losses)(*given)

    return losses


def _span(length: int, share: float) -> tuple[int, int]:
    """A part of a side, around any of its points, cut off at the ends."""
    half, centre = int(length * share) // 2, int(torch.randint(length, ()))
    return max(0, centre - half), min(length, centre + half)
