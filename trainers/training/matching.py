"""Check that data, labels, hierarchy and views match the targets; make a training set."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.data.order import SampleOrder
from distill.data.sample_ids import samples_digest
from distill.data.sample_list import SampleList
from distill.data.source import ImageSource
from distill.errors import ConfigError, DataError, StoreMismatchError
from distill.hierarchy.semantic import SemanticHierarchy
from distill.store.format.audit import fidelity_warning
from distill.targets.encoding import RAW_SCHEMES
from distill.targets.protocol import TrainingTargets
from distill.trainers.recipe import Recipe, Scheme
from distill.trainers.sources.replay import check_replay
from distill.trainers.training.batches import TrainingSet


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingInputs:
    """recipe: with the views of the targets. labels: [n], with those of the list.

    identity: what a run that goes on must find again.
    """

    recipe: Recipe
    images: TrainingSet
    labels: NDArray[np.int64]
    identity: dict[str, Any]


def match_targets(
    *,
    recipe: Recipe,
    source: ImageSource,
    labels: NDArray[np.int64],
    hierarchy: SemanticHierarchy,
    targets: TrainingTargets | None,
    samples: SampleList | None,
    limit: int | None,
    max_bad_fraction: float,
    say: Callable[[str], None],
) -> TrainingInputs:
    """All of `source`, or what is on the list, to be trained on with those targets.

    limit: at most so many images, those with the smallest ids; the targets may be of more.

    Raises:
        StoreMismatchError: the targets are of other images or labels, or this machine draws other
        views.
        ConfigError: the scheme cannot learn from them.
        DataError: the list does not fit the data, or nothing says what the images are.
    """
    if limit is not None:
        known = max(limit, targets.rows if targets else 0)
        source, labels = source.limited(known), labels[:known]
    if targets:
        require_learnable(targets, recipe.scheme)
        check_targets(targets, source, labels, say)
        if targets.policy:
            recipe = replace(recipe, views=targets.policy)
        if recipe.kd_weight and (line := fidelity_warning(targets.fidelity, recipe.divergence)):
            say(f"{targets.location}: {line}")
    if recipe.views.frames:
        source.require_frames(recipe.views.frames)
    recipe = replace(recipe, views=replace(recipe.views, frames=source.frames))
    kept = np.ones(len(source), np.bool_)
    if samples:
        rows, labels = samples.applied(source, labels, hierarchy)
        kept = np.zeros(len(source), np.bool_)
        kept[rows] = True
        say(f"{len(rows)} of {len(source)} images are on the list")
    if limit is not None:
        kept[limit:] = False
    if not targets and not (labels[kept] >= 0).any():
        raise DataError(
            f"{source.location}: no image has a label of {hierarchy.name}, and there are no "
            "--targets; expected something to learn: pass the --label-set of the data, or targets"
        )
    order = (
        targets.sample_order(len(source), recipe.seed)
        if targets
        else SampleOrder(len(source), recipe.seed)
    )
    return TrainingInputs(
        recipe=recipe,
        images=TrainingSet(
            source=source,
            kept=kept,
            order=order,
            policy=recipe.views,
            targets=targets,
            max_bad_fraction=max_bad_fraction,
        ),
        labels=labels,
        identity={
            "hierarchy_digest": hierarchy.digest,
            "dataset_digest": samples_digest(source.ids[kept], labels[kept]),
            "targets": targets.identity if targets else None,
        },
    )


def require_hierarchy(targets: TrainingTargets | None, hierarchy: SemanticHierarchy) -> None:
    """That the targets are of those classes.

    Raises:
        StoreMismatchError: they are not.
    """
    if targets and targets.hierarchy.digest != hierarchy.digest:
        raise StoreMismatchError(
            f"{targets.location}: hierarchy {targets.hierarchy.digest[:12]} found, this run "
            f"expects {hierarchy.digest[:12]}; use targets of these classes, or pretrain on theirs "
            "by leaving --label-set out"
        )


def require_learnable(targets: TrainingTargets, scheme: Scheme) -> None:
    """That a student of that scheme can learn from them.

    Raises:
        ConfigError: it cannot.
    """
    expected = RAW_SCHEMES.get(targets.answers, scheme)
    if expected != scheme:
        raise ConfigError(
            f"scheme {scheme} found with {targets.location}, whose answers are those of a "
            f"{expected} teacher as they are, expected {expected}; or targets of softmaxes by "
            f"hierarchy, as `--head {expected}` makes them"
        )


def check_targets(
    targets: TrainingTargets,
    source: ImageSource,
    labels: NDArray[np.int64],
    say: Callable[[str], None],
) -> None:
    """That the targets are of these images and labels [n], and that this machine draws their views.

    Raises:
        StoreMismatchError: they are not, or it draws others.
    """
    if targets.policy:
        source.require_frames(targets.policy.frames)
    targets.require_dataset(source, labels)
    if not targets.policy:
        return
    proofs = targets.replay_proofs()
    if proofs:
        replayed = check_replay(proofs, source, targets.policy)
        say(f"replay proof: {replayed} views drawn again, pixel for pixel what the teacher saw")
    else:
        say(
            f"{targets.location}: holds no replay proof of these images; their views are not "
            "verified"
        )
