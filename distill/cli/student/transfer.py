"""`distill transfer`: how well pretrained students learn other tasks."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import click

from distill.cli.options import common
from distill.cli.options.checks import device_name, known_models, output_folder
from distill.cli.options.command import PATH, command, extra_settings, option, setting
from distill.cli.options.recipes import recipe_settings
from distill.cli.signals import finish_on_signal
from distill.data.view_policy import MOST_FRAMES

RATES = "3e-4,1e-3,3e-3"
EPOCHS = 40


@command(
    nested=recipe_settings,
    examples=[
        "semantic=RUN0 single=RUN1 --data cifar=DIR --data pets=DIR2 --out TABLE",
        "kd=A0 kd=A1 kd=A2 plain=B0 plain=B1 plain=B2 --data coco=DIR --tags coco=FILE --out TABLE",
    ],
)
@click.argument("starts", metavar="NAME=RUN...", nargs=-1, required=True)
@option(
    "--data",
    "data",
    metavar="NAME=DATA",
    multiple=True,
    required=True,
    help="A task: images with splits train and val, as --data of finetune. May be repeated.",
)
@option(
    "--tags",
    metavar="NAME=FILE",
    multiple=True,
    help="Tags of a task's images, as --tags of finetune.",
)
@setting(
    "--frames",
    metavar="NAME=N",
    multiple=True,
    help="Frames of a task's clips, as --frames of finetune.",
)
@option("--student", callback=known_models, help="timm model of a start NAME=random.")
@option("--lr", metavar="X,X", default=RATES, help="Learning rates to choose from.")
@option("--epochs", type=click.IntRange(1), default=EPOCHS, help="Epochs of each trial.")
@setting("--batch-size", type=click.IntRange(2), default=128, help="Images per step.")
@option("--seeds", type=click.IntRange(1), default=3, help="Trials of each start and task.")
@option(
    "--jobs",
    type=click.IntRange(1),
    show_default="one a GPU, or a core",
    help="Trials at a time.",
)
@option("--out", required=True, type=PATH, callback=output_folder, help="Folder of the table.")
@option("--device", default="auto", callback=device_name, help="auto, cpu, cuda or cuda:N.")
@common.as_json
def transfer(
    starts: Sequence[str],
    data: Sequence[str],
    tags: Sequence[str],
    frames: Sequence[str],
    student: str | None,
    lr: str,
    epochs: int,
    batch_size: int,
    seeds: int,
    jobs: int | None,
    out: Path,
    device: str,
    as_json: bool,
) -> None:
    """Fine-tune runs on tasks, learning rate chosen on training images, and tabulate accuracy.

    A name that is given several runs has one for each pretraining seed. NAME=random starts from
    random weights. Run the same command again to resume.
    """
    given = {"epochs": epochs, "batch_size": batch_size, **extra_settings()}
    _require_free(given)
    rates = _rates(lr)
    begun, named, tag_files, clips = (_pairs(each) for each in (starts, data, tags, frames))
    from distill.files import sole_writer
    from distill.trainers.transfer import (
        Start,
        Task,
        TransferPlan,
        as_table,
        digests_of,
        recipes_of,
        transfer,
    )

    _require_runs(begun, seeds)
    _require_once(named, "--data")
    _require_once(tag_files, "--tags", named)
    _require_once(clips, "--frames", named)
    all_starts = tuple(Start(name=name, runs=runs) for name, runs in begun.items())
    tasks = tuple(
        Task(
            name=name,
            data=where if "://" in where else str(Path(where).absolute()),
            tags=str(Path(tag_files[name][0]).absolute()) if name in tag_files else None,
            frames=_frames(clips[name][0]) if name in clips else 0,
        )
        for name, (where,) in named.items()
    )
    say = partial(click.echo, err=True)
    recipes = recipes_of(all_starts, given, student)
    for name, recipe in recipes.items():
        say(f"model: {name}: {recipe.student} at {recipe.image_size} pixels")
    if len({(recipe.student, recipe.image_size) for recipe in recipes.values()}) > 1:
        say("WARNING: these starts differ in more than their weights")
    plan = TransferPlan(
        starts=all_starts,
        tasks=tasks,
        rates=rates,
        seeds=seeds,
        recipes=recipes,
        digests=digests_of(all_starts, tasks, say),
    )
    devices, at_once = common.spread(jobs, device)
    threads = max(1, common.CORES // at_once)
    with (
        finish_on_signal("transfer", "the trials under way") as stop,
        sole_writer(out, cure="wait for it, stop it, or choose another --out", say=say),
    ):
        cells = transfer(
            plan, out, jobs=at_once, devices=devices, threads=threads, stop=stop, say=say
        )
        if not cells:
            stop.end()
    if as_json:
        click.echo(json.dumps([{**asdict(cell), "mean": cell.mean} for cell in cells]))
        return
    for line in as_table(cells):
        click.echo(line)
    for cell in cells:
        if cell.lr_at_an_end:
            say(
                f"{cell.start} on {cell.task}: learning rate {cell.lr:g} is at an end of those "
                "tried; pass others to --lr"
            )


def _rates(text: str) -> tuple[float, ...]:
    from distill.errors import ConfigError

    try:
        rates = tuple(sorted({float(word) for word in text.split(",")}))
    except ValueError:
        rates = ()
    if not rates or not all(0 < rate < float("inf") for rate in rates):
        raise ConfigError(f"--lr {text!r} found, expected learning rates such as {RATES}")
    return rates


def _frames(text: str) -> int:
    from distill.errors import ConfigError

    if not text.isdecimal() or not 1 <= int(text) <= MOST_FRAMES:
        raise ConfigError(f"--frames {text!r} found, expected 1 to {MOST_FRAMES}")
    return int(text)


def _pairs(words: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """What is given by name, in order."""
    from distill.errors import ConfigError

    found: dict[str, tuple[str, ...]] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not (equals and value and re.fullmatch(r"[\w(][\w (),.+-]{0,59}", name)):
            raise ConfigError(
                f"{word!r} found, expected NAME=…, a name of your own: letters, digits and spaces"
            )
        found[name] = (*found.get(name, ()), value)
    return found


def _require_free(given: dict[str, Any]) -> None:
    """Each trial has its own of these."""
    from distill.errors import ConfigError

    if own := [key for key in ("init", "lr", "scheme", "seed", "student") if key in given]:
        raise ConfigError(f"-o {own[0]} found, which each trial has of its own; leave it out")


def _require_runs(begun: dict[str, tuple[str, ...]], seeds: int) -> None:
    """One run for all seeds, or one for each."""
    from distill.errors import ConfigError

    for name, runs in begun.items():
        if len(runs) not in (1, seeds):
            raise ConfigError(
                f"{len(runs)} runs of {name} found, expected one, or one for each of {seeds} seeds;"
                " pass --seeds"
            )


def _require_once(
    given: dict[str, tuple[str, ...]], option: str, known: dict[str, Any] | None = None
) -> None:
    from distill.errors import ConfigError

    for name, values in given.items():
        if len(values) > 1:
            raise ConfigError(f"{option} {name}=… found {len(values)} times, expected once")
        if known is not None and name not in known:
            raise ConfigError(f"{option} {name}=… found, expected a name of --data: {[*known]}")
