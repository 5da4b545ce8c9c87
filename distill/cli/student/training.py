"""Shared by the commands that train: torchrun's processes, signals, the report."""

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from distill.cli.launcher import share_of_work, training_group
from distill.cli.options.recipes import RecipeChoice, RunChoice
from distill.cli.signals import finish_on_signal
from distill.files import sole_writer

CURE = "wait for it, stop it, or choose another --out"

if TYPE_CHECKING:
    from distill.trainers.process_group import Machine
    from distill.trainers.training.loop import TrainReport


def train_as_command(
    title: str,
    recipe_choice: RecipeChoice,
    run_choice: RunChoice,
    out: Path,
    device: str,
    workers: int,
    as_json: bool,
    train: "Callable[[Machine, dict[str, Any]], dict[str, TrainReport]]",
) -> "dict[str, TrainReport]":
    """What `train` makes with its machine and the trainers' other keywords: reports by run.

    No report where it was stopped before its end, or in processes that are not to speak. A wrong
    value of the recipe fails before anything is loaded, an unknown optimizer before any data.
    """
    recipe = recipe_choice.read()
    os.environ.update(training_group(os.environ))
    with finish_on_signal(title, "the current step") as stop, ExitStack() as stack:
        from distill.trainers.process_group import (
            Machine,
            device_of_rank,
            end_with_launcher,
            join_process_group,
        )
        from distill.trainers.training.loop import RunKeeping
        from distill.trainers.training.optimizer import require_optimizer

        require_optimizer(recipe)
        device_name = share_of_work(None, None, os.environ).device(device)
        if "TORCHELASTIC_RUN_ID" in os.environ:
            end_with_launcher()
        say = partial(click.echo, err=True)
        world = stack.enter_context(join_process_group(os.environ, say))
        if world.leads:
            stack.enter_context(sole_writer(out, cure=CURE, say=say))
        if run_choice.wandb:
            stack.enter_context(_wandb(run_choice.wandb, out, sends=world.leads))
        machine = Machine(
            device=device_of_rank(device_name),
            world=world,
            workers=workers,
            compiled=run_choice.compiled,
        )
        shown = partial(click.echo, err=True) if as_json else click.echo
        reports = train(
            machine,
            {
                "keeping": RunKeeping(
                    checkpoint_minutes=run_choice.checkpoint_minutes,
                    checkpoint_every=run_choice.checkpoint_every,
                    validate_every=run_choice.validate_every,
                    keep_epochs=run_choice.keep_epochs,
                ),
                "max_bad_fraction": run_choice.max_bad_fraction,
                "stop": stop,
                "say": shown if world.leads else _silent,
            },
        )
        if any(report.stopped for report in reports.values()):
            stop.end()
        return reports if world.leads else {}


def report_training(report: "TrainReport", as_json: bool) -> None:
    """Print what came of it."""
    if as_json:
        click.echo(json.dumps({**asdict(report), "student": str(report.student)}, allow_nan=False))
        return
    for name, value in (report.validation or {}).items():
        shown = name.replace("_", " ")
        if isinstance(value, float):
            click.echo(f"{shown} {100 * value:.2f}%")
        elif name.endswith("per_hierarchy"):
            shares = ("-" if share is None else f"{100 * share:.1f}" for share in value)
            click.echo(f"{shown} {' '.join(shares)}")
    if report.unreadable:
        key, reason = next(iter(report.unreadable.items()))
        click.echo(
            f"{len(report.unreadable)} images cannot be read and were left out (first: {key!r}, "
            f"{reason})"
        )
    click.echo(
        f"{report.steps} steps at {report.images_per_s:.1f} images/s; student: {report.student}"
    )


def _silent(text: str) -> None:
    """Print nothing: only the first process reports."""


def _wandb(project: str, out: Path, *, sends: bool) -> Any:
    from distill.errors import optional

    with optional("wandb", "--wandb"):
        import wandb
    if not sends:
        return nullcontext()
    out.mkdir(parents=True, exist_ok=True)
    number = hashlib.sha256(str(out.resolve()).encode()).hexdigest()[:12]  # goes on with the run
    return wandb.init(
        project=project,
        name=out.name,
        id=number,
        resume="allow",
        dir=str(out),
        sync_tensorboard=True,
    )
