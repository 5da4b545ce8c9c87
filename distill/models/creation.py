"""timm models: created, downloaded, tried out."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import HfApi, try_to_load_from_cache
from timm.models import get_pretrained_cfg
from torch import nn

from distill.errors import ConfigError, first_line
from distill.models.card import ModelInput, three_floats

# Of timm's create_model; a card must not load another file by them.
NOT_ARGUMENTS = {
    "num_classes",
    "img_size",
    "in_chans",
    "pretrained",
    "pretrained_cfg",
    "checkpoint_path",
}
NOT_ARGUMENTS |= {"pretrained_cfg_overlay", "cache_dir", "scriptable", "exportable", "no_jit"}


def default_input(name: str, weights: Path | None = None) -> ModelInput:
    """The input that timm's pretrained configuration of this model states.

    The weights of the paper's authors, whose files and tags are called miil, take pixels in [0, 1].
    """
    if weights and "miil" in weights.name.lower():
        return replace(default_input(name), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    config = get_pretrained_cfg(name) or get_pretrained_cfg(name.partition(".")[0])
    if config is None:
        return ModelInput(size=(224, 224))
    return ModelInput(
        size=(config.input_size[1], config.input_size[2]),
        mean=three_floats(config.mean),
        std=three_floats(config.std),
    )


def model_arguments(
    name: str, size: tuple[int, int] | None, arguments: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What `create_model` gives to timm's, beside the number of classes: with the size, where the
    architecture is built for one and can be built for another.

    Raises:
        ConfigError: an argument is not one of the architecture.
    """
    keywords = dict(arguments or {})
    if told := NOT_ARGUMENTS & keywords.keys():
        raise ConfigError(
            f"argument {min(told)} found for {name}, expected none that the data, the weights and "
            "the image size say; leave it out"
        )
    config = get_pretrained_cfg(name)
    if size and config and config.fixed_input_size and size != tuple(config.input_size[1:]):
        with suppress(TypeError), torch.random.fork_rng(devices=[]):  # else it takes one size alone
            patches = getattr(timm.create_model(name, num_classes=1), "patch_embed", None)
            if getattr(patches, "strict_img_size", True):  # else it takes any, as it is
                timm.create_model(name, num_classes=1, img_size=size)
                keywords["img_size"] = size
    return keywords


def create_model(
    name: str,
    num_classes: int,
    size: tuple[int, int] | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> nn.Module:
    """A timm model with fresh weights.

    size: height and width of its input, for architectures that are built for one, as ViT is. Others
    take any that they can. arguments: more of timm's, as drop_path_rate.

    Raises:
        ConfigError: the architecture does not take those.
    """
    plain = name.partition(".")[0]
    keywords = model_arguments(plain, size, arguments)
    try:
        model: nn.Module = timm.create_model(plain, num_classes=num_classes, **keywords)
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        if not keywords:
            raise
        given = ", ".join(f"{key} {value!r}" for key, value in keywords.items())
        raise ConfigError(
            f"{plain}: cannot be made with {given} ({first_line(error)}), expected arguments of "
            "timm's create_model for it; correct or leave out -o model.…, or --image-size"
        ) from error
    return model


def check_input(model: nn.Module, name: str, model_input: ModelInput, num_classes: int) -> None:
    """Ask the model about two black images, so that a wrong size is found before any work.

    Raises:
        ConfigError: the model does not take images of this size, or gives no such logits.
    """
    device = next(model.parameters()).device
    training = model.training
    try:
        with torch.no_grad():
            logits = model.eval()(torch.zeros(2, 3, *model_input.size, device=device))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ConfigError(
            f"{name} does not take {model_input.size[0]}×{model_input.size[1]} images "
            f"({first_line(error)}); choose another size or another model"
        ) from error
    finally:
        model.train(training)
    if tuple(logits.shape) != (2, num_classes):
        raise ConfigError(
            f"{name} answers two images with shape {tuple(logits.shape)}, expected one logit for "
            f"each of {num_classes} classes; choose an image classification model"
        )


def classifier_names(model: nn.Module) -> tuple[str, ...]:
    """The modules that hold one row a class, as timm's configuration of the model names them."""
    config: Any = getattr(model, "pretrained_cfg", {})
    names = config.get("classifier") or ()
    return (names,) if isinstance(names, str) else tuple(names)


def download_model(
    name: str, num_classes: int | None = None, *, cure: str | None = None
) -> nn.Module:
    """A timm model with the hub's weights; another `num_classes` gets a fresh classifier.

    Raises:
        ConfigError: there are none, or they are not cached and the hub does not answer.
    """
    config = get_pretrained_cfg(name)
    if config is None or not (config.hf_hub_id or config.url):
        raise ConfigError(f"{name}: timm has no pretrained weights; {cure or 'pass a file'}")
    keywords: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    try:
        files = ("model.safetensors", "pytorch_model.bin")
        if config.hf_hub_id and not any(try_to_load_from_cache(config.hf_hub_id, f) for f in files):
            # Without a network this fails at once; the download itself retries for a minute.
            HfApi().model_info(config.hf_hub_id, timeout=10)
        model: nn.Module = timm.create_model(name, pretrained=True, **keywords)
    except Exception as error:  # the hub client raises whatever the network does
        raise ConfigError(
            f"{name}: its weights cannot be downloaded ({first_line(error)}), expected a network "
            f"or a cached copy; "
            + (cure or f"fetch the file of timm/{name} from the model hub elsewhere and pass it")
        ) from error
    return model
