"""A trained model: the folder of a run, a weight file with its card, or a name on timm's hub."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from torch import nn

from distill.errors import ConfigError, first_line
from distill.hierarchy.semantic import SemanticHierarchy
from distill.models.card import ModelCard, ModelInput
from distill.models.creation import create_model, default_input, download_model
from distill.models.names import require_known_model
from distill.models.weights import load_weights, read_weights
from trainers.recipe import Scheme

TIMM = "timm:"


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
    taught: bool = False  # learned from a teacher's answers
    squished: bool = True  # as we resize; the hub's models say themselves how

    def with_hierarchy(self, hierarchy: SemanticHierarchy) -> "TrainedModel":
        """The same model, its classes named.

        Raises:
            ConfigError: the hierarchy has another number of classes.
        """
        if hierarchy.num_classes != self.num_classes:
            raise ConfigError(
                f"{self.name}: {self.num_classes} classes found, label set {hierarchy.name} has "
                f"{hierarchy.num_classes}; pass the --label-set that it was trained on"
            )
        return replace(self, hierarchy=hierarchy)


def open_trained(where: str) -> TrainedModel:
    """In evaluation mode, on the CPU.

    Raises:
        ConfigError: nothing is there, or it is no trained model.
        HierarchyError: the hierarchy beside the weights is not the one of the card.
    """
    if where.startswith(TIMM):
        return _from_hub(where.removeprefix(TIMM))
    path = Path(where)
    weights = path / "student.safetensors" if path.is_dir() else path
    if path.is_dir() and not weights.exists():
        started = (path / "run.json").exists()
        raise ConfigError(
            f"{path}: {'a run that is not finished' if started else 'no student.safetensors'} "
            "found, expected a finished run; "
            + ("run its command again" if started else "pass the --out of a training command")
        )
    card = ModelCard.read(weights)
    state = read_weights(weights)
    if card is None:
        raise ConfigError(
            f"{weights}: no card {weights.with_suffix('.json').name} beside it, expected one with "
            "model, num_classes, input_size, mean and std; write it, or pass a run's folder"
        )
    model = create_model(require_known_model(card.model, "model"), card.num_classes)
    load_weights(model, state, weights)
    run = _run_beside(weights)
    return TrainedModel(
        name=path.name if path.is_dir() else path.stem,
        architecture=card.model,
        model=model.eval(),
        input=card.input,
        num_classes=card.num_classes,
        hierarchy=_hierarchy_beside(weights, card),
        scheme=run.get("recipe", {}).get("scheme"),
        run=run,
        taught=bool(run.get("targets") and run["recipe"].get("kd_weight")),
    )


def _from_hub(name: str) -> TrainedModel:
    architecture = require_known_model(name, "model")
    model = download_model(name, cure="pass a file").eval()
    return TrainedModel(
        name=name,
        architecture=architecture,
        model=model,
        input=default_input(name),
        num_classes=int(getattr(model, "num_classes", 0)),
        hierarchy=None,
        scheme=None,
        run={},
        squished=False,
    )


def _hierarchy_beside(weights: Path, card: ModelCard) -> SemanticHierarchy | None:
    path = weights.with_name("hierarchy.json")
    if not path.exists():
        return None
    hierarchy = SemanticHierarchy.load(path)
    if card.hierarchy_digest not in (None, hierarchy.digest):
        raise ConfigError(
            f"{path}: digest {hierarchy.digest[:12]} found, the weights beside it expect "
            f"{str(card.hierarchy_digest)[:12]}; put the hierarchy they were trained on there"
        )
    return hierarchy


def _run_beside(weights: Path) -> dict[str, Any]:
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
