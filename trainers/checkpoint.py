"""Checkpoints: everything that training needs to go on as if it had never stopped.

Randomness is not among it: what a step draws is a function of seed, step and rank. Nor is the
number of processes, which may change from one part of a run to the next.
"""

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from distill.errors import ConfigError, first_line
from distill.files import write_atomically
from trainers.world import World


@dataclass(frozen=True, kw_only=True)
class Progress:
    """steps: done by the optimiser. loss_sums: of the epoch under way. history: epochs done."""

    steps: int = 0
    loss_sums: tuple[float, float] = (0.0, 0.0)
    history: tuple[Mapping[str, Any], ...] = ()


def save_checkpoint(
    folder: Path,
    *,
    model: nn.Module,
    averaged: nn.Module | None,
    optimizer: Optimizer,
    run: Mapping[str, Any],
    progress: Progress,
) -> None:
    """checkpoint.pt to go on from, run.json to read. Each is whole at every moment.

    averaged: the weights' moving average. run: the recipe and identities that a resumed run shares.
    """
    buffer = io.BytesIO()
    torch.save(
        {
            "model": model.state_dict(),
            "averaged": averaged.state_dict() if averaged else None,
            "optimizer": optimizer.state_dict(),
            "run": dict(run),
            "steps": progress.steps,
            "loss_sums": list(progress.loss_sums),
            "history": [dict(record) for record in progress.history],
        },
        buffer,
    )
    write_atomically(folder / "checkpoint.pt", buffer.getvalue())
    readable = {**run, "steps": progress.steps, "history": list(progress.history)}
    write_atomically(folder / "run.json", (json.dumps(readable, indent=1) + "\n").encode())


def load_checkpoint(
    folder: Path,
    *,
    model: nn.Module,
    averaged: nn.Module | None,
    optimizer: Optimizer,
    run: Mapping[str, Any],
    world: World,
) -> Progress:
    """Fill model, average and optimiser from the last checkpoint; where there is none, step 0.

    Rank 0 alone reads the file.

    Raises:
        ConfigError: the checkpoint is of another run, or damaged.
    """
    path = folder / "checkpoint.pt"
    content = world.from_leader(path.read_bytes() if world.leads and path.exists() else None)
    if content is None:
        return Progress()
    try:
        saved = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        before: dict[str, Any] = saved["run"]
        _require_same(path, before, run)
        model.load_state_dict(saved["model"])
        if averaged:
            averaged.load_state_dict(saved["averaged"])
        optimizer.load_state_dict(saved["optimizer"])
        labels_sum, kd_sum = saved["loss_sums"]
        return Progress(
            steps=int(saved["steps"]),
            loss_sums=(float(labels_sum), float(kd_sum)),
            history=tuple(saved["history"]),
        )
    except ConfigError:
        raise
    except Exception as error:  # torch.load raises whatever damaged bytes provoke
        raise ConfigError(
            f"{path}: not a readable checkpoint ({first_line(error)}); expected one that this "
            "version of distill wrote: delete it, or choose another --out"
        ) from error


def _require_same(path: Path, before: Mapping[str, Any], run: Mapping[str, Any]) -> None:
    """Names the first setting that differs, by its dotted key."""
    then, now = dict(_flat(before)), dict(_flat(run))
    for key in sorted(then.keys() | now.keys()):
        if then.get(key) != now.get(key):
            raise ConfigError(
                f"{path}: {key} is {then.get(key)!r}, this run has {now.get(key)!r}; repeat the "
                "command it was made with to go on, or choose another --out"
            )


def _flat(document: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in document.items():
        if isinstance(value, Mapping):
            found += _flat(value, f"{prefix}{key}.")
        else:
            found.append((prefix + key, value))
    return found
