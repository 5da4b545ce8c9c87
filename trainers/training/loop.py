"""The training loop, read from top to bottom: one student, any objective, any targets.

Covers one device or several, gradient accumulation, averaged weights, resume at any step with the
same numbers, and stopping. What is trained on and why is the caller's:
`distill.trainers.training.pretrain`, `distill.trainers.training.finetune`.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from distill.errors import (
    ConfigError,
    DataUnavailableError,
    TeacherUnavailableError,
)
from distill.models.creation import check_input
from distill.models.frames import logits_of
from distill.progress import progress
from distill.targets.tensors import to_device
from distill.trainers.evaluation.evaluate import Stopped, Validate
from distill.trainers.models.meaning import is_taught
from distill.trainers.models.student import create_student, student_input, write_student
from distill.trainers.process_group import Machine, Votes, World
from distill.trainers.recipe import Recipe
from distill.trainers.training.balance import PULL, automatic_weight
from distill.trainers.training.batches import TrainingSet, filled_up, moved_ahead
from distill.trainers.training.checkpoint import (
    CheckpointWriter,
    Progress,
    read_checkpoint,
    restore,
)
from distill.trainers.training.mixing import Losses, compiled_losses, mixed, mixed_losses
from distill.trainers.training.objectives import Objective
from distill.trainers.training.optimizer import make_optimizer, make_schedule
from distill.trainers.training.pace import watched
from distill.trainers.training.record import Record, StepLosses


@dataclass(frozen=True, kw_only=True)
class RunKeeping:
    """What is kept of a run, and when; changes nothing of what is learned.

    checkpoint_minutes: between checkpoints; every epoch ends with one as well. checkpoint_every:
    steps between them too, 0 for none. validate_every: epochs; the last one always is validated.
    keep_epochs: of how many of the last epochs the student is kept, beside the best.
    """

    checkpoint_minutes: float = 10.0
    checkpoint_every: int = 0
    validate_every: int = 1
    keep_epochs: int = 0


DEFAULT_KEEPING = RunKeeping()


@dataclass(frozen=True, kw_only=True)
class TrainReport:
    """validation: after the last epoch, None without images for it. stopped: before its end."""

    student: Path
    steps: int  # of this part of the run
    images_per_s: float  # of this part, validation included
    unreadable: Mapping[str, str]  # why, by key, of images that were left out
    validation: Mapping[str, Any] | None
    stopped: bool


def train(
    *,
    recipe: Recipe,
    objective: Objective,
    images: TrainingSet,
    validate: Validate | None,
    identity: Mapping[str, Any],
    out: Path,
    machine: Machine,
    keeping: RunKeeping,
    stop: Callable[[], bool],
    say: Callable[[str], None],
) -> TrainReport:
    """Train, or go on training, until the recipe's last epoch or until `stop` says so.

    identity: what a run that goes on must find again, beside the recipe.
    """
    device, world = machine.device, machine.world
    steps_per_epoch = images.steps_per_epoch(recipe, world)
    total_steps = recipe.epochs * steps_per_epoch
    targets = images.targets

    num_classes, model_input = objective.hierarchy.num_classes, student_input(recipe)
    run = {"recipe": recipe.to_json(), **identity}
    saved = read_checkpoint(out, run, world)
    # Weights that a checkpoint replaces need not be there any more.
    start = replace(recipe, init="random") if saved else recipe
    model = create_student(start, objective.hierarchy.synsets, say)
    if recipe.sync_bn:
        model = world.synchronised(model, device)
    elif world.size > 1 and any(isinstance(part, _BatchNorm) for part in model.modules()):
        own = recipe.batch_size // (world.size * recipe.accumulate)
        say(
            f"batch norm: each process by its own {own} images; "
            "-o sync_bn=true takes those of all, on GPUs"
        )
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    check_input(model, recipe.student, model_input, num_classes)
    say(
        f"student: {recipe.student}, {recipe.scheme} over {num_classes} classes of "
        f"{objective.hierarchy.name}; input {model_input}"
    )
    if left_out := images.left_out(recipe, world):
        say(
            f"each epoch leaves {left_out} of {len(images)} images out, which fill no batch; "
            "-o drop_last=false learns from them"
        )
    averaged = (
        ModelEmaV3(model, decay=recipe.ema_decay, use_warmup=recipe.ema_warmup)
        if recipe.ema_decay
        else None
    )
    judged = averaged.module if averaged else model
    optimizer = make_optimizer(recipe, model)
    schedule = make_schedule(recipe, optimizer, total_steps)
    done = Progress(order=images.order)
    if saved:
        done = restore(out, saved, model=model, averaged=averaged, optimizer=optimizer)
        images = replace(images, order=done.order)
        say(f"resuming at step {done.steps} of {total_steps}")
        epochs = saved["run"]["recipe"]["epochs"]
        if done.steps > total_steps:
            raise ConfigError(
                f"{out}: {done.steps} steps are done, {recipe.epochs} epochs have {total_steps}, "
                "expected more to come; raise --epochs, or choose another --out"
            )
        if epochs != recipe.epochs:
            say(f"epochs: {epochs} → {recipe.epochs}; the learning rate follows the new schedule")
    elif targets:
        done = replace(done, kd_weight=_kd_weight(recipe, objective, images, world, say))
    kd_weight = done.kd_weight
    parallel = world.parallel(model, device)
    losses_of: Callable[..., Losses] = mixed_losses
    if machine.compiled:
        parallel = torch.compile(parallel)  # type: ignore[assignment]
        if device.type == "cuda":  # elsewhere it would take a minute to spare half a millisecond
            losses_of = compiled_losses()
    batches = images.batches(
        recipe,
        world,
        first_step=done.steps,
        size=model_input.size,
        workers=machine.workers,
        pin_memory=device.type == "cuda",
    )
    on_device = watched(moved_ahead(batches, device), machine.workers, say)
    record = Record(out / "tensorboard", world, done.steps + 1)
    losses, votes = StepLosses(device), Votes(world, done.steps)
    first_step, seen, stopped = done.steps, 0, False
    started = time.monotonic()

    checkpoints, saved_at = CheckpointWriter(out, run), time.monotonic()

    def save() -> None:
        nonlocal saved_at
        _require_finite(model, done.steps)
        if world.leads:
            record.flush()
            checkpoints.save(model=model, averaged=averaged, optimizer=optimizer, progress=done)
        saved_at = time.monotonic()

    def write(path: Path) -> None:
        taught = is_taught(targets, kd_weight)
        write_student(judged.state_dict(), recipe, objective.hierarchy, path, taught=taught)

    def note_losses() -> None:
        nonlocal done
        values, untaught = losses.select(world, done.steps, images.source.samples)
        labels_sum, kd_sum = np.sum(values, axis=0) + done.loss_sums
        done = replace(
            done,
            loss_sums=(float(labels_sum), float(kd_sum)),
            untaught=done.untaught + untaught,
        )
        record.losses(done.steps + 1 - len(values), values, kd_weight)
        record.scalars(done.steps, {"lr": optimizer.param_groups[0]["lr"]})

    def save_what_is_done() -> None:
        losses.give_up()
        if world.size == 1 and done.steps > first_step:  # others may wait elsewhere
            if losses.steps:
                note_losses()
            save()
            checkpoints.wait()

    model.train()
    with (
        saved_where_unavailable(save_what_is_done, stop),
        progress("train", total_steps, "steps", done=done.steps, shown=world.leads) as tick,
    ):
        while not stopped:
            if len(done.history) < done.steps // steps_per_epoch:
                ended = len(done.history) + 1
                due = ended % keeping.validate_every == 0 or ended == recipe.epochs
                validation: Mapping[str, Any] = {}
                unaveraged: Mapping[str, Any] = {}
                world.share_buffers(model)
                if averaged:
                    world.share_buffers(averaged.module)
                try:
                    if validate and due:
                        validation = validate(judged, model_input, stop)
                    if validate and due and averaged:
                        unaveraged = validate(model, model_input, stop)
                except Stopped:
                    stopped = True
                    break
                epoch = _epoch_record(done, steps_per_epoch, validation, unaveraged)
                history = (*done.history, epoch)
                done = replace(done, loss_sums=(0.0, 0.0), untaught=0, history=history)
                record.scalars(done.steps, _prefixed("validation", validation))
                record.scalars(done.steps, _prefixed("validation_unaveraged", unaveraged))
                say(_epoch_line(epoch))
                if world.leads and _is_best(done.history):
                    write(out / "best.safetensors")
                if world.leads and keeping.keep_epochs:
                    write(out / f"epoch-{ended}.safetensors")
                    for suffix in (".safetensors", ".json"):
                        old = out / f"epoch-{ended - keeping.keep_epochs}{suffix}"
                        old.unlink(missing_ok=True)
                save()
            if done.steps == total_steps:
                break

            step, epoch_number = done.steps, done.steps // steps_per_epoch
            schedule.step_update(step)
            torch.manual_seed(_seed(recipe.seed, step, world.rank))
            losses.begin()
            for part in range(recipe.accumulate):
                batch, images_of_step, pixels = next(on_device)
                rows = batch.rows
                labels = to_device(objective.labels(rows), device)
                share = len(rows) / images_of_step
                last = part == recipe.accumulate - 1
                with _gradients_averaged(parallel, world, now=last):
                    inputs, own_share = mixed(
                        model_input.normalise(pixels), mixup=recipe.mixup, cutmix=recipe.cutmix
                    )
                    if machine.compiled:  # for one shape
                        inputs = filled_up(inputs, len(rows) + len(batch.bad))
                    with _autocast(recipe, device):
                        logits = logits_of(parallel, inputs)[: len(rows)]
                    answers, untaught = None, 0
                    if targets:
                        answers = targets.fetch(
                            images.source.ids[rows],
                            targets.view(epoch_number),
                            images.pixels_for_teacher(batch),
                        )
                        untaught = images.note_untaught(rows, answers)
                        answers = answers.to(device)
                    loss, kd = losses_of(objective, logits, labels, answers, own_share)
                    # The mean over all images of the step, whoever has them.
                    ((loss + kd_weight * kd) * (share * world.size)).backward()
                losses.add(labels=loss, kd=kd, share=share, rows=rows, untaught=untaught)
                seen += len(rows)
            if recipe.clip_grad:
                nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_grad)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if averaged:
                averaged.update(model, step)
            done = replace(done, steps=step + 1)
            if targets and epoch_number + 1 < recipe.epochs:
                targets.prepare(epoch_number + 1)
            tick(1, f"epoch {epoch_number + 1}")

            late = time.monotonic() - saved_at > 60 * keeping.checkpoint_minutes
            epoch_ends = done.steps % steps_per_epoch == 0
            stopped, late = votes.any(done.steps, stop(), late, now=epoch_ends)
            every = keeping.checkpoint_every
            due = epoch_ends or stopped or late or bool(every and done.steps % every == 0)
            if due or losses.full:
                note_losses()
            if due:
                save()
    checkpoints.wait()
    record.close()
    finished = done.steps == total_steps and len(done.history) == recipe.epochs
    student = out / "student.safetensors"
    if world.leads and finished:
        write(student)
    return TrainReport(
        student=student,
        steps=done.steps - first_step,
        images_per_s=seen * world.size / max(time.monotonic() - started, 1e-9),
        unreadable={
            images.source.samples[row].key: reason
            for row, reason in sorted(world.gather(images.bad).items())
        },
        validation=done.history[-1].get("validation") if done.history else None,
        stopped=not finished,
    )


def _kd_weight(
    recipe: Recipe,
    objective: Objective,
    images: TrainingSet,
    world: World,
    say: Callable[[str], None],
) -> float:
    """The recipe's, or the automatic one, the same in all processes."""
    if recipe.kd_weight != "auto":
        return recipe.kd_weight
    assert images.targets
    rows = np.flatnonzero(images.kept)
    weight = automatic_weight(
        objective, recipe.divergence, images.targets, images.source, rows, images.policy
    )
    weight = float(world.sum(torch.tensor(weight, dtype=torch.float64))) / world.size
    say(
        f"KD weight: {weight:.4g}, at which the teacher pulls {PULL[recipe.divergence]:g} times as "
        "hard as the labels at a student that knows nothing"
    )
    return weight


