"""The options that say when a tag is missing or suspect."""

import click

from distill.cli.options.command import setting
from distill.cli.options.group import option_group

thresholds = option_group(
    "thresholds",
    (
        setting(
            "--missing-above",
            type=click.FloatRange(0, 1),
            default=0.7,
            help="Smallest probability of every class on the path of an added tag.",
        ),
        setting(
            "--suspect-above",
            type=click.FloatRange(0, min_open=True),
            default=2.5,
            help=(
                "Smallest mean of ln(p of the teacher's class / p of the tag) over the "
                "tag's levels."
            ),
        ),
        setting(
            "--sure-above",
            type=click.FloatRange(0, 1),
            default=0.3,
            help="Smallest probability of the teacher's class where it contradicts a tag.",
        ),
    ),
    dict,
)
