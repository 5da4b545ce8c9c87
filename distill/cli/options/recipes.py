"""The options that say how a student is trained: its recipe, and how the run is kept."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from distill.cli.options.checks import known_models, output_folder
from distill.cli.options.command import PATH, extra_settings, option, setting
from distill.cli.options.group import Command, option_group

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


recipe_options = option_group(
    "recipe_choice",
    (
        option("--student", required=True, callback=known_models, help="timm model name."),
        option(
            "--init",
            show_default="pretrained",
            help="pretrained (timm's weights), random, a weight file or a run's folder.",
        ),
        setting(
            "--image-size",
            type=click.IntRange(8, 4096),
            show_default="224",
            help="Pixels per side.",
        ),
        option(
            "--scheme",
            show_default="semantic",
            help="single-label, multi-label or semantic.",
            section="Training",
        ),
        option("--kd-weight", type=float, show_default="by scheme", help="Weight of the KD term."),
        setting("--divergence", show_default="mse", help="KD distance: mse or kl."),
        option("--epochs", type=int, show_default="80", help="Epochs."),
        option(
            "--batch-size", type=int, show_default="128", help="Images per step, over all devices."
        ),
        option("--lr", type=float, show_default="3e-4", help="Peak learning rate."),
        setting(
            "--weight-decay",
            type=float,
            show_default="1e-4",
            help="Weight decay, not applied to norms and biases.",
        ),
        setting("--label-smoothing", type=float, show_default="0.2", help="Label smoothing."),
        setting(
            "--seed",
            type=click.IntRange(0),
            show_default="0",
            help="Random seed.",
            section="Training",
        ),
        setting(
            "--view-policy",
            show_default="augmented",
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


run_folder: Callable[[Command], Command] = option(
    "--out", required=True, type=PATH, callback=output_folder, help="Folder of the run."
)
run_options = option_group(
    "run_choice",
    (
        setting(
            "--checkpoint-every",
            type=click.IntRange(1),
            default=500,
            help="Steps between checkpoints; every epoch also ends with one.",
        ),
        setting(
            "--max-bad-fraction",
            type=click.FloatRange(0, 1),
            default=0.001,
            help="Largest tolerated share of unreadable images.",
        ),
        setting("--compile", "compiled", is_flag=True, help="Use torch.compile."),
        setting(
            "--wandb",
            metavar="PROJECT",
            help="Also log to Weights & Biases (pip install '.[wandb]').",
        ),
    ),
    RunChoice,
)
