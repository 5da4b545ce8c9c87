"""`distill pretrain`: train a student, with or without a store."""

import json
from pathlib import Path
from typing import Literal

import click

from distill.cli import options, viewing


@click.command()
@click.option("--student", required=True, help="timm model name.")
@options.data
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the run.")
@click.option(
    "--targets",
    help="Store (a folder or s3://…) or teacher server (http://…); without, labels alone.",
)
@click.option(
    "--api-key", envvar="DISTILL_API_KEY", help="Of the teacher server; or in DISTILL_API_KEY."
)
@click.option("--label-set", help="Name or JSON; the store's by default.")
@click.option("--scheme", default="semantic", show_default=True)
@click.option("--kd-weight", type=float, default=20.0, show_default=True)
@click.option("--divergence", type=click.Choice(["mse", "kl"]), default="mse", show_default=True)
@viewing.views
@click.option("--image-size", type=click.IntRange(8, 4096), help="Pixels; the teacher's, or 224.")
@click.option("--epochs", type=int, default=80, show_default=True)
@click.option("--batch-size", type=int, default=128, show_default=True)
@click.option("--lr", type=float, default=3e-4, show_default=True)
@click.option("--weight-decay", type=float, default=1e-4, show_default=True)
@click.option("--label-smoothing", type=float, default=0.2, show_default=True)
@click.option("--init", default="random", show_default=True, help="random, pretrained or a file.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--checkpoint-every", type=click.IntRange(1), default=500, show_default=True)
@click.option(
    "--cache",
    type=click.Path(path_type=Path),
    default=Path("~/.cache/distill"),
    show_default=True,
    help="Folder of decoded views.",
)
@click.option(
    "--cache-gib",
    type=click.FloatRange(0, 2**30),
    help="Most it may hold; all by default.",
)
@click.option(
    "--read",
    type=click.Choice(["auto", "resident", "streamed"]),
    default="auto",
    show_default=True,
    help="Whole views decoded into --cache, or blocks as needed; auto by what fits.",
)
@options.limit
@options.machine
@options.as_json
def pretrain(
    viewing: viewing.ViewChoice,
    student: str,
    data: Path,
    out: Path,
    targets: str | None,
    api_key: str | None,
    label_set: str | None,
    scheme: str,
    kd_weight: float,
    divergence: Literal["mse", "kl"],
    image_size: int | None,
    epochs: int,
    batch_size: int,
    lr: float,
    weight_decay: float,
    label_smoothing: float,
    init: str,
    seed: int,
    checkpoint_every: int,
    cache: Path,
    cache_gib: float | None,
    read: Literal["auto", "resident", "streamed"],
    limit: int | None,
    device: str,
    workers: int,
    as_json: bool,
) -> None:
    """Train STUDENT on DATA; with --targets it also learns what the teacher says.

    Running the same command again goes on at the last checkpoint in --out.
    """
    from functools import partial

    from distill.data import has_split, open_source
    from distill.errors import ConfigError
    from distill.hierarchy import resolve
    from distill.models import pick_device
    from store.cache import Cache
    from store.logit_store import LogitStore
    from teacher_server.client import TeacherClient
    from trainers.pretrain import pretrain
    from trainers.recipe import Recipe
    from trainers.store_targets import StoreTargets

    if cache_gib is not None and not cache_gib >= 0:
        raise ConfigError(f"--cache-gib {cache_gib} found, expected a number of GiB")
    answers: StoreTargets | TeacherClient | None = None
    if targets and targets.startswith(("http://", "https://")):
        client = TeacherClient(targets, api_key=api_key)
        click.get_current_context().call_on_close(client.close)
        answers = client
    elif targets:
        cache_bytes = None if cache_gib is None else int(cache_gib * 2**30)
        decoded = Cache(cache.expanduser(), cache_bytes)
        answers = StoreTargets(LogitStore.open(targets), decoded, None if read == "auto" else read)
    recipe = Recipe(
        student=student,
        image_size=image_size or (answers.input_size[0] if answers else 224),
        scheme=scheme,
        kd_weight=kd_weight,
        divergence=divergence,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        weight_decay=weight_decay,
        label_smoothing=label_smoothing,
        init=init,
        seed=seed,
    )
    if answers and not label_set:
        hierarchy = answers.hierarchy
    else:
        hierarchy = resolve(label_set or "imagenet21k-p-fall11")
    report = pretrain(
        recipe=recipe,
        source=open_source(data).limited(limit),
        validation=open_source(data, "val") if has_split(data, "val") else None,
        hierarchy=hierarchy,
        targets=answers,
        policy=answers.policy if answers and answers.policy else viewing.policy(),
        out=out,
        device=pick_device(device),
        workers=workers,
        checkpoint_every=checkpoint_every,
        say=partial(click.echo, err=True) if as_json else click.echo,
    )
    accuracy = report.accuracy
    if as_json:
        click.echo(
            json.dumps(
                {
                    "student": str(report.student),
                    "steps": report.steps,
                    "images_per_s": report.images_per_s,
                    "unreadable": report.unreadable,
                    "semantic_top1": accuracy.total if accuracy else None,
                    "top1_per_hierarchy": accuracy.per_hierarchy if accuracy else None,
                }
            )
        )
        return
    if accuracy:
        per_hierarchy = " ".join(f"{100 * a:.1f}" for a in accuracy.per_hierarchy)
        click.echo(f"semantic top-1 {100 * accuracy.total:.2f}%, per hierarchy {per_hierarchy}")
    if report.unreadable:
        click.echo(f"images that could not be read were left out {report.unreadable} times")
    click.echo(
        f"{report.steps} steps at {report.images_per_s:.1f} images/s; student: {report.student}"
    )
