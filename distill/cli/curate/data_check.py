"""`distill data check`: what a data set is like before a teacher reads it."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from distill.cli.options import common
from distill.cli.options.command import PATH, command, option
from distill.cli.options.common import format_bytes
from distill.cli.options.images import DataChoice, data_options
from distill.cli.output import print_result

if TYPE_CHECKING:
    from distill.curate.check import CheckedImages, DataReport, Tagging

SHOWN = 5  # of each list


@command(examples=["--data DATA", "--data DATA --near 4 --out LISTS"])
@data_options(split=None, clips=True)
@option("--split", help="Check only this split.", show_default="all splits")
@common.label_set()
@option(
    "--near",
    type=click.IntRange(0, 8),
    help=("Also find near duplicates: how many of 64 bits two perceptual hashes may differ in."),
)
@option(
    "--out", type=PATH, help="Folder for unreadable.csv, outside.csv, duplicates.csv, near.csv."
)
@common.processes
@common.as_json
def check(
    data: DataChoice,
    split: str | None,
    label_set: str,
    near: int | None,
    out: Path | None,
    workers: int,
    as_json: bool,
) -> None:
    """Read every image or clip of DATA and report counts, classes, damage, duplicates and tagging.

    Checks the data alone; `distill inspect` checks tags against a teacher.
    """
    from distill.curate.check import check_images, report_of
    from distill.errors import printable
    from distill.hierarchy.semantic import resolve

    hierarchy = resolve(label_set)
    names = [split] if split else data.split_names()
    if out:
        out.mkdir(parents=True, exist_ok=True)  # or one would learn of it when all is read
    sources = {name: data.open(name) for name in names}
    checked = check_images(sources, hierarchy, near_bits=near, workers=workers)
    report = report_of(data.location, checked)
    print_result(as_json, asdict(report), *map(printable, _lines(report, checked)))
    if out:
        _write_lists(out, checked)
        click.echo(f"lists: {out}", err=as_json)


def _lines(report: "DataReport", checked: "CheckedImages") -> list[str]:
    first = next(iter(checked.sources.values()))
    things, clips = first.things, first.frames > 0
    size = "" if clips else f", {format_bytes(report.bytes_total)}"
    splits = ", ".join(f"{count} {split}" for split, count in report.images.items())
    each = report.images_per_class
    return [
        f"{report.location}: {sum(report.images.values())} {things} ({splits}){size}",
        f"label set {report.label_set}: {report.classes_present} of {report.classes} classes have "
        f"{things} ({each['min']:.0f} to {each['max']:.0f}, median {each['median']:.0f})",
        "hierarchy  classes  labelled  tagged here",
        *(
            f"{level['hierarchy']:9d}  {level['classes']:7d}  {level['labelled']:8d}  "
            f"{level['tagged_here']:11d}"
            for level in report.per_hierarchy
        ),
        *_outside_lines(report, things),
        f"unreadable: {report.unreadable} {things}"
        + "".join(f"; {count} {kind}" for kind, count in report.unreadable_by_kind.items()),
        *_first(
            [f"{checked.sample(row)[1].key}: {reason}" for row, reason in checked.reasons.items()],
            "unreadable.csv",
        ),
        _pairs_line(
            "duplicates",
            "show the same frames" if clips else "are the same bytes",
            report.duplicates,
        ),
        *(
            [_pairs_line("near duplicates", "look alike", report.near_duplicates)]
            if report.near_duplicates
            else []
        ),
        _tagging_line(report, things),
    ]


def _outside_lines(report: "DataReport", things: str) -> list[str]:
    lines = [f"without a label: {report.unlabelled} {things}"] if report.unlabelled else []
    if report.outside:
        total = sum(report.outside.values())
        lines.append(
            f"NOT in the label set: {len(report.outside)} labels of {total} {things}, which "
            "`distill precompute` will refuse"
        )
        shown = [f"{label}: {n} {things}" for label, n in report.outside.items()]
        lines += _first(shown, "outside.csv")
    return lines


def _first(lines: list[str], file: str) -> list[str]:
    """The first lines, indented, and how many more there are."""
    more = len(lines) - SHOWN
    rest = [f"{more} more; {file} of --out FOLDER has all"] if more > 0 else []
    return [f"  {line}" for line in (*lines[:SHOWN], *rest)]


def _pairs_line(title: str, meaning: str, tagging: "Tagging") -> str:
    if not tagging.pairs:
        return f"{title}: none"
    return (
        f"{title}: {tagging.pairs} pairs {meaning}, {tagging.across_splits} of them in two splits; "
        f"tagged alike {tagging.same}, one more generally {tagging.general}, contradicting "
        f"{tagging.contradicting}"
    )


def _tagging_line(report: "DataReport", things: str) -> str:
    tagged = sum(report.images.values()) - report.unlabelled - sum(report.outside.values())
    share = report.inner / tagged if tagged else 0.0
    return (
        f"inconsistent tagging: {report.inner} {things} ({100 * share:.1f}%) are tagged with a "
        "class that has subclasses in the label set, so a more precise tag may be missing"
    )


def _write_lists(out: Path, checked: "CheckedImages") -> None:
    from distill.data.source import OUTSIDE
    from distill.files import write_csv

    def named(row: int) -> list[object]:
        split, sample = checked.sample(row)
        return [split, sample.key, sample.label]

    reasons = [[*named(row)[:2], why] for row, why in checked.reasons.items()]
    write_csv(out / "unreadable.csv", ["split", "key", "reason"], reasons)
    outside = (checked.labels == OUTSIDE).nonzero()[0]
    rows = [named(int(row)) for row in outside]
    write_csv(out / "outside.csv", ["split", "key", "label"], rows)
    for name, groups in (("duplicates", checked.groups), ("near", checked.near)):
        if groups is not None:
            members = [
                [number, *named(int(row))] for number, group in enumerate(groups) for row in group
            ]
            write_csv(out / f"{name}.csv", ["group", "split", "key", "label"], members)
