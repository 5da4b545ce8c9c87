"""The options that say how a student is trained: a recipe file, what differs from it, and where."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from distill.cli.options.group import gathered

if TYPE_CHECKING:
    from trainers.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class RecipeChoice:
    """file: TOML. words: KEY=VALUE over it. options: over both, None where not given."""

    file: Path | None
    words: tuple[str, ...]
    options: dict[str, Any]

    def read(self, **defaults: Any) -> "Recipe":
        """The recipe; `defaults` where nothing else says anything."""
        from distill.settings import read_settings
        from trainers.recipe import Recipe

        return read_settings(Recipe, self.file, self.words, self.options, defaults)


def _choice(recipe: Path | None, words: tuple[str, ...], **options: Any) -> RecipeChoice:
    options["views.name"] = options.pop("view_policy")
    return RecipeChoice(file=recipe, words=words, options=options)


recipe = gathered(
    "choice",
    (
        click.option(
            "--recipe",
            type=click.Path(path_type=Path),
            help="Settings in TOML, as in deploy/configs; those of the paper where it is silent.",
        ),
        click.option(
            "-o",
            "words",
            multiple=True,
            metavar="KEY=VALUE",
            help="One setting of the recipe, such as -o ema_decay=0.999 or -o views.cutout=0.",
        ),
        click.option("--student", help="timm model name."),
        click.option("--scheme", help="single-label, multi-label or semantic (the default)."),
        click.option("--kd-weight", type=float, help="Of the KD term; by scheme if not."),
        click.option("--divergence", help="Of the KD term: mse (the default) or kl."),
        click.option("--image-size", type=click.IntRange(8, 4096), help="Pixels a side."),
        click.option("--epochs", type=int, help="80 if not."),
        click.option("--batch-size", type=int, help="Images a step, on all devices; 128 if not."),
        click.option("--lr", type=float, help="Highest learning rate; 3e-4 if not."),
        click.option("--weight-decay", type=float, help="1e-4 if not."),
        click.option("--label-smoothing", type=float, help="0.2 if not."),
        click.option("--init", help="pretrained (the default: timm's weights), random or a file."),
        click.option("--seed", type=click.IntRange(0), help="0 if not."),
        click.option("--view-policy", help="augmented (the default), or plain: squish alone."),
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


run = gathered(
    "run",
    (
        click.option(
            "--checkpoint-every",
            type=click.IntRange(1),
            default=500,
            show_default=True,
            help="Steps between checkpoints; every epoch ends with one.",
        ),
        click.option(
            "--max-bad-fraction",
            type=click.FloatRange(0, 1),
            default=0.001,
            show_default=True,
            help="Share of images that may be unreadable.",
        ),
        click.option("--compile", "compiled", is_flag=True, help="With torch.compile."),
        click.option(
            "--wandb",
            metavar="PROJECT",
            help="Send the TensorBoard record to Weights & Biases too (pip install '.[wandb]').",
        ),
    ),
    RunChoice,
)
