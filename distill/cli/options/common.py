"""Options that several commands share."""

import os
from collections.abc import Callable
from typing import Any

import click

from distill.cli.options.checks import (
    device_name,
    known_label_set,
)
from distill.cli.options.command import FILE, option, setting
from distill.hierarchy.names import DEFAULT_LABEL_SET
from distill.process_pool import processes_here

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]
CORES = len(os.sched_getaffinity(0))  # a container or taskset may have few
MOST_DECODERS = 16

samples: Decorator = setting(
    "--samples",
    type=FILE,
    help="Train on these samples only: a list of keys, or a CSV with key and wnid.",
)
scheme: Decorator = option(
    "--scheme",
    type=click.Choice(["single-label", "multi-label", "semantic"]),
    show_default="as trained",
    help="How to read the logits.",
)
limit: Decorator = option(
    "--limit", type=click.IntRange(1), help="Use only N images, a fair and repeatable choice."
)
as_json: Decorator = option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
max_bad_fraction: Decorator = setting(
    "--max-bad-fraction",
    type=click.FloatRange(0, 1),
    default=0.001,
    help="Largest tolerated share of unreadable images.",
)
processes: Decorator = option(
    "--workers",
    type=click.IntRange(0),
    default=CORES,
    show_default="cores",
    help="Worker processes; 0 works in this process.",
)


def label_set(shown: str = "", *, setting: bool = False) -> Decorator:
    """--label-set. shown: what is taken without it; a name is given to the command where empty."""
    decorate: Decorator = option(
        "--label-set",
        default=None if shown else DEFAULT_LABEL_SET,
        show_default=shown or True,
        callback=known_label_set,
        setting=setting,
        help="Label set and hierarchy: a bundled name or a JSON file; NAME:flat for one softmax "
        "over all of its classes.",
    )
    return decorate


def decoders() -> int:
    """One for each core of this process; torchrun's share theirs, Slurm's have their own.

    Not more than some: a container may have less than it sees.
    """
    return max(1, min(MOST_DECODERS, CORES // processes_here()))


def machine(command: Callable[..., Any]) -> Callable[..., Any]:
    """--device and --workers."""
    workers: Decorator = option(
        "--workers",
        type=click.IntRange(0),
        default=decoders,
        show_default="its share of the cores",
        help="Processes that decode images.",
    )
    device: Decorator = option(
        "--device", default="auto", callback=device_name, help="auto, cpu, cuda or cuda:N."
    )
    return device(workers(command))


def spread(jobs: int | None, device: str) -> tuple[list[str], int]:
    """The devices that units of work are spread over, and how many of them at a time."""
    from distill.models.devices import devices_named

    devices = devices_named(device)
    return devices, jobs or (len(devices) if devices != ["cpu"] else CORES)


def format_bytes(count: int) -> str:
    """1.5 GiB."""
    for exponent, unit in ((40, "TiB"), (30, "GiB"), (20, "MiB")):
        if count >= 2**exponent:
            return f"{count / 2**exponent:.2f} {unit}"
    return f"{count / 1024:.1f} KiB"
