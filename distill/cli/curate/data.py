"""`distill data`: about a data set itself."""

from pathlib import Path

import click

from distill.cli.curate.clean import clean
from distill.cli.curate.data_check import check
from distill.cli.curate.real_labels import real_labels
from distill.cli.options import common
from distill.cli.options.command import PATH, Group, option, setting
from distill.cli.options.images import DataChoice, data_options
from distill.cli.output import print_result


@click.group(cls=Group)
def data() -> None:
    """Check a data set, clean its tags, reassess its labels."""


data.add_command(check)
data.add_command(clean)
data.add_command(real_labels)


@data.command(examples=["--data DATA --folds 5 --out FOLDS"])
@data_options(show_split=True, clips=True)
@option("--folds", type=click.IntRange(2, 1000), default=10, help="Number of folds.")
@option("--out", required=True, type=PATH, help="Folder for the lists.")
@common.as_json
def folds(data: DataChoice, folds: int, out: Path, as_json: bool) -> None:
    """Split DATA into folds: for each, the keys held out and the keys to train on.

    Train a teacher on train-N.csv and precompute held-out-N.csv, which it never saw; `distill
    inspect --folds` checks tags by such stores. A sample's fold depends only on its key.
    """
    from distill.data.sample_list import fold_of
    from distill.files import write_csv

    source = data.open()
    fold = fold_of(source.ids, folds)
    keys = [sample.key for sample in source.samples]
    for number in range(folds):
        for name, chosen in (("held-out", fold == number), ("train", fold != number)):
            taken = [[key] for key, take in zip(keys, chosen, strict=True) if take]
            write_csv(out / f"{name}-{number}.csv", ["key"], taken)
    sizes = [int((fold == number).sum()) for number in range(folds)]
    lines = [f"fold {i}: {size} of {len(source)} held out" for i, size in enumerate(sizes)]
    lines.append(f"lists: {out}/train-N.csv, {out}/held-out-N.csv")
    print_result(as_json, {"images": len(source), "held_out": sizes}, *lines)


@data.command(examples=["--out SCENES"])
@option("--out", required=True, type=PATH, help="Folder for images and annotations.")
@option("--train", type=click.IntRange(1), default=4000, help="Training images.")
@option("--val", type=click.IntRange(1), default=500, help="Validation images.")
@option("--pixels", type=click.IntRange(32, 2048), default=128, help="Pixels per side.")
@setting("--seed", type=click.IntRange(0), default=0, help="Random seed.")
@common.processes
@common.as_json
def scenes(
    out: Path, train: int, val: int, pixels: int, seed: int, workers: int, as_json: bool
) -> None:
    """Render scenes of plane figures with boxes and masks in COCO's form, for `distill detect`."""
    from distill.data.rendered.scenes import SceneSet, write_scenes
    from distill.errors import ConfigError

    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"{out}: other files found, expected a new folder; choose another --out")
    write_scenes(out, SceneSet(train=train, val=val, pixels=pixels, seed=seed), workers)
    print_result(
        as_json,
        {"train": train, "val": val, "folder": str(out)},
        f"{out}: {train} + {val} images of {pixels} pixels",
        f"next: distill detect --student resnet10t --init random --data {out} "
        f"--image-size {pixels} --out DETECTOR",
    )
