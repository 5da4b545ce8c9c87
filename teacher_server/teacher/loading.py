"""Loading a teacher: which weights, which head, which input, and the fingerprint of all of it."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from timm.models import get_pretrained_cfg
from torch import nn

from distill.errors import ConfigError, TeacherError, first_line
from distill.hierarchy.flat_heads import FlatHead, RawAnswers, RawHead, TagHead
from distill.hierarchy.hypernyms import flat_label_set
from distill.hierarchy.model_classes import (
    classes_beside,
    hierarchy_beside,
    label_set_of,
)
from distill.hierarchy.names import FLAT_LABEL_SETS
from distill.hierarchy.semantic import SemanticHierarchy
from distill.models.card import ModelCard, ModelInput
from distill.models.creation import (
    check_input,
    classifier_names,
    create_model,
    default_input,
    download_model,
)
from distill.models.names import require_known_model
from distill.models.weights import (
    Weights,
    find_weights,
    fitted,
    load_weights,
    read_weights,
    with_classifier,
)
from distill.store.format.manifest import TeacherIdentity
from distill.targets.encoding import RAW_SCHEMES
from distill.teacher_server.teacher.teacher import Confidence, Member, Precision, Teacher

# What people call a teacher, and what timm calls those weights. TResNet-L here means the paper's,
# with ImageNet-21K-P weights; timm's own `tresnet_l` is an ImageNet-1K model of another layout.
ALIASES = {
    "tresnet_l": "tresnet_v2_l.miil_in21k",
    "tresnet_m": "tresnet_m.miil_in21k",
}
SEMANTIC, SINGLE_LABEL, MULTI_LABEL = "semantic", "single-label", "multi-label"
# timm has no flat model of that many classes: those of the paper's authors have semantic heads.
SEMANTIC_LABEL_SET = "imagenet-21k-miil"


@dataclass(frozen=True, kw_only=True)
class MemberChoice:
    """Which model.

    name: timm's, or an alias. weights: what `find_weights` takes; None takes timm's.
    head: "semantic", "single-label" or "multi-label" over the hierarchy's own classes ("flat",
    "sigmoid": the latter two, their answers as they are), or the label set of a flat classifier, as
    `flat_label_set` takes it; None takes what the weights' card or timm says of those weights, and
    semantic where neither knows them.
    input_size: pixels; None takes the weights' card, then timm's configuration.
    """

    name: str
    weights: str | Path | None = None
    random_weights: bool = False
    head: str | None = None
    input_size: int | None = None


def load_teacher(
    choices: Sequence[MemberChoice],
    hierarchy: SemanticHierarchy,
    *,
    device: torch.device,
    precision: Precision | None = None,
    confidence: Confidence = "top",
) -> Teacher:
    """One model, or an ensemble of several.

    precision: None is bfloat16 on a GPU and float32 elsewhere.

    Raises:
        ConfigError: a name is unknown, or a file is not the weights of its model.
        TeacherError: weights cannot be had, or have nothing to do with the hierarchy.
    """
    precision = precision or ("bfloat16" if device.type == "cuda" else "float32")
    if device.type == "cuda":
        torch.cuda.set_device(device)  # or threads of torch's would open a context on the first GPU
        if precision == "float32":
            torch.backends.cudnn.allow_tf32 = False  # TF32 has the mantissa of a 16-bit float
            torch.backends.cuda.matmul.allow_tf32 = False
    members = tuple(_load(choice, hierarchy, device, precision) for choice in choices)
    if confidence == "reach" and not any(member.head for member in members):
        raise ConfigError(
            "--confidence reach found for a teacher with a semantic head, whose mass reaches every "
            "hierarchy alike; expected a flat teacher; use --confidence top"
        )
    _require_same_answers(members, confidence)
    return Teacher(
        members=members,
        hierarchy=hierarchy,
        device=device,
        identity=TeacherIdentity(
            name=" + ".join(member.name for member in members),
            fingerprint=_fingerprint_of_all(members, confidence),
            input_size=members[0].input.size,
            precision=precision,
            random_weights=any(choice.random_weights for choice in choices),
            confidence=confidence,
        ),
    )


def _require_same_answers(members: Sequence[Member], confidence: Confidence) -> None:
    answers = {member.answers for member in members}
    head = next((head for head in RAW_SCHEMES if head in answers), "")
    if len(answers) > 1:
        raise ConfigError(
            f"--head {head} found for some of {len(members)} teachers, whose answers cannot be "
            f"averaged with others; expected it for all, or `--head {RAW_SCHEMES[head]}`"
        )
    if head and confidence == "reach":
        raise ConfigError(
            f"--confidence reach found with --head {head}, whose answers have no confidence but "
            "themselves; leave --confidence out"
        )


def _load(
    choice: MemberChoice, hierarchy: SemanticHierarchy, device: torch.device, precision: Precision
) -> Member:
    name = ALIASES.get(choice.name, choice.name)
    require_known_model(name, "teacher")
    if choice.weights and choice.random_weights:
        raise ConfigError("--weights and --random-weights found, expected one of them")
    path = find_weights(choice.weights) if choice.weights else None
    card = ModelCard.read(path) if path else None
    _require_same_model(choice, name, card, path)
    head = _head(choice, name, path, card, hierarchy, device)
    flat = head if isinstance(head, FlatHead) else None
    num_classes = len(flat.synsets) if flat else hierarchy.num_classes
    if not flat and card and card.hierarchy_digest not in (None, hierarchy.digest):
        raise TeacherError(
            f"{path}: trained on hierarchy {str(card.hierarchy_digest)[:12]}, this run "
            f"uses {hierarchy.name} ({hierarchy.digest[:12]}); pass the --label-set it was trained "
            "on"
        )
    notes: tuple[str, ...] = ()
    model_input = card.input if card else default_input(name, path)
    if choice.input_size:
        model_input = replace(model_input, size=(choice.input_size, choice.input_size))
    if path:
        model = create_model(name, num_classes, model_input.size, card.arguments if card else None)
        weights = fitted(read_weights(path), model)
        own = classes_beside(path, card) if not flat else None
        if own and own != hierarchy.synsets and {*own} == {*hierarchy.synsets}:
            names = classifier_names(model)
            weights = with_classifier(weights, model, names, own, hierarchy.synsets)
        _require_rows(model, weights, num_classes, flat is not None)
        notes = load_weights(model, weights).notes
    elif choice.random_weights:
        torch.manual_seed(0)
        model = create_model(name, num_classes, model_input.size)
    else:
        model = _from_hub(choice.name, name, num_classes, hierarchy)
    try:
        model = model.eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    except RuntimeError as error:
        raise TeacherError(
            f"teacher {name}: cannot be put on {device} ({first_line(error)}), expected room for "
            "its weights; free the device, or choose another --device"
        ) from error
    check_input(model, name, model_input, num_classes)
    origin = path.name if path else "random weights" if choice.random_weights else "timm's weights"
    kind = str(head) if head else f"{num_classes} classes, a softmax for each hierarchy"
    unsure = path and not card and not choice.head
    trained_as = RAW_SCHEMES.get(choice.head or "", choice.head)
    return Member(
        name=name,
        model=model,
        input=model_input,
        head=head,
        precision=precision,
        fingerprint=_fingerprint(name, model, model_input, precision, head),
        about=(
            f"{name} from {origin}: {kind}",
            *(
                [
                    "no card beside the weights says which classes, so taken in the order of "
                    f"{hierarchy.name}"
                ]
                if unsure
                else ()
            ),
            *(
                [f"--head {choice.head} taken, though its card says {card.scheme}"]
                if card and card.scheme and trained_as not in (None, card.scheme)
                else []
            ),
            f"input {model_input}",
            *notes,
        ),
    )


def _head(
    choice: MemberChoice,
    name: str,
    path: Path | None,
    card: ModelCard | None,
    hierarchy: SemanticHierarchy,
    device: torch.device,
) -> FlatHead | TagHead | RawHead | None:
    """How the model's logits become those of the hierarchy; None where they are so already."""
    trained = card if path and card and card.scheme and not choice.head else None
    if trained and path and trained.scheme == "single-label" and not trained.taught:
        own = hierarchy_beside(path, trained) or hierarchy
        if own.num_classes == trained.num_classes:
            return FlatHead.of(own.synsets, hierarchy, device)
    if choice.head in RAW_SCHEMES:
        return RawHead(hierarchy=hierarchy, answers=cast(RawAnswers, choice.head))
    if choice.head == MULTI_LABEL or (trained and trained.scheme == "multi-label"):
        return TagHead(hierarchy=hierarchy)
    if choice.head == SINGLE_LABEL:
        return FlatHead.of(hierarchy.synsets, hierarchy, device)
    if trained and trained.hierarchy_digest == hierarchy.digest:
        return None
    if card and card.classes and not choice.head:
        same = {*card.classes} == {*hierarchy.synsets}
        return None if same else FlatHead.of(card.classes, hierarchy, device)
    synsets = _flat_synsets(choice, name, card, hierarchy)
    return FlatHead.of(synsets, hierarchy, device) if synsets else None


