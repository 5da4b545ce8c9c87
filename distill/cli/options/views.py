"""The options that say how views are drawn."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from distill.cli.options.group import gathered

if TYPE_CHECKING:
    from distill.data.views import ViewPolicy


@dataclass(frozen=True, kw_only=True)
class ViewChoice:
    """What the options said."""

    view_policy: str
    view_seed: int
    randaugment_ops: int | None
    randaugment_magnitude: float | None
    cutout: float | None

    def policy(self) -> "ViewPolicy":
        """The policy, with what was said of it."""
        from distill.data.views import ViewPolicy

        said = {
            "randaugment_ops": self.randaugment_ops,
            "randaugment_magnitude": self.randaugment_magnitude,
            "cutout": self.cutout,
        }
        return ViewPolicy(
            name=self.view_policy,
            seed=self.view_seed,
            **{name: value for name, value in said.items() if value is not None},  # type: ignore[arg-type]
        )


views = gathered(
    "viewing",
    (
        click.option(
            "--view-policy",
            default="augmented",
            show_default=True,
            help="augmented (flip, RandAugment, Cutout), or plain: the squish-resize alone, for "
            "one view.",
        ),
        click.option("--view-seed", type=click.IntRange(0), default=0, show_default=True),
        click.option(
            "--randaugment-ops", type=int, help="Transforms a view; 2 by default, 0 for none."
        ),
        click.option(
            "--randaugment-magnitude", type=float, help="Their strength, 0 to 10; 9 by default."
        ),
        click.option(
            "--cutout", type=float, help="Side of the grey square; 0.5 by default, 0 for none."
        ),
    ),
    ViewChoice,
)
