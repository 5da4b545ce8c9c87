"""The options that choose images, for every command that reads some, and what they were taken for.

Indexes of tars are kept in the user's cache; DISTILL_CACHE names another.
"""

import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from distill.cli.options.checks import existing_location
from distill.cli.options.command import option, setting
from distill.cli.options.group import Command, option_group
from distill.data.view_policy import MOST_FRAMES
from distill.files import tar_indexes

if TYPE_CHECKING:
    from distill.data.formats.tables import Columns
    from distill.data.source import ImageSource

HELP = (
    "Images: class folders, WebDataset tars, a Hugging Face data set, or a CSV or Parquet table of "
    "paths; a local path or s3://…."
)


@dataclass(frozen=True, kw_only=True)
class DataChoice:
    """The chosen images. Opening them says on standard error what they were taken for."""

    location: str
    split: str = "train"
    val_data: str | None = None
    path_column: str | None = None
    label_column: str | None = None
    frames: int = 0

    def open(
        self, split: str | None = None, say: Callable[[str], None] | None = None
    ) -> "ImageSource":
        """One split, the chosen one by default.

        Raises:
            DataError: as `distill.data.source.open_source`.
        """
        return self._open(self.location, split or self.split, say)

    def open_validation(self) -> "ImageSource | None":
        """The images of --val-data, or the split val of --data; None, and said, where neither is.

        Raises:
            DataError: as `open`.
        """
        from distill.data.source import has_split, split_names

        where = self.val_data or self.location
        if self.val_data or has_split(where, "val", self.columns):
            return self._open(where, "val")
        there = ", ".join(split_names(where, self.columns))
        to_stderr(
            f"data: nothing validates: splits found: {there}, none of them val; --val-data names "
            "images"
        )
        return None

    def open_judged(self) -> "ImageSource":
        """The images to judge by: of --val-data, or the chosen split of --data.

        Raises:
            DataError: as `open`.
        """
        return self._open(self.val_data or self.location, self.split)

    def spelled(self) -> str:
        """As a command takes it again, but for the split."""
        given = {
            "--path-column": self.path_column,
            "--label-column": self.label_column,
            "--frames": self.frames or None,
        }
        more = [str(word) for name, value in given.items() if value for word in (name, value)]
        return shlex.join(["--data", self.location, *more])

    def split_names(self) -> list[str]:
        """The splits that are there; "train" where all is one."""
        from distill.data.source import split_names

        return split_names(self.location, self.columns)

    def with_absolute_path(self) -> "DataChoice":
        """Return the choice with an absolute path, for processes that run in other folders."""
        local = "://" not in self.location
        return replace(
            self, location=str(Path(self.location).absolute()) if local else self.location
        )

    @property
    def columns(self) -> "Columns":
        """The columns of a table that are not where they are looked for."""
        from distill.data.formats.tables import Columns

        return Columns(self.path_column, self.label_column)

    def _open(
        self, location: str, split: str, say: Callable[[str], None] | None = None
    ) -> "ImageSource":
        from distill.data.source import open_source

        source = open_source(
            location, split, indexes=tar_indexes(), columns=self.columns, frames=self.frames
        )
        for line in source.describe():
            (say or to_stderr)(f"data: {line}")
        return source


def data_options(
    *,
    required: bool = True,
    help: str = HELP,
    split: str | None = "train",
    show_split: bool = False,
    validation: bool = False,
    clips: bool = False,
) -> Callable[[Command], Command]:
    """--data and what goes with it; the command gets a `DataChoice`, or None without one.

    split: the default; None offers no choice. show_split: in --help. validation: --val-data too.
    clips: --frames too.
    """
    options = [
        option("--data", "data_location", required=required, callback=existing_location, help=help),
        setting("--path-column", help="Column of paths or images.", show_default="path"),
        setting("--label-column", help="Column of labels.", show_default="wnid, or label"),
    ]
    if split:
        offer = option if show_split else setting
        options.append(offer("--split", default=split, help="Split of --data."))
    if validation:
        text = "Validation images, if --data has no split val."
        options.append(option("--val-data", callback=existing_location, help=text))
    if clips:
        text = "Take clips, videos or folders of frames, and show so many frames of each."
        options.append(
            setting(
                "--frames", type=click.IntRange(1, MOST_FRAMES), help=text, show_default="images"
            )
        )
    return option_group("data", options, _choice)


def _choice(
    data_location: str | None, frames: int | None = None, **given: Any
) -> DataChoice | None:
    if not data_location:
        return None
    return DataChoice(location=data_location, frames=frames or 0, **given)


def to_stderr(line: str) -> None:
    """Print it once, whatever number of processes train together."""
    if os.environ.get("RANK", "0") == "0":
        click.echo(line, err=True)
