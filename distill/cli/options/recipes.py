"""The options that say how a student is trained: its recipe, and how the run is kept."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from distill.cli.options.checks import known_models, output_folder
from distill.cli.options.command import extra_settings, option
from distill.cli.options.group import Command, gathered

if TYPE_CHECKING:
    from trainers.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class RecipeChoice:
    """options: None where not given. extra: settings that are none of them, by dotted key."""

    options: dict[str, Any]
    extra: dict[str, Any]

    def read(self, **defaults: Any) -> "Recipe":
        """The recipe; `defaults` where nothing else says anything."""
        from distill.settings import make_settings
        from trainers.recipe import Recipe

        return make_settings(Recipe, {**self.extra, **self.options}, defaults)


def recipe_settings() -> dict[str, Any]:
    """All settings of a recipe by dotted name, with their defaults."""
    from distill.settings import flat
    from trainers.recipe import Recipe

    return flat(Recipe(student="").to_json())


def _choice(**options: Any) -> RecipeChoice:
    options["views.name"] = options.pop("view_policy")
    return RecipeChoice(options=options, extra=extra_settings())


recipe = gathered(
    "choice",
    (
        option(
            "--student",
            required=True,
            callback=known_models,
            section="Student",
            help="timm model name.",
        ),
        option(
            "--init",
            show_default="pretrained",
            section="Student",
            help="pretrained (timm's weights), random, a weight file or a run's folder.",
        ),
        option(
            "--image-size",
            type=click.IntRange(8, 4096),
            show_default="224",
            section="Student",
            setting=True,
            help="Pixels per side.",
        ),
        option(
            "--scheme",
            show_default="semantic",
            section="Training",
            help="single-label, multi-label or semantic.",
        ),
        option(
            "--kd-weight",
            type=float,
            show_default="by scheme",
            section="Training",
            help="Weight of the KD term.",
        ),
        option(
            "--divergence",
            show_default="mse",
            section="Training",
            setting=True,
            help="KD distance: mse or kl.",
        ),
        option("--epochs", type=int, show_default="80", section="Training", help="Epochs."),
        option(
            "--batch-size",
            type=int,
            show_default="128",
            section="Training",
            help="Images per step, over all devices.",
        ),
        option(
            "--lr", type=float, show_default="3e-4", section="Training", help="Peak learning rate."
        ),
        option(
            "--weight-decay",
            type=float,
            show_default="1e-4",
            section="Training",
            setting=True,
            help="Weight decay, not applied to norms and biases.",
        ),
        option(
            "--label-smoothing",
            type=float,
            show_default="0.2",
            section="Training",
            setting=True,
            help="Label smoothing.",
        ),
        option(
            "--seed",
            type=click.IntRange(0),
            show_default="0",
            section="Training",
            setting=True,
            help="Random seed.",
        ),
        option(
            "--view-policy",
            show_default="augmented",
            section="Training",
            setting=True,
            help="augmented, or plain (squish-resize only).",
        ),
    ),
    _choice,
)


@dataclass(frozen=True, kw_only=True)
class RunChoice:
    """Where and how it runs, which does not change what is learned."""

    checkpoint_every: int
    max_bad_fraction: float
    compiled: bool
    wandb: str | None


out: Callable[[Command], Command] = option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    callback=output_folder,
    help="Folder of the run.",
)
run = gathered(
    "run",
    (
        option(
            "--checkpoint-every",
            type=click.IntRange(1),
            default=500,
            section="Training",
            setting=True,
            help="Steps between checkpoints; every epoch also ends with one.",
        ),
        option(
            "--max-bad-fraction",
            type=click.FloatRange(0, 1),
            default=0.001,
            section="Input",
            setting=True,
            help="Largest tolerated share of unreadable images.",
        ),
        option(
            "--compile",
            "compiled",
            is_flag=True,
            section="Machine",
            setting=True,
            help="Use torch.compile.",
            show_default=False,
        ),
        option(
            "--wandb",
            metavar="PROJECT",
            setting=True,
            help="Also log to Weights & Biases (pip install '.[wandb]').",
        ),
    ),
    RunChoice,
)
