"""`distill data`: about a data set itself."""

import json
from pathlib import Path

import click

from distill.cli.curate.data_check import check
from distill.cli.curate.real_labels import real_labels
from distill.cli.options import common


@click.group()
def data() -> None:
    """What a data set is like, folds of it, and reassessed labels."""


data.add_command(check)
data.add_command(real_labels)


@data.command()
@common.data
@click.option("--split", default="train", show_default=True, help="Split of --data.")
@click.option("--folds", type=click.IntRange(2, 1000), default=10, show_default=True)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for the lists.")
@common.as_json
def folds(data: str, split: str, folds: int, out: Path, as_json: bool) -> None:
    """Cut DATA into folds: for each, the keys held out and the keys to train on.

    A teacher that was trained on train-N.csv is asked about held-out-N.csv, which it never saw;
    `distill inspect --folds` judges tags by such stores. Which fold a sample is in depends on its
    key alone.
    """
    from distill.cli.options.images import open_images
    from distill.data.sample_list import fold_of
    from distill.files import write_csv

    source = open_images(data, split)
    fold = fold_of(source.ids, folds)
    keys = [sample.key for sample in source.samples]
    for number in range(folds):
        for name, chosen in (("held-out", fold == number), ("train", fold != number)):
            taken = [[key] for key, take in zip(keys, chosen, strict=True) if take]
            write_csv(out / f"{name}-{number}.csv", ["key"], taken)
    sizes = [int((fold == number).sum()) for number in range(folds)]
    if as_json:
        click.echo(json.dumps({"images": len(source), "held_out": sizes}))
        return
    for number, size in enumerate(sizes):
        click.echo(f"fold {number}: {size} of {len(source)} held out")
    click.echo(f"lists: {out}/train-N.csv, {out}/held-out-N.csv")
