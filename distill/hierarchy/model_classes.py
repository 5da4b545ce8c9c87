"""Which classes the logits of a model are of, as far as something beside its weights says it."""

from pathlib import Path

from timm.data.imagenet_info import infer_imagenet_subset
from timm.models import get_pretrained_cfg

from distill.errors import ConfigError
from distill.hierarchy.hypernyms import flat_label_set
from distill.hierarchy.names import FLAT_LABEL_SETS
from distill.hierarchy.semantic import SemanticHierarchy
from distill.models.card import ModelCard

OTHER_NAMES = {"imagenet-21k-goog": "imagenet-21k"}


def hierarchy_beside(weights: Path, card: ModelCard | None) -> SemanticHierarchy | None:
    """The hierarchy.json beside a weight file; None without one.

    Raises:
        ConfigError: it is not the one that the card names.
    """
    path = weights.with_name("hierarchy.json")
    if not path.exists():
        return None
    hierarchy = SemanticHierarchy.load(path)
    if card and card.hierarchy_digest not in (None, hierarchy.digest):
        raise ConfigError(
            f"{path}: digest {hierarchy.digest[:12]} found, the weights beside it expect "
            f"{str(card.hierarchy_digest)[:12]}; put the hierarchy they were trained on there"
        )
    return hierarchy


def classes_beside(weights: Path, card: ModelCard | None) -> tuple[str, ...] | None:
    """The classes of a weight file in the order of its logits; None where nothing says them.

    Raises:
        ConfigError: as `hierarchy_beside`.
    """
    if hierarchy := hierarchy_beside(weights, card):
        return hierarchy.synsets
    return card.classes if card else None


def classes_of_timm(name: str) -> tuple[str, ...] | None:
    """The wnids of timm's own weights of that name; None where timm does not say them."""
    label_set = label_set_of_timm(name)
    return flat_label_set(label_set) if label_set else None


def label_set_of_timm(name: str) -> str | None:
    """The one of `FLAT_LABEL_SETS` that timm's own weights of that name are of; None of another."""
    config = get_pretrained_cfg(name)
    label_set = label_set_of(config.num_classes) if config else None
    return label_set if label_set in FLAT_LABEL_SETS else None


def label_set_of(num_classes: int) -> str | None:
    """The ImageNet label set that timm infers from a number of classes; only good for its own."""
    found = infer_imagenet_subset({"num_classes": num_classes})
    return OTHER_NAMES.get(found, found) if found else None
