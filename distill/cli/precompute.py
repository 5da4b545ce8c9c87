"""`distill precompute`: data × teacher → store."""

import json
from pathlib import Path

import click

from distill.cli import options, teaching
from distill.cli.report import fidelity_line, size_line, state_line


@click.command()
@teaching.teacher()
@options.data
@click.option("--store", required=True, help="Store to fill: a folder, or s3://bucket/prefix.")
@click.option("--split", default="train", show_default=True, help="Split of --data.")
@click.option("--views", type=click.IntRange(1, 1024), default=1, show_default=True)
@click.option(
    "--first-view",
    type=click.IntRange(0, 2**31),
    default=0,
    help="Number of the first view.",
)
@click.option(
    "--encoding",
    default="standard",
    show_default=True,
    help="small, standard, fine, or entries=N,steps=M.",
)
@click.option(
    "--view-policy",
    default="augmented",
    show_default=True,
    help="augmented (flip, RandAugment, Cutout), or plain: the squish-resize alone, for one view.",
)
@click.option("--view-seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--batch-size", type=click.IntRange(1), default=64, show_default=True, help="Views.")
@click.option(
    "--block-rows", type=click.IntRange(1), default=8192, show_default=True, help="Images."
)
@click.option("--max-bad-fraction", type=click.FloatRange(0, 1), default=0.001, show_default=True)
@options.limit
@options.machine
@options.as_json
def precompute(
    choice: teaching.TeacherChoice,
    data: Path,
    store: str,
    split: str,
    views: int,
    first_view: int,
    encoding: str,
    view_policy: str,
    view_seed: int,
    batch_size: int,
    block_rows: int,
    max_bad_fraction: float,
    limit: int | None,
    device: str,
    workers: int,
    as_json: bool,
) -> None:
    """Run the teacher once over DATA and keep what it says in STORE.

    Running the same command again goes on where the last run stopped.
    """
    from dataclasses import asdict

    from distill.data import open_source
    from distill.errors import ConfigError
    from distill.views import ViewPolicy
    from teacher_server.precompute import PrecomputeOptions, precompute

    policy = ViewPolicy(name=view_policy, seed=view_seed)
    if policy.name == "plain" and views > 1:
        raise ConfigError(
            f"{views} views of policy plain found, expected 1: plain views are all alike; "
            "use --view-policy augmented"
        )
    source = open_source(data, split).limited(limit)
    report = precompute(
        source=source,
        teacher=choice.load(device),
        path=store,
        options=PrecomputeOptions(
            policy=policy,
            views=views,
            first_view=first_view,
            encoding=encoding,
            batch_size=batch_size,
            block_rows=block_rows,
            workers=workers,
            max_bad_fraction=max_bad_fraction,
        ),
    )
    if as_json:
        click.echo(json.dumps(asdict(report)))
        return
    done = report.store
    click.echo(state_line(done))
    click.echo(size_line(done))
    click.echo(
        f"computed now: {report.images} images in {report.seconds:.1f} s, "
        f"{report.images_per_s:.1f} images/s"
    )
    click.echo(fidelity_line(done))
    for reason, count in sorted(report.bad.items()):
        click.echo(f"bad images: {count}: {reason}")
    click.echo(
        f"next: distill pretrain --student resnet18 --data {data} --targets {store} --out RUN"
    )
