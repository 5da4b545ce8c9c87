"""Options that several commands share."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click


def data(command: Callable[..., Any]) -> Callable[..., Any]:
    """--data."""
    return click.option(
        "--data",
        required=True,
        help="Folder a class, WebDataset tars, Hugging Face data set, CSV or Parquet of paths; a "
        "path or s3://….",
    )(command)


def machine(command: Callable[..., Any]) -> Callable[..., Any]:
    """--device and --workers."""
    command = click.option(
        "--workers",
        type=click.IntRange(0),
        default=min(8, len(os.sched_getaffinity(0))),  # a container or taskset may have few
        show_default=True,
        help="Processes that decode images.",
    )(command)
    return click.option(
        "--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N."
    )(command)


def processes(command: Callable[..., Any]) -> Callable[..., Any]:
    """--workers, of commands that need no device."""
    return click.option(
        "--workers",
        type=click.IntRange(0),
        default=len(os.sched_getaffinity(0)),
        show_default=True,
        help="Processes; one a core by default, 0 for this one alone.",
    )(command)


def samples(command: Callable[..., Any]) -> Callable[..., Any]:
    """--samples."""
    return click.option(
        "--samples",
        type=click.Path(path_type=Path),
        help="Train on those alone: keys, one a line, or CSV with key and wnid.",
    )(command)


def scheme(command: Callable[..., Any]) -> Callable[..., Any]:
    """--scheme, of commands that ask trained models."""
    return click.option(
        "--scheme",
        type=click.Choice(["single-label", "multi-label", "semantic"]),
        help="How the logits are to be read; as the run was trained by default.",
    )(command)


def limit(command: Callable[..., Any]) -> Callable[..., Any]:
    """--limit."""
    return click.option(
        "--limit", type=click.IntRange(1), help="Use that many images, chosen fairly by hash."
    )(command)


def as_json(command: Callable[..., Any]) -> Callable[..., Any]:
    """--json."""
    return click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")(
        command
    )


def in_bytes(count: int) -> str:
    """1.5 GiB."""
    for exponent, unit in ((40, "TiB"), (30, "GiB"), (20, "MiB")):
        if count >= 2**exponent:
            return f"{count / 2**exponent:.2f} {unit}"
    return f"{count / 1024:.1f} KiB"
