"""`distill store`: what a store is, whether it is whole, and stores made from stores."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from distill.cli.options import common
from distill.cli.options.checks import known_encoding
from distill.cli.options.command import FILE, Group, option
from distill.cli.options.images import DataChoice, data_options
from distill.cli.options.teacher import TeacherChoice, teacher_options
from distill.cli.output import print_result, store_lines
from distill.cli.signals import WORK_LEFT

if TYPE_CHECKING:
    from distill.store.logit_store import LogitStore

location = click.argument("location", metavar="STORE")
out = option("--out", required=True, help="New store: a folder, or s3://bucket/prefix.")


@click.group(cls=Group)
def store() -> None:
    """Inspect, verify, repair and transform stores. STORE is a folder or s3://bucket/prefix."""


@store.command(examples=["STORE", "STORE --json"])
@location
@common.as_json
def info(location: str, as_json: bool) -> None:
    """Print rows, views, bytes, identity, fidelity and agreement with the tags of STORE.

    Reads no row but a sample of one view for the agreement. Exits with 75 if blocks are missing.
    """
    from distill.store.logit_store import LogitStore
    from distill.store.summary import summarise
    from distill.teacher_server.inspect.agreement import agreement_of_store

    opened = LogitStore.open(location)
    summary, agreement = summarise(opened), agreement_of_store(opened)
    print_result(
        as_json,
        {**summary.to_json(), "agreement": agreement.to_json() if agreement else None},
        *store_lines(summary),
        *(agreement.lines() if agreement else []),
    )
    if not summary.complete:
        sys.exit(WORK_LEFT)


@store.command(examples=["STORE", "STORE --teacher tresnet_l --weights FILE --data DATA"])
@location
@teacher_options(required=False)
@data_options(
    required=False, help="Images that the store was made from; needs --teacher.", clips=True
)
@option("--sample", type=click.IntRange(1), default=256, help="Images per block.", section="Input")
@common.machine
@common.as_json
def verify(
    location: str,
    teacher_choice: TeacherChoice | None,
    data: DataChoice | None,
    sample: int,
    device: str,
    workers: int,
    as_json: bool,
) -> None:
    """Read all of STORE and check every digest, count and range.

    With --teacher and --data, also runs the teacher again on a sample. Exits with 2 if anything is
    wrong, with 75 if nothing is but blocks are missing.
    """
    from distill.errors import ConfigError
    from distill.store.upkeep.verify import verify

    if (teacher_choice is None) != (data is None):
        raise ConfigError("one of --teacher and --data found, expected both or neither")
    checked = verify(location)
    report = checked.to_json()
    if teacher_choice and data and checked.ok:
        from distill.teacher_server.precompute.spot_check import ask_again

        again = ask_again(
            location,
            source=data.open(),
            teacher=teacher_choice.load(device, _hierarchy_of(location)),
            sample=sample,
            workers=workers,
        )
        report["teacher"] = again.to_json()
        if not again.ok:
            report["ok"] = False
            report["problems"] = [*report["problems"], again.to_json()["says"]]
    if as_json:
        click.echo(json.dumps(report))
    else:
        for problem in report["problems"]:
            click.echo(f"wrong: {problem}")
        if "teacher" in report and report["ok"]:
            click.echo(f"teacher: {report['teacher']['says']}")
        state = "complete" if checked.complete else f"{checked.pending_blocks} blocks pending"
        verdict = "nothing wrong" if report["ok"] else f"{len(report['problems'])} found wrong"
        click.echo(
            f"{location}: {verdict}; {checked.blocks_read} blocks × {checked.views} views read, "
            f"{state}"
        )
        for line in checked.missing:
            click.echo(line)
    if not report["ok"]:
        if not as_json:
            mended = f"distill store repair {location} --teacher … --data …"
            older = "restore it from a copy, or precompute again: an older format is only read"
            click.echo(f"next: {mended if checked.repairable else older}")
        sys.exit(2)
    if not checked.complete:
        sys.exit(WORK_LEFT)


