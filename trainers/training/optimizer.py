"""timm's optimizer of a recipe, and how its learning rate goes up and down."""

from dataclasses import replace
from typing import Any

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import (
    CosineLRScheduler,
    PolyLRScheduler,
    StepLRScheduler,
    TanhLRScheduler,
)
from timm.scheduler.scheduler import Scheduler
from torch import nn

from distill.errors import ConfigError, first_line
from distill.trainers.recipe import Recipe

FUSED = ("adam", "adamw", "sgd", "momentum")  # torch's, which take a step in one kernel
FIRST_LR = 1 / 25  # of the top learning rate, as torch's own one-cycle schedule begins


def make_optimizer(recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    """Without weight decay for norms, biases and what the model itself names.

    Raises:
        ConfigError: timm has none of that name that trains by first derivatives, or it takes no
        such arguments.
    """
    try:
        optimizer: torch.optim.Optimizer = create_optimizer_v2(
            model,
            opt=recipe.optimizer,
            lr=recipe.lr,
            weight_decay=recipe.weight_decay,
            layer_decay=None if recipe.layer_decay == 1 else recipe.layer_decay,
            **({"fused": True} if recipe.optimizer in FUSED else {}) | recipe.optimizer_args,
        )
        if getattr(optimizer, "is_second_order", False):
            raise ValueError("it needs second derivatives")
    except (ValueError, AssertionError, TypeError) as error:
        more = f" with {recipe.optimizer_args}" if recipe.optimizer_args else ""
        raise ConfigError(
            f"optimizer {recipe.optimizer!r}{more} found ({first_line(error)}), expected one of "
            "timm's with its own arguments, such as adamw, sgd or lamb"
        ) from error
    return optimizer


def require_optimizer(recipe: Recipe) -> None:
    """That the recipe's optimizer can be made, before images are looked for.

    Raises:
        ConfigError: as `make_optimizer`.
    """
    make_optimizer(replace(recipe, layer_decay=1.0), nn.Linear(1, 1))  # which has no layers


def make_schedule(recipe: Recipe, optimizer: torch.optim.Optimizer, total_steps: int) -> Scheduler:
    """Up linearly, then down to `min_lr`, as timm has it; a function of the step alone.

    step: a tenth after each third of the steps. constant: no fall.
    """
    rise = int(recipe.warmup * total_steps)
    fall = max(1, total_steps - rise)
    shared: dict[str, Any] = {
        "warmup_t": rise,
        "warmup_lr_init": recipe.lr * FIRST_LR,
        "warmup_prefix": True,
        "t_in_epochs": False,
    }
    if recipe.schedule == "step":
        return StepLRScheduler(optimizer, decay_t=-(-fall // 3), decay_rate=0.1, **shared)
    if recipe.schedule == "constant":
        return StepLRScheduler(optimizer, decay_t=fall + 1, decay_rate=1.0, **shared)
    kinds = {"cosine": CosineLRScheduler, "tanh": TanhLRScheduler, "poly": PolyLRScheduler}
    kind = kinds[recipe.schedule]
    return kind(optimizer, t_initial=fall, lr_min=recipe.min_lr, **shared)
