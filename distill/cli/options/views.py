"""The options that choose how views are drawn."""

from typing import TYPE_CHECKING

import click

from distill.cli.options.command import setting
from distill.cli.options.group import option_group

if TYPE_CHECKING:
    from distill.data.view_policy import ViewPolicy


def _policy(view_policy: str, view_seed: int, **numbers: float | None) -> "ViewPolicy":
    from distill.data.view_policy import ViewPolicy

    given = {name: value for name, value in numbers.items() if value is not None}
    return ViewPolicy(name=view_policy, seed=view_seed, **given)  # type: ignore[arg-type]


view_options = option_group(
    "policy",
    (
        setting(
            "--view-policy",
            default="augmented",
            help="augmented (flip, RandAugment, Cutout), or plain (squish-resize only, one view).",
            section="Output",
        ),
        setting("--view-seed", type=click.IntRange(0), default=0, help="Seed of the views."),
        setting(
            "--randaugment-ops",
            type=int,
            show_default="2",
            help="RandAugment transforms per view; 0 for none.",
        ),
        setting(
            "--randaugment-magnitude",
            type=float,
            show_default="9",
            help="RandAugment strength, 0 to 10.",
        ),
        setting(
            "--cutout",
            type=float,
            show_default="0.5",
            help="Side of the Cutout square; 0 for none.",
        ),
        setting(
            "--crop-scale",
            type=float,
            show_default="1, no crops",
            help="Smallest share of the image's area in random resized crops.",
        ),
    ),
    _policy,
)
