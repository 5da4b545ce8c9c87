"""`distill prepare`: the raw release of ImageNet-21K → ImageNet-21K-P."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from distill.cli.options import common
from distill.cli.options.command import PATH, command, option
from distill.cli.options.common import format_bytes
from distill.cli.output import print_result

if TYPE_CHECKING:
    from distill.curate.prepare.report import PrepareReport

FOLDER_UNIT = 500  # images of class folders that count as done together


@command(
    examples=[
        "fall11_whole.tar --out DATA",
        "winter21_whole.tar.gz.d --out DATA --format webdataset --dry-run",
    ]
)
@click.argument("raw")
@option("--out", required=True, type=PATH, help="Folder to fill.")
@option(
    "--format",
    "form",
    type=click.Choice(["folder", "webdataset"]),
    default="folder",
    help="Class folders, or WebDataset shards.",
)
@option("--min-images", type=click.IntRange(1), default=500, help="Drop classes with fewer images.")
@option("--val-images", type=click.IntRange(0), default=50, help="Validation images per class.")
@option(
    "--seed",
    type=int,
    help="Draw the validation images at random; without it, the first by name.",
    show_default="none",
)
@common.label_set("all classes found")
@option("--size", type=click.IntRange(8, 4096), default=224, help="Pixels per side.")
@option("--quality", type=click.IntRange(1, 100), default=95, help="JPEG quality.")
@option("--shard-images", type=click.IntRange(1), default=10_000, help="Images per shard.")
@common.processes
@option("--dry-run", is_flag=True, help="List the release and report; write nothing.")
@common.as_json
def prepare(
    raw: str,
    out: Path,
    form: Literal["folder", "webdataset"],
    min_images: int,
    val_images: int,
    seed: int | None,
    label_set: str | None,
    size: int,
    quality: int,
    shard_images: int,
    workers: int,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Make ImageNet-21K-P from RAW: fall11_whole.tar, the winter21 tar, or either unpacked.

    Drops small classes, sets validation images apart and squish-resizes the rest. Lists undecodable
    images. Run the same command again to resume.
    """
    from distill.cli.signals import finish_on_signal
    from distill.curate.prepare.run import PrepareOptions, rules_for
    from distill.curate.prepare.run import prepare as run
    from distill.curate.prepare.shrink import ShrinkRules
    from distill.errors import ConfigError

    if not raw:
        raise ConfigError("RAW is empty, expected the path of a release")
    if val_images >= min_images:
        raise ConfigError(
            f"--val-images {val_images} found, expected fewer than --min-images ({min_images}): a "
            "class would have no images to train on"
        )
    settings = PrepareOptions(
        selection=rules_for(label_set, min_images=min_images, val_images=val_images, seed=seed),
        shrink=ShrinkRules(size=size, quality=quality),
        form=form,
        unit_images=shard_images if form == "webdataset" else FOLDER_UNIT,
        workers=workers,
    )
    with finish_on_signal("prepare", "the current shards") as stopping:
        report = run(raw.rstrip("/") or "/", out, settings, stopping=stopping, dry_run=dry_run)
    print_result(as_json, report.to_json(), *_lines(report, dry_run))
    if not (report.complete or dry_run):
        stopping.end()


def _lines(report: "PrepareReport", dry_run: bool) -> list[str]:
    would = "would be " if dry_run else ""
    dropped = report.classes_found - report.classes_kept
    lines = [
        f"{report.out}: {report.classes_kept} classes {would}kept, {dropped} dropped, of "
        f"{report.images_found} images found",
        f"images {would}written: {report.images['train']} train, {report.images['val']} val",
    ]
    if report.bytes_in:
        lines.append(
            f"bytes: {format_bytes(report.bytes_in)} before, "
            f"{format_bytes(report.bytes_out)} after "
            f"({report.bytes_in / report.bytes_out:.1f} times smaller)"
        )
    if report.bad or report.skipped:
        listed = "" if dry_run else f" ({report.out}/bad_images.csv)"
        lines.append(
            f"left out: {report.bad} images, {report.skipped} files of the release{listed}"
        )
    lines += _comparison(report.against)
    if report.complete:
        lines.append(
            f"next: distill data check --data {report.out}, then distill precompute --data "
            f"{report.out} …"
        )
    return lines


def _comparison(against: Any) -> list[str]:
    if against is None:
        return ["compared with: nothing, it resembles neither published ImageNet-21K-P"]
    counts = ", ".join(
        f"{part} {against[part]['found']} of {against[part]['published']}"
        for part in ("classes", "train", "val")
    )
    match = "as published" if against["matches"] else "NOT as published"
    return [f"compared with {against['release']}: {match}: {counts}"] + [
        f"  because {reason}" for reason in against["why"]
    ]