@store.command(
    examples=["STORE --from REPLICA", "STORE --teacher tresnet_l --weights FILE --data DATA"]
)
@location
@option("--from", "replica", help="Another copy of the store, to take bad blocks from.")
@teacher_options(required=False)
@data_options(required=False, help="Images that the store was made from.", clips=True)
@option(
    "--batch-size", type=click.IntRange(1), help="Views per batch.", show_default="as in the store"
)
@common.limit
@common.machine
@common.as_json
def repair(
    location: str,
    replica: str | None,
    teacher_choice: TeacherChoice | None,
    data: DataChoice | None,
    batch_size: int | None,
    limit: int | None,
    device: str,
    workers: int,
    as_json: bool,
) -> None:
    """Repair STORE; intact blocks are left as they are.

    Without --teacher and --data, restores what follows from the rest. With them, given as for the
    precompute that made the store, also computes bad and missing blocks. Blocks --from a copy are
    taken where their digests are those that were committed.
    """
    from dataclasses import asdict

    from distill.errors import ConfigError
    from distill.store.logit_store import LogitStore
    from distill.teacher_server.precompute.repair import repair

    if (teacher_choice is None) != (data is None):
        raise ConfigError("one of --teacher and --data found, expected both or neither")
    report = repair(
        location,
        source=data.open().limited(limit) if data else None,
        teacher=teacher_choice.load(device, _hierarchy_of(location)) if teacher_choice else None,
        replica=LogitStore.open(replica) if replica else None,
        batch_size=batch_size,
        workers=workers,
    )
    print_result(
        as_json,
        asdict(report),
        *(f"restored: {line}" for line in report.restored),
        *([f"taken from {replica}: {len(report.taken)} blocks"] if replica else []),
        f"{location}: {len(report.recomputed)} blocks computed again; it is complete",
    )


@store.command(examples=["A B --out STORE"])
@click.argument("locations", metavar="STORE STORE...", nargs=-1, required=True)
@out
@common.as_json
def merge(locations: tuple[str, ...], out: str, as_json: bool) -> None:
    """Merge stores: blocks computed on several machines, more views, or more samples."""
    from distill.store.logit_store import LogitStore
    from distill.store.upkeep.algebra import merge

    _print_summary(merge(out, [LogitStore.open(each) for each in locations]), as_json)


@store.command(
    examples=["STORE --out FEW --limit 10000", "STORE --out FEW --views 0-1 --class n00015388"]
)
@location
@out
@option("--views", help="View numbers to keep, as in 1 or 0-3.", show_default="all")
@option("--keys", type=FILE, help="File with one sample key per line.")
@option("--exclude", type=FILE, help="File with one key per line of samples to leave out.")
@data_options(required=False, help="Images to keep: those that DATA has.", clips=True)
@option("--class", "classes", multiple=True, help="wnid of a class to keep with its descendants.")
@common.limit
@common.as_json
def subset(
    location: str,
    out: str,
    views: str | None,
    keys: Path | None,
    exclude: Path | None,
    data: DataChoice | None,
    classes: tuple[str, ...],
    limit: int | None,
    as_json: bool,
) -> None:
    """Make a store of some samples or views of STORE."""
    from distill.store.logit_store import LogitStore
    from distill.store.upkeep.algebra import subset

    source = LogitStore.open(location)
    rows = _chosen_rows(source, keys, exclude, data, classes, limit)
    _print_summary(subset(out, source, rows=rows, views=_view_range(views)), as_json)


@store.command(examples=["STORE --out SMALLER --encoding small"])
@location
@out
@option(
    "--encoding",
    callback=known_encoding,
    help="small, standard, fine, dense, or entries=N,steps=M.",
    show_default="that of STORE",
)
@common.as_json
def transcode(location: str, out: str, encoding: str | None, as_json: bool) -> None:
    """Write STORE in today's format, or re-encoded, and state the remaining fidelity."""
    import torch

    from distill.hierarchy.semantic import SemanticHierarchy
    from distill.losses.fidelity import gradient_angles, others_of
    from distill.store.logit_store import LogitStore
    from distill.store.upkeep.algebra import transcode
    from distill.targets.encoding import EncodingSpec
    from distill.targets.rows import TargetRows
    from distill.targets.tensors import DenseTargets, SparseTargets, densify

    source = LogitStore.open(location)
    hierarchy = SemanticHierarchy.from_json(source.hierarchy)
    slots, answers = source.manifest.slots, source.manifest.answers
    spec = EncodingSpec.named(encoding, hierarchy.classes_per_hierarchy) if encoding else None
    fewer = tuple(map(min, spec.entries, slots)) if spec else slots

    def audit(before: TargetRows, after: TargetRows, labels: Any) -> dict[str, Any]:
        kept = SparseTargets.from_rows(before, slots, answers)
        exact = DenseTargets(
            probs=densify(kept, hierarchy), confidence=kept.confidence, answers=answers
        )
        angles = gradient_angles(
            exact=exact,
            sparse=SparseTargets.from_rows(after, fewer, answers),
            others=others_of(list(range(len(labels))), exact.probs),
            labels=torch.from_numpy(labels),
            hierarchy=hierarchy,
        )
        return {name: values.numpy() for name, values in angles.items()}

    _print_summary(transcode(out, source, spec, audit), as_json)


