"""Checkpoints: everything that training needs to go on as if it had never stopped."""

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from distill.errors import ConfigError, first_line
from distill.files import write_atomically


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
    optimizer: Optimizer,
    scheduler: LRScheduler,
    run: Mapping[str, Any],
    progress: Progress,
) -> None:
    """checkpoint.pt to go on from, run.json to read. Each is whole at every moment.

    run: the recipe and identities that a resumed run must share.
    """
    buffer = io.BytesIO()
    torch.save(
        {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "scheduler": scheduler.state_dict(),
            "torch_rng": torch.get_rng_state(),
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
    optimizer: Optimizer,
    scheduler: LRScheduler,
    run: Mapping[str, Any],
) -> Progress:
    """Fill model, optimiser and schedule from the last checkpoint; where there is none, step 0.

    Raises:
        ConfigError: the checkpoint is of another run, or damaged.
    """
    path = folder / "checkpoint.pt"
    if not path.exists():
        return Progress()
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        before: dict[str, Any] = saved["run"]
    except Exception as error:  # torch.load raises whatever damaged bytes provoke
        raise ConfigError(
            f"{path}: not a readable checkpoint ({first_line(error)}); expected one that `distill "
            "pretrain` wrote: delete it, or choose another --out"
        ) from error
    for key in sorted(run.keys() | before.keys()):
        if run.get(key) != before.get(key):
            raise ConfigError(
                f"{path}: {key} is {before.get(key)!r}, this run has {run.get(key)!r}; repeat the "
                "command it was made with to go on, or choose another --out"
            )
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    scheduler.load_state_dict(saved["scheduler"])
    torch.set_rng_state(saved["torch_rng"])
    softmax_sum, kd_sum = saved["loss_sums"]
    return Progress(
        steps=saved["steps"], loss_sums=(softmax_sum, kd_sum), history=tuple(saved["history"])
    )
