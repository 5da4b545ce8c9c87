"""`distill precompute`: data × teacher → store."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from distill.cli.options import common
from distill.cli.options.checks import known_encoding
from distill.cli.options.command import FILE, PATH, command, option, setting
from distill.cli.options.images import DataChoice, data_options
from distill.cli.options.teacher import TeacherChoice, teacher_options
from distill.cli.options.views import view_options
from distill.cli.output import fidelity_line, print_result, size_line, state_line

if TYPE_CHECKING:
    from distill.data.view_policy import ViewPolicy
    from distill.teacher_server.precompute.run import PrecomputeReport


@command(
    examples=[
        "--teacher tresnet_l --data DATA --store STORE --views 4",
        "--teacher tresnet_l --random-weights --data DATA --store TRIAL --limit 64",
        "--teacher convnext_base.fb_in22k --teacher tresnet_l --data DATA --store STORE",
    ]
)
@teacher_options()
@data_options(clips=True)
@option("--store", required=True, help="Store to fill: a folder, or s3://bucket/prefix.")
@option("--views", type=click.IntRange(1, 1024), default=1, help="Views per image.")
@setting("--first-view", type=click.IntRange(0, 2**31), default=0, help="Number of the first view.")
@option(
    "--encoding",
    callback=known_encoding,
    default="standard",
    help="small, standard, fine, dense, or entries=N,steps=M.",
)
@view_options
@setting(
    "--batch-size",
    type=click.IntRange(1),
    help="Views per batch.",
    show_default="measured",
    section="Machine",
)
@setting(
    "--compile/--no-compile",
    "compiled",
    default=None,
    help="Use torch.compile.",
    show_default="where it is faster",
)
@setting(
    "--block-rows",
    type=click.IntRange(1),
    help="Images per block.",
    show_default="4096 to 16384, by the number of images",
)
@common.max_bad_fraction
@setting(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    help="Run in this process, or on the workers of a Ray cluster.",
)
@setting(
    "--ray-workers",
    type=click.IntRange(1),
    help="Workers of --engine ray.",
    show_default="one per GPU",
)
@setting(
    "--shard-index",
    type=click.IntRange(0),
    help="Index of this process among the shards, from 0.",
    show_default="from the launcher",
)
@setting(
    "--num-shards",
    type=click.IntRange(1),
    help="Number of processes that share the blocks.",
    show_default="from the launcher",
)
@option("--dry-run", is_flag=True, help="Print what would be done, and do nothing.")
@setting("--log", type=PATH, help="Append events to this file as JSON lines.")
@setting(
    "--samples",
    type=FILE,
    help=("Only these samples: a list of keys, or a CSV with key; labels stay those of --data."),
)
@setting(
    "--not-in",
    metavar="STORE",
    help="Only images that this store lacks, to be merged with it.",
)
@common.limit
@common.machine
@common.as_json
def precompute(
    teacher_choice: TeacherChoice,
    policy: "ViewPolicy",
    data: DataChoice,
    store: str,
    views: int,
    first_view: int,
    encoding: str,
    batch_size: int | None,
    compiled: bool | None,
    block_rows: int | None,
    max_bad_fraction: float,
    engine: Literal["local", "ray"],
    ray_workers: int | None,
    shard_index: int | None,
    num_shards: int | None,
    dry_run: bool,
    log: Path | None,
    samples: Path | None,
    not_in: str | None,
    limit: int | None,
    device: str,
    workers: int,
    as_json: bool,
) -> None:
    """Run the teacher once over DATA and keep its predictions in STORE.

    Run the same command again to resume. Several processes share the blocks: torchrun, Slurm and
    Kubernetes set the shard, or --shard-index and --num-shards do.
    """
    from contextlib import nullcontext
    from dataclasses import asdict, replace

    from distill.cli.launcher import share_of_work
    from distill.cli.signals import finish_on_signal
    from distill.errors import ConfigError
    from distill.events import journal_file

    if policy.name == "plain" and views > 1:
        raise ConfigError(
            f"{views} views of policy plain found, expected 1: plain views are all alike; "
            "use --view-policy augmented"
        )
    launched = share_of_work(shard_index, num_shards, os.environ)

    import numpy as np

    from distill.data.sample_ids import find_rows
    from distill.data.sample_list import SampleList
    from distill.teacher_server.precompute import dry_run as dry
    from distill.teacher_server.precompute.options import PrecomputeOptions, Share
    from distill.teacher_server.precompute.ray_driver import cluster, precompute_on_ray
    from distill.teacher_server.precompute.run import precompute as run

    share = Share(index=launched.index, count=launched.count)
    if engine == "ray":  # workers run in other folders
        data, teacher_choice = data.with_absolute_path(), teacher_choice.with_absolute_paths()
        store = store if "://" in store else str(Path(store).absolute())
    source = data.open()
    if samples:
        source = source.select(np.sort(SampleList.read(samples).rows(source)))
    if not_in:
        from distill.store.logit_store import LogitStore

        held = find_rows(LogitStore.open(not_in).sample_ids, source.ids)
        source = source.select(np.flatnonzero(held < 0))
        if not len(source):
            raise ConfigError(f"{not_in}: holds all images of the data, so none is left to compute")
    source = source.limited(limit)
    settings = PrecomputeOptions(
        policy=replace(policy, frames=source.frames),
        views=views,
        first_view=first_view,
        encoding=encoding,
        batch_size=batch_size,
        compiled=compiled,
        block_rows=block_rows,
        workers=workers,
        max_bad_fraction=max_bad_fraction,
    )
    keywords: dict[str, Any] = {"source": source, "path": store, "options": settings}
    if dry_run:
        would = dry.dry_run(
            **keywords, teacher=teacher_choice.load(launched.device(device)), share=share
        )
        print_result(as_json, would.to_json(), *would.lines())
        return
    if engine == "ray" and share.count > 1:
        raise ConfigError(
            f"--engine ray found in shard {share.index} of {share.count}, expected one process; "
            "start it once, or use --engine local"
        )
    with (
        journal_file(log, lambda text: click.echo(f"precompute: {text}", err=True)) as journal,
        cluster(os.environ.get("RAY_ADDRESS")) if engine == "ray" else nullcontext() as ray,
        # After Ray, which handles SIGTERM in its own way.
        finish_on_signal("precompute") as stopping,
    ):
        if share.count > 1:
            journal.note(
                f"shard {share.index} of {share.count}, by {launched.launcher}",
                "share",
                index=share.index,
                count=share.count,
            )
        keywords |= {"journal": journal, "stopping": stopping}
        if ray:
            report = precompute_on_ray(
                ray, **keywords, load=teacher_choice.load, device=device, workers=ray_workers
            )
        else:
            report = run(
                **keywords, teacher=teacher_choice.load(launched.device(device)), share=share
            )
        interrupted = stopping() and not report.store.complete
        if interrupted:
            journal.event("interrupted", blocks_left=report.blocks_left)
        journal.event("summary", **asdict(report))
    print_result(as_json, asdict(report), *_lines(report, data, store))
    if interrupted:
        stopping.end()


def _lines(report: "PrecomputeReport", data: DataChoice, store: str) -> list[str]:
    from distill.store.format.audit import fidelity_warning

    done = report.store
    lines = [state_line(done), size_line(done)]
    if report.images:
        batch = f", batches of {report.speed.batch_size}" if report.speed else ""
        compiled = ", compiled" if report.speed and report.speed.compiled else ""
        lines.append(
            f"computed now: {report.images} images in {report.seconds:.1f} s, "
            f"{report.images_per_s:.1f} images/s{batch}{compiled}"
        )
        lines += report.stages.lines()
    lines.append(fidelity_line(done))
    if warning := fidelity_warning(done.fidelity, "kl"):
        lines.append(f"warning: {warning}")
    lines += report.agreement.lines() if report.agreement else []
    lines += [f"bad images: {count}: {kind}" for kind, count in sorted(report.bad.items())]
    if done.complete:
        lines.append(
            f"next: distill pretrain --student resnet18 {data.spelled()} --targets {store} "
            "--out RUN"
        )
    else:
        lines.append(
            f"{report.blocks_left} blocks are left, for other workers or for the same command again"
        )
    return lines