@store.command(examples=["A B"])
@click.argument("first")
@click.argument("second")
@common.as_json
def diff(first: str, second: str, as_json: bool) -> None:
    """Compare the manifests and the predictions of two stores; exits with 1 if they differ."""
    from distill.store.logit_store import LogitStore
    from distill.store.upkeep.diff import diff

    apart = diff(LogitStore.open(first), LogitStore.open(second))
    if as_json:
        click.echo(json.dumps(apart.to_json()))
        sys.exit(0 if apart.answers_equal else 1)
    for name, (a, b) in apart.manifest.items():
        click.echo(f"{name}: {a} | {b}")
    if apart.answers_equal:
        click.echo(f"equal: the same answers to {apart.rows_in_both} samples")
        return
    click.echo(
        f"samples: {apart.rows_in_both} in both ({apart.labels_that_differ} labelled differently), "
        f"{apart.rows_only_in_first} only in the first, {apart.rows_only_in_second} only in the "
        f"second; views in both: {', '.join(map(str, apart.views_in_both)) or 'none'}"
    )
    if apart.rows_apart:
        click.echo(f"images that only one of them could read: {apart.rows_apart}")
    if apart.angle_deg:
        click.echo(
            "KD gradient of a fresh student: {median:.3f}° median, {p99:.3f}° p99, {max:.3f}° at "
            "most apart".format(**apart.angle_deg)
        )
        click.echo("view  hierarchy  same top-1  ‖T − T′‖ mean  largest  |P − P′| mean  largest")
    for row in apart.per_hierarchy:
        click.echo(
            f"{row.view:4d}  {row.hierarchy:9d}  {row.top1_agreement:10.2%}  "
            f"{row.distance_mean:13.5f}  {row.distance_max:7.5f}  {row.confidence_mean:13.5f}  "
            f"{row.confidence_max:7.5f}"
        )
    sys.exit(1)


def _print_summary(made: "LogitStore", as_json: bool) -> None:
    from distill.store.summary import summarise

    summary = summarise(made)
    print_result(as_json, summary.to_json(), *store_lines(summary))


def _chosen_rows(
    source: "LogitStore",
    keys: Path | None,
    exclude: Path | None,
    data: DataChoice | None,
    classes: tuple[str, ...],
    limit: int | None,
) -> Any:
    import numpy as np

    from distill.data.sample_ids import find_rows
    from distill.hierarchy.semantic import SemanticHierarchy

    kept = np.ones(source.manifest.dataset.rows, np.bool_)
    if keys:
        kept &= np.isin(np.arange(len(kept)), _rows_of_keys(source, keys))
    if exclude:
        kept[_rows_of_keys(source, exclude)] = False
    if data:
        kept &= np.isin(np.arange(len(kept)), find_rows(source.sample_ids, data.open().ids))
    if classes:
        hierarchy = SemanticHierarchy.from_json(source.hierarchy)
        tops = {hierarchy.synsets[hierarchy.index(wnid)] for wnid in classes}
        inside = [bool(tops & {s, *hierarchy.ancestors(s)}) for s in hierarchy.synsets]
        kept &= np.array([*inside, False])[source.labels]
    return np.flatnonzero(kept)[:limit]


def _rows_of_keys(source: "LogitStore", file: Path) -> Any:
    import numpy as np

    from distill.data.sample_ids import find_rows, sample_ids
    from distill.errors import DataError

    lines = file.read_bytes().decode("utf-8", "surrogateescape").split("\n")
    wanted = [line.removesuffix("\r") for line in lines if line.strip()]
    rows = find_rows(source.sample_ids, sample_ids(wanted))
    if (rows < 0).any():
        missing = wanted[int(np.argmin(rows))]
        raise DataError(
            f"{source.location}: {int((rows < 0).sum())} of {len(wanted)} keys of {file} are "
            f"not in the store (first {missing!r}), expected keys of its samples"
        )
    return rows


def _hierarchy_of(location: str) -> Any:
    """The hierarchy of the store; None where it is damaged, so that --label-set must say it."""
    from distill.errors import DistillError
    from distill.hierarchy.semantic import SemanticHierarchy
    from distill.store.format.root import read_root_or_copy
    from distill.store.logit_store import LogitStore
    from distill.store.places.objects import open_objects

    try:
        manifest = read_root_or_copy(location).manifest
        stored = LogitStore(open_objects(location), manifest).hierarchy
        hierarchy = SemanticHierarchy.from_json(stored)
    except DistillError:
        return None
    return hierarchy if hierarchy.digest == manifest.hierarchy.digest else None


def _view_range(text: str | None) -> range | None:
    import re

    from distill.errors import ConfigError

    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,6})(?:-(\d{1,6}))?", text)
    if not match:
        raise ConfigError(f"--views {text!r} found, expected a number or a range as 0-3")
    first, last = int(match[1]), int(match[2] or match[1])
    return range(first, last + 1)