@contextmanager
def saved_where_unavailable(save: Callable[[], None], stop: Callable[[], bool]) -> Iterator[None]:
    """Save before the error that a server or a disk does not answer; no error where it is to stop.

    Whoever waits for them hears a signal by giving up.
    """
    try:
        yield
    except (TeacherUnavailableError, DataUnavailableError):
        save()
        if not stop():
            raise


def _require_finite(model: nn.Module, step: int) -> None:
    """Before they are saved: a checkpoint of such weights is of no use."""
    finite = torch.stack([parameter.isfinite().all() for parameter in model.parameters()])
    if not finite.all():
        raise ConfigError(
            f"the weights after step {step} contain NaN or Inf, expected finite numbers; the last "
            "checkpoint is kept: lower --lr"
        )


def _seed(seed: int, step: int, rank: int) -> int:
    """Seed everything that a step draws, such as dropout."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> 1)


def _autocast(recipe: Recipe, device: torch.device) -> AbstractContextManager[object]:
    by_device = "bfloat16" if device.type == "cuda" else "float32"
    precision = by_device if recipe.precision == "auto" else recipe.precision
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def _gradients_averaged(
    parallel: nn.Module, world: World, *, now: bool
) -> AbstractContextManager[object]:
    """Several processes exchange gradients once a step, with its last part."""
    if world.size == 1 or now:
        return nullcontext()
    no_sync: AbstractContextManager[object] = parallel.no_sync()  # type: ignore[operator]
    return no_sync


def _epoch_record(
    done: Progress,
    steps_per_epoch: int,
    validation: Mapping[str, Any],
    unaveraged: Mapping[str, Any],
) -> dict[str, Any]:
    labels, kd = (total / steps_per_epoch for total in done.loss_sums)
    record: dict[str, Any] = {
        "epoch": len(done.history) + 1,
        "label_loss": labels,
        "kd_loss": kd,
        "untaught": done.untaught,
    }
    if validation:
        record["validation"] = dict(validation)
    if unaveraged:
        record["validation_unaveraged"] = dict(unaveraged)
    return record


def _is_best(history: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the last epoch was judged best so far, by the first figure of its validation."""
    scores = [
        next((v for v in record.get("validation", {}).values() if isinstance(v, float)), None)
        for record in history
    ]
    last = scores[-1]
    return last is not None and all(s is None or s < last for s in scores[:-1])


def _epoch_line(record: Mapping[str, Any]) -> str:
    line = f"epoch {record['epoch']}: label loss {record['label_loss']:.4f}, KD loss "
    line += f"{record['kd_loss']:.4f}"
    if record["untaught"]:
        line += f" ({record['untaught']} images without an answer of the teacher)"
    for kind in ("validation", "validation_unaveraged"):
        for name, value in _prefixed(kind, record.get(kind, {})).items():
            line += f", {name.replace('/', ' ').replace('_', ' ')} {100 * value:.2f}%"
    return line


def _prefixed(prefix: str, values: Mapping[str, Any]) -> dict[str, float]:
    return {f"{prefix}/{name}": v for name, v in values.items() if isinstance(v, float)}
