"""The options that say how a student is trained: its recipe, and how the run is kept."""

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from distill.cli.options import common
from distill.cli.options.checks import known_models, output_folder
from distill.cli.options.command import PATH, NumberOrAuto, extra_settings, option, setting
from distill.cli.options.group import Command, option_group
from distill.models.names import WITHOUT_FILE

if TYPE_CHECKING:
    from distill.data.view_policy import ViewPolicy
    from distill.trainers.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class RecipeChoice:
    """options: None where not given. extra: settings that are none of them, by dotted key."""

    options: dict[str, Any]
    extra: dict[str, Any]

    def read(self, **defaults: Any) -> "Recipe":
        """The recipe; `defaults` where nothing else says anything."""
        from distill.settings import make_settings
        from distill.trainers.recipe import Recipe

        return make_settings(Recipe, self._given, defaults)

    def input_of_init(self, out: Path) -> dict[str, Any]:
        """Size and normalisation of the weights that --init names, as defaults for `read`.

        A run in `out` that goes on has its own, and needs those weights no more.

        Raises:
            ConfigError: they are not there, or their card is none.
        """
        from distill.models.card import ModelCard
        from distill.models.weights import find_weights
        from distill.trainers.models.student import recipe_input

        if (out / "checkpoint.pt").exists():
            with suppress(OSError, ValueError, KeyError, TypeError):  # said where it is resumed
                begun = json.loads((out / "run.json").read_text())["recipe"]
                return {key: begun[key] for key in ("image_size", "normalisation")}
        recipe = self.read()
        if recipe.init in WITHOUT_FILE:
            return {}
        card = ModelCard.read(find_weights(recipe.init))
        if card is None:
            return {}
        return recipe_input(card.input, recipe.student)

    def require_views(self, policy: "ViewPolicy", location: str) -> None:
        """That no setting says other views than the targets are of.

        Raises:
            ConfigError: one does.
        """
        from distill.errors import ConfigError

        views = self.read().views
        for key in sorted(self._given):
            name = key.removeprefix("views.")
            if key == name or self._given[key] is None:
                continue
            mine, theirs = getattr(views, name), getattr(policy, name)
            if mine != theirs:
                raise ConfigError(
                    f"{key} {mine!r} found, but the targets of {location} are of views with "
                    f"{theirs!r}, expected the same: leave it out, or choose other targets"
                )

    @property
    def _given(self) -> dict[str, Any]:
        return {**self.extra, **self.options}


def recipe_settings() -> dict[str, Any]:
    """All settings of a recipe by dotted name, with their defaults; NAME.* takes any name."""
    from distill.settings import flat
    from distill.trainers.recipe import Recipe

    document = Recipe(student="").to_json()
    return {**flat(document), **{f"{key}.*": None for key, each in document.items() if each == {}}}


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
        option(
            "--kd-weight",
            type=NumberOrAuto(),
            show_default="auto",
            help="Weight of the KD term; auto suits the number of classes.",
        ),
        setting("--divergence", show_default="kl", help="KD distance: kl, mse or dist."),
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

    checkpoint_minutes: float
    checkpoint_every: int
    validate_every: int
    keep_epochs: int
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
            "--checkpoint-minutes",
            type=click.FloatRange(0),
            default=10.0,
            help="Minutes between checkpoints; every epoch also ends with one.",
        ),
        setting(
            "--checkpoint-every",
            type=click.IntRange(0),
            default=0,
            help="Steps between checkpoints, as well; 0 for none.",
        ),
        setting(
            "--validate-every",
            type=click.IntRange(1),
            default=1,
            help="Epochs between validations; the last epoch always ends with one.",
        ),
        setting(
            "--keep-epochs",
            type=click.IntRange(0),
            default=0,
            help="Students of the last epochs to keep, beside the best one.",
        ),
        common.max_bad_fraction,
        setting("--compile", "compiled", is_flag=True, help="Use torch.compile."),
        setting(
            "--wandb",
            metavar="PROJECT",
            help="Also log to Weights & Biases (pip install 'distill-kd[wandb]').",
        ),
    ),
    RunChoice,
)