def _require_same_model(
    choice: MemberChoice, name: str, card: ModelCard | None, path: Path | None
) -> None:
    """The card must be of the model that is named."""
    named = name.partition(".")[0]
    if card and card.model.partition(".")[0] not in (named, choice.name):
        raise ConfigError(
            f"{path}: its card says model {card.model}, expected {choice.name}; pass the --teacher "
            "that these weights are of"
        )


def _require_rows(model: nn.Module, weights: Weights, num_classes: int, flat: bool) -> None:
    """Another number of classes is said as such, not as a tensor of another shape.

    weights: as `fitted` gives them.
    """
    found = next(
        (
            len(tensor)
            for module in classifier_names(model)
            for key in ("weight", "bias")
            if (tensor := weights.state.get(f"{module}.{key}")) is not None
        ),
        num_classes,
    )
    if found != num_classes:
        raise ConfigError(
            f"{weights.path}: a classifier of {found} classes found, expected {num_classes}; these "
            "weights are of another label set: check "
            + ("the names in --head" if flat else "--label-set, or name theirs as --head")
        )


def _flat_synsets(
    choice: MemberChoice, name: str, card: ModelCard | None, hierarchy: SemanticHierarchy
) -> tuple[str, ...]:
    """The label set of a flat classifier; none for a semantic one."""
    if choice.head == SEMANTIC:
        return ()
    if choice.head:
        return flat_label_set(choice.head)
    if choice.random_weights or (choice.weights and card is None):
        return ()
    config = get_pretrained_cfg(name)
    num_classes = card.num_classes if card else (config.num_classes if config else 0)
    label_set = label_set_of(num_classes)
    if (card and num_classes == hierarchy.num_classes) or label_set == SEMANTIC_LABEL_SET:
        return ()
    return flat_label_set(label_set) if label_set in FLAT_LABEL_SETS else ()


