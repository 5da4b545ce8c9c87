"""A trained model: the folder of a run, a weight file with its card, or a name on timm's hub."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast, get_args

import torch
from timm.models import get_pretrained_cfg
from torch import nn

from distill.data.view_policy import PLAIN, CentreCrop, ViewPolicy
from distill.errors import ConfigError, first_line
from distill.hierarchy.flat_heads import FlatHead
from distill.hierarchy.model_classes import hierarchy_beside, label_set_of_timm
from distill.hierarchy.semantic import SemanticHierarchy, resolve
from distill.models.card import ModelCard, ModelInput
from distill.models.creation import create_model, default_input, download_model
from distill.models.names import require_known_model
from distill.models.weights import find_weights, load_weights, read_weights
from distill.trainers.recipe import Scheme

TIMM = "timm:"
RESAMPLING = ("nearest", "bilinear", "bicubic", "lanczos")


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainedModel:
    """architecture: timm's name. hierarchy: of its classes, None where nothing says it.

    scheme: how its logits are to be read. run: what run.json says, empty where there is none.
    """

    name: str
    architecture: str
    model: nn.Module
    input: ModelInput
    num_classes: int
    hierarchy: SemanticHierarchy | None
    scheme: Scheme | None
    run: dict[str, Any]
    notes: tuple[str, ...] = ()  # what was done with the weight file
    taught: bool = False  # learned from a teacher's answers
    policy: ViewPolicy = PLAIN  # timm's own weights say themselves how
    arguments: Mapping[str, Any] = field(default_factory=dict)  # of timm's create_model

    def with_hierarchy(self, hierarchy: SemanticHierarchy) -> "TrainedModel":
        """The same model, its classes named; a flat model of other classes answers for these.

        Raises:
            ConfigError: the hierarchy has another number of classes, and the model's are unknown.
            TeacherError: the model's classes have nothing to do with the hierarchy.
        """
        own = self.hierarchy
        if own and own.digest != hierarchy.digest and self.scheme in (None, "single-label"):
            head = FlatHead.of(own.synsets, hierarchy, torch.device("cpu"))
            return replace(
                self,
                model=_Mapped(self.model, head),
                num_classes=hierarchy.num_classes,
                hierarchy=hierarchy,
                scheme="semantic",
                notes=(*self.notes, f"{head} mapped to {hierarchy.name}"),
            )
        if hierarchy.num_classes != self.num_classes:
            raise ConfigError(
                f"{self.name}: {self.num_classes} classes found, label set {hierarchy.name} has "
                f"{hierarchy.num_classes}; pass the --label-set that it was trained on"
            )
        return replace(self, hierarchy=hierarchy)


class _Mapped(nn.Module):
    """A flat model as a semantic one: logits are log-probabilities by class of the hierarchy."""

    def __init__(self, model: nn.Module, head: FlatHead) -> None:
        super().__init__()
        self.model, self.head = model, head

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = self.model(images)
        head = self.head.to(logits.device)
        probs, _ = head.probs_and_reach(logits)
        order = head.hierarchy.tensors(logits.device).class_order
        tiny = torch.finfo(torch.float32).tiny
        mapped = probs.new_full((len(probs), head.hierarchy.num_classes), tiny)
        return mapped.index_copy_(1, order, probs.clamp_min(tiny)).log()


def open_trained(where: str) -> TrainedModel:
    """In evaluation mode, on the CPU.

    Raises:
        ConfigError: nothing is there, or it is no trained model.
        HierarchyError: the hierarchy beside the weights is not the one of the card.
    """
    if where.startswith(TIMM):
        return _from_hub(where.removeprefix(TIMM))
    path = find_weights(where)
    card, weights = ModelCard.read(path), read_weights(path)
    if card is None:
        raise ConfigError(
            f"{path}: no card {path.with_suffix('.json').name} beside it, expected one with "
            "model, num_classes, input_size, mean and std; write it, or pass a run's folder"
        )
    model = create_model(
        require_known_model(card.model, "model"), card.num_classes, card.input.size, card.arguments
    )
    weights = load_weights(model, weights)
    run = run_beside(path)
    return TrainedModel(
        name=path.parent.name if Path(where).is_dir() else path.stem,
        architecture=card.model,
        model=model.eval(),
        input=card.input,
        num_classes=card.num_classes,
        hierarchy=hierarchy_beside(path, card) or _flat_classes(card),
        scheme=run.get("recipe", {}).get("scheme") or cast("Scheme | None", card.scheme),
        run=run,
        notes=weights.notes,
        arguments=card.arguments,
        taught=card.taught,
    )


def _from_hub(name: str) -> TrainedModel:
    architecture = require_known_model(name, "model")
    model = download_model(name, cure="pass a file").eval()
    label_set = label_set_of_timm(name)
    return TrainedModel(
        name=name,
        architecture=architecture,
        model=model,
        input=default_input(name),
        num_classes=int(getattr(model, "num_classes", 0)),
        hierarchy=resolve(label_set) if label_set else None,
        scheme=None,
        run={},
        policy=judging_policy(name),
    )


def _flat_classes(card: ModelCard) -> SemanticHierarchy | None:
    """The classes that a card lists, as one softmax."""
    if not card.classes:
        return None
    return SemanticHierarchy.from_chains(card.classes, {}, name="its own classes")


def judging_policy(name: str) -> ViewPolicy:
    """How timm prepares images for its own weights of that name: mostly cropped, some squished."""
    config = get_pretrained_cfg(name)
    if config is None or config.crop_mode == "squash":
        return PLAIN
    interpolation = config.interpolation if config.interpolation in RESAMPLING else "bicubic"
    return CentreCrop(share=config.crop_pct, interpolation=interpolation)


def run_beside(weights: Path) -> dict[str, Any]:
    """What the record of the run says that left those weights; empty where there is none.

    Raises:
        ConfigError: it is none.
    """
    path = weights.with_name("run.json")
    if not path.exists():
        return {}
    try:
        run: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if run["recipe"]["scheme"] not in get_args(Scheme):
            raise ValueError(f"scheme {run['recipe']['scheme']!r}")
        for record in run["history"]:
            float(record["epoch"])
            dict(record.get("validation", {}))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(
            f"{path}: not the record of a run ({first_line(error)}); expected what a training "
            "command wrote: restore or delete it"
        ) from error
    return run
