"""Checkpoints: everything that training needs to go on as if it had never stopped.

Randomness is not among it: what a step draws is a function of seed, step and rank. Nor is the
number of processes, which may change from one part of a run to the next.
"""

import io
import json
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from distill.data.order import SampleOrder
from distill.errors import ConfigError, first_line
from distill.files import write_atomically
from distill.settings import flat
from distill.trainers.process_group import World

# Of a recipe, for a run that goes on: what is computed stays the same but for rounding, or is more.
MAY_CHANGE = {"recipe.accumulate", "recipe.precision", "recipe.epochs"}
DIGESTS = {
    "dataset_digest": "images or labels",
    "validation_digest": "validation images or labels",
    "hierarchy_digest": "classes",
    "tags_digest": "tags",
}


@dataclass(frozen=True, kw_only=True)
class Progress:
    """steps: done by the optimiser. history: epochs judged.

    loss_sums, untaught: of the epoch under way, on labels and targets, and how many of its images
    the targets had no answer for.

    order of the samples and kd_weight stay what they were when the run began.
    """

    order: SampleOrder
    kd_weight: float = 0.0
    steps: int = 0
    loss_sums: tuple[float, float] = (0.0, 0.0)
    untaught: int = 0
    history: tuple[Mapping[str, Any], ...] = ()


class CheckpointWriter:
    """Writes checkpoints beside training: a step waits for the one before it, not for its own."""

    def __init__(self, folder: Path, run: Mapping[str, Any]) -> None:
        """run: the recipe and identities that a resumed run shares."""
        self.folder, self.run = folder, run
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._written: Future[None] | None = None

    def save(
        self,
        *,
        model: nn.Module,
        averaged: nn.Module | None,
        optimizer: Optimizer,
        progress: Progress,
    ) -> None:
        """checkpoint.pt to go on from, run.json to read, as they are now. averaged: its average.

        Raises:
            OSError: an earlier one could not be written.
        """
        self.wait()
        buffer = io.BytesIO()
        torch.save(
            {
                "model": model.state_dict(),
                "averaged": averaged.state_dict() if averaged else None,
                "optimizer": optimizer.state_dict(),
                "run": dict(self.run),
                "steps": progress.steps,
                "loss_sums": list(progress.loss_sums),
                "untaught": progress.untaught,
                "order": asdict(progress.order),
                "kd_weight": progress.kd_weight,
                "history": [dict(record) for record in progress.history],
            },
            buffer,
        )
        readable = {
            **self.run,
            "kd_weight": progress.kd_weight,
            "steps": progress.steps,
            "history": list(progress.history),
        }
        text = (json.dumps(readable, indent=1) + "\n").encode()
        self._written = self._thread.submit(self._write, buffer, text)

    def wait(self) -> None:
        """Until what was saved is on the disk.

        Raises:
            OSError: it could not be written.
        """
        written, self._written = self._written, None
        if written:
            written.result()

    def _write(self, checkpoint: io.BytesIO, run: bytes) -> None:
        """Each is whole at every moment."""
        write_atomically(self.folder / "checkpoint.pt", checkpoint.getbuffer())
        write_atomically(self.folder / "run.json", run)


def read_checkpoint(folder: Path, run: Mapping[str, Any], world: World) -> dict[str, Any] | None:
    """The last checkpoint, on the CPU of every process; None where there is none.

    Rank 0 alone reads the file.

    Raises:
        ConfigError: the checkpoint is of another run, or damaged.
    """
    path = folder / "checkpoint.pt"
    content = world.from_leader(path.read_bytes() if world.leads and path.exists() else None)
    if content is None:
        return None
    try:
        saved: dict[str, Any] = torch.load(
            io.BytesIO(content), map_location="cpu", weights_only=True
        )
        before: dict[str, Any] = saved["run"]
        then, now = flat(before), flat(run)
    except Exception as error:  # torch.load raises whatever damaged bytes provoke
        raise _unreadable(path, error) from error
    require_same(path, then, now)
    return saved


def restore(
    folder: Path,
    saved: Mapping[str, Any],
    *,
    model: nn.Module,
    averaged: nn.Module | None,
    optimizer: Optimizer,
) -> Progress:
    """Fill model, average and optimiser with what was saved.

    Raises:
        ConfigError: it is damaged.
    """
    try:
        model.load_state_dict(saved["model"])
        if averaged:
            averaged.load_state_dict(saved["averaged"])
        optimizer.load_state_dict(saved["optimizer"])
        labels_sum, kd_sum = saved["loss_sums"]
        return Progress(
            steps=int(saved["steps"]),
            loss_sums=(float(labels_sum), float(kd_sum)),
            untaught=int(saved.get("untaught", 0)),
            history=tuple(saved["history"]),
            order=SampleOrder(**saved["order"]),
            kd_weight=float(saved.get("kd_weight", saved["run"]["recipe"]["kd_weight"])),
        )
    except Exception as error:  # modules raise whatever other tensors provoke
        raise _unreadable(folder / "checkpoint.pt", error) from error


def _unreadable(path: Path, error: Exception) -> ConfigError:
    return ConfigError(
        f"{path}: not a readable checkpoint ({first_line(error)}); expected one that this version "
        "of distill wrote: delete it, or choose another --out"
    )


def require_same(path: Path, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """That a run goes on with what it began with.

    Raises:
        ConfigError: it does not; names the first setting that differs, by its dotted key.
    """
    for key in sorted((then.keys() | now.keys()) - MAY_CHANGE):
        before, here = then.get(key), now.get(key)
        if before == here:
            continue
        if what := DIGESTS.get(key):
            raise ConfigError(
                f"{path}: begun with other {what} ({key} is {_short(before)}, this run has "
                f"{_short(here)}); repeat the command it was made with to go on, or choose "
                "another --out"
            )
        raise ConfigError(
            f"{path}: {key} is {before!r}, this run has {here!r}; repeat the command it was made "
            "with to go on, or choose another --out"
        )


def _short(digest: object) -> str:
    """Enough of it to tell two apart."""
    return repr(digest[:12] if isinstance(digest, str) else digest)