def _from_hub(
    name: str, full_name: str, num_classes: int, hierarchy: SemanticHierarchy
) -> nn.Module:
    config = get_pretrained_cfg(full_name)
    if config and config.num_classes != num_classes:
        raise TeacherError(
            f"teacher {full_name} predicts {config.num_classes} classes, hierarchy "
            f"{hierarchy.name} has {hierarchy.num_classes}; pass the --label-set of these weights, "
            f"or the flat label set they were trained on as --head, or --weights FILE"
        )
    try:
        return download_model(full_name)
    except ConfigError as error:
        raise TeacherError(
            f"teacher {name}: {error} with --weights FILE, or try the machinery with "
            "--random-weights"
        ) from error


def _fingerprint(
    name: str,
    model: nn.Module,
    model_input: ModelInput,
    precision: str,
    head: FlatHead | TagHead | RawHead | None,
) -> str:
    """SHA-256 over architecture, tensors, input, precision, and what another head's classes are."""
    about: list[Any] = [name, model_input.size, model_input.mean, model_input.std, precision]
    if head:
        kind = head.answers if isinstance(head, RawHead) else MULTI_LABEL
        about.append(head.synsets if isinstance(head, FlatHead) else kind)
    digest = hashlib.sha256(json.dumps(about).encode())
    for key, tensor in sorted(model.state_dict().items()):
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(raw.numpy().data)
    return digest.hexdigest()


def _fingerprint_of_all(members: Sequence[Member], confidence: Confidence) -> str:
    if len(members) == 1 and confidence == "top":
        return members[0].fingerprint
    about = ["mean of probabilities", confidence, *(member.fingerprint for member in members)]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()
