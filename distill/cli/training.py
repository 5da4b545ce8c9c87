"""What the commands that train share: joining torchrun's processes, signals, and the report."""

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from distill.cli.interrupts import finishing_first
from distill.cli.recipes import RunChoice

if TYPE_CHECKING:
    from trainers.loop import TrainReport
    from trainers.world import Machine


def own_device(asked: str) -> str:
    """`asked`, or of several processes on a machine each its own GPU."""
    from distill.cli.share import share_of_work

    return share_of_work(None, None, os.environ).device(asked)


def train_as_command(
    title: str,
    run_choice: RunChoice,
    out: Path,
    device: str,
    workers: int,
    as_json: bool,
    train: "Callable[[Machine, dict[str, Any]], TrainReport]",
) -> "TrainReport | None":
    """Run `train` with its machine and keywords (checkpoint_every, stop, say).

    None where it was stopped before its end, and in processes that are not to speak.
    """
    from distill.models import pick_device
    from trainers.world import Machine, joined

    with ExitStack() as stack:
        world = stack.enter_context(joined(os.environ))
        stop = stack.enter_context(finishing_first(title, "the step"))
        if run_choice.wandb and world.leads:
            stack.enter_context(_wandb(run_choice.wandb, out))
        machine = Machine(
            device=pick_device(own_device(device)),
            world=world,
            workers=workers,
            compiled=run_choice.compiled,
        )
        shown = partial(click.echo, err=True) if as_json else click.echo
        report = train(
            machine,
            {
                "checkpoint_every": run_choice.checkpoint_every,
                "stop": stop,
                "say": shown if world.leads else _silent,
            },
        )
    if report.stopped:
        if world.leads:
            stop.end()
        return None
    return report if world.leads else None


def report_training(report: "TrainReport", as_json: bool) -> None:
    """Print what came of it."""
    if as_json:
        document = asdict(report)
        click.echo(json.dumps({**document, "student": str(report.student)}))
        return
    for name, value in (report.validation or {}).items():
        shown = name.replace("_", " ")
        if isinstance(value, float):
            click.echo(f"{shown} {100 * value:.2f}%")
        elif name.endswith("per_hierarchy"):
            click.echo(f"{shown} {' '.join(f'{100 * v:.1f}' for v in value)}")
    if report.unreadable:
        click.echo(f"images that could not be read were left out {report.unreadable} times")
    click.echo(
        f"{report.steps} steps at {report.images_per_s:.1f} images/s; student: {report.student}"
    )


def _silent(text: str) -> None:
    """Of several processes one speaks."""


def _wandb(project: str, out: Path) -> Any:
    from distill.errors import ConfigError

    try:
        import wandb
    except ImportError as error:
        raise ConfigError(
            "--wandb found, but the package is not installed; run pip install '.[wandb]'"
        ) from error
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
