"""Pretrain a student: semantic softmax on the labels, semantic KD on the teacher's answers.

One loop, read from top to bottom. Covers one device, resume from any checkpoint, validation per
hierarchy. Does not cover several devices or other schemes. Where targets come from it does not know
(`distill.training_targets`).
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from distill.data import ImageSource, label_indices
from distill.errors import ConfigError, DataError, StoreMismatchError
from distill.hierarchy import SemanticHierarchy
from distill.loader import ViewBatch, in_batches, load_views
from distill.losses import semantic_kd_loss, semantic_softmax_loss
from distill.metrics import SemanticAccuracy
from distill.models import ModelInput, check_input
from distill.order import SampleOrder
from distill.progress import progress
from distill.sample_id import samples_digest
from distill.training_targets import TrainingTargets
from distill.views import ViewPolicy
from trainers.checkpoint import Progress, load_checkpoint, save_checkpoint
from trainers.evaluate import evaluate
from trainers.recipe import Recipe
from trainers.replay import check_replay
from trainers.student import create_student, export_student, parameter_groups


@dataclass(frozen=True, kw_only=True)
class PretrainReport:
    """accuracy: on the validation split after the last epoch; None without one."""

    student: Path
    steps: int  # of this run
    images_per_s: float  # of this run, validation included
    unreadable: int  # times an image was left out because it could not be read
    accuracy: SemanticAccuracy | None


def pretrain(
    *,
    recipe: Recipe,
    source: ImageSource,
    validation: ImageSource | None,
    hierarchy: SemanticHierarchy,
    targets: TrainingTargets | None,
    policy: ViewPolicy,
    out: Path,
    device: torch.device,
    workers: int,
    checkpoint_every: int = 500,
    say: Callable[[str], None] = print,
) -> PretrainReport:
    """Train, or go on training, what `recipe` says; leaves student.safetensors in `out`.

    targets: None trains on labels alone. policy: the views; those of the targets where they have
    some. Epoch e draws view e, or the view that the targets say.

    Raises:
        StoreMismatchError: the store is of another dataset, hierarchy or set of views.
        ConfigError: `out` holds another run.
    """
    if targets and targets.hierarchy.digest != hierarchy.digest:
        raise StoreMismatchError(
            f"{targets.location}: hierarchy {targets.hierarchy.digest[:12]} found, this run "
            f"expects {hierarchy.digest[:12]}; use targets of that hierarchy, or leave --label-set "
            "out to take theirs"
        )
    labels = label_indices(source, hierarchy)
    validation_labels = label_indices(validation, hierarchy) if validation else None
    dataset_digest = samples_digest(source.ids, labels)
    if targets:
        targets.require_dataset(dataset_digest, len(source))
        _check_views(targets, source, policy, say)
    steps_per_epoch = len(source) // recipe.batch_size
    if not steps_per_epoch:
        raise ConfigError(
            f"{len(source)} training images found, expected at least one batch of "
            f"{recipe.batch_size}; lower --batch-size"
        )
    total_steps = recipe.epochs * steps_per_epoch

    model_input = ModelInput(size=(recipe.image_size, recipe.image_size))
    model = create_student(recipe, hierarchy).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    check_input(model, recipe.student, model_input, hierarchy.num_classes)
    optimizer = torch.optim.AdamW(parameter_groups(model, recipe.weight_decay), lr=recipe.lr)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: _one_cycle(step, total_steps, recipe.warmup)
    )
    order = (
        targets.sample_order(len(source), recipe.seed)
        if targets
        else SampleOrder(len(source), recipe.seed)
    )
    run = {
        "recipe": recipe.to_json(),
        "hierarchy_digest": hierarchy.digest,
        "dataset_digest": dataset_digest,
        "view_policy": policy.to_json(),
        "targets": targets.identity if targets else None,
        "order": asdict(order),
    }
    done = load_checkpoint(out, model=model, optimizer=optimizer, scheduler=scheduler, run=run)
    if done.steps:
        say(f"going on at step {done.steps} of {total_steps}")

    epoch_sums = torch.tensor(done.loss_sums, device=device)
    accuracy = None
    batches = _announced(
        _batches(
            source,
            policy,
            model_input,
            recipe,
            targets,
            order,
            done.steps,
            workers,
            device.type == "cuda",
        ),
        targets,
        source,
    )
    started, first_step, seen, unreadable = time.monotonic(), done.steps, 0, 0
    autocast = (
        torch.autocast("cuda", dtype=torch.bfloat16) if device.type == "cuda" else nullcontext()
    )
    model.train()
    with progress("pretrain", total_steps, "steps", done=done.steps) as tick:
        for step in range(done.steps, total_steps):
            epoch, step_in_epoch = divmod(step, steps_per_epoch)
            batch = next(batches)
            rows, unreadable = batch.rows, unreadable + len(batch.bad)
            pixels = batch.pixels[0][:, 0].to(device, non_blocking=True)
            label = torch.from_numpy(labels[rows]).to(device, non_blocking=True)
            with autocast:
                logits = model(model_input.normalise(pixels))
            loss = semantic_softmax_loss(
                logits=logits,
                labels=label,
                hierarchy=hierarchy,
                label_smoothing=recipe.label_smoothing,
            )
            kd = torch.zeros((), device=device)
            if targets:
                said = targets.fetch(
                    source.ids[rows], targets.view(epoch), _for_the_teacher(batch, targets)
                ).to(device)
                targets.prepare(epoch + 1)
                kd = semantic_kd_loss(
                    student_logits=logits,
                    targets=said,
                    labels=label,
                    hierarchy=hierarchy,
                    divergence=recipe.divergence,
                )
            optimizer.zero_grad(set_to_none=True)
            (loss + recipe.kd_weight * kd).backward()
            optimizer.step()
            scheduler.step()
            epoch_sums += torch.stack([loss.detach(), kd.detach()])
            seen += len(rows)
            tick(1, f"epoch {epoch + 1}")

            history, epoch_ends = done.history, step_in_epoch == steps_per_epoch - 1
            if epoch_ends:
                means = (epoch_sums / steps_per_epoch).tolist()
                epoch_sums.zero_()
                if not math.isfinite(sum(means)):
                    raise ConfigError(
                        f"the loss is {means} in epoch {epoch + 1}, expected finite numbers; "
                        "lower --lr or --kd-weight"
                    )
                if validation is not None and validation_labels is not None:
                    accuracy = evaluate(
                        model,
                        model_input=model_input,
                        source=validation,
                        labels=validation_labels,
                        hierarchy=hierarchy,
                        workers=workers,
                    )
                record = _record(epoch, means, accuracy)
                history = (*done.history, record)
                say(_epoch_line(record))
            done = Progress(steps=step + 1, history=history)
            if epoch_ends or (step + 1) % checkpoint_every == 0:
                save_checkpoint(
                    out,
                    model=model,
                    optimizer=optimizer,
                    scheduler=scheduler,
                    run=run,
                    progress=replace(done, loss_sums=tuple(epoch_sums.tolist())),
                )
    seconds = time.monotonic() - started
    student = out / "student.safetensors"
    export_student(model, recipe, hierarchy, student)
    if accuracy is None and done.history and "accuracy" in done.history[-1]:
        last = done.history[-1]["accuracy"]
        accuracy = SemanticAccuracy(tuple(last["per_hierarchy"]), tuple(last["counts"]))
    return PretrainReport(
        student=student,
        steps=total_steps - first_step,
        images_per_s=seen / max(seconds, 1e-9),
        unreadable=unreadable,
        accuracy=accuracy,
    )


def _batches(
    source: ImageSource,
    policy: ViewPolicy,
    model_input: ModelInput,
    recipe: Recipe,
    targets: TrainingTargets | None,
    order: SampleOrder,
    first_step: int,
    workers: int,
    pin_memory: bool,
) -> Iterator[tuple[int, ViewBatch]]:
    """One view of each image with its epoch, from `first_step` to the last.

    At the student's size, and then at those that the targets need.
    """
    sizes = [model_input.size, *(targets.sizes if targets else ())]
    steps_per_epoch = len(source) // recipe.batch_size
    first_epoch, skipped = divmod(first_step, steps_per_epoch)
    for epoch in range(first_epoch, recipe.epochs):
        view = targets.drawn_view(epoch) if targets else epoch
        first = skipped if epoch == first_epoch else 0
        rows = order.epoch(epoch)[: steps_per_epoch * recipe.batch_size]
        requests = in_batches(rows[first * recipe.batch_size :], (view,), recipe.batch_size)
        loaded = load_views(
            source,
            policy,
            sizes,
            requests,
            workers=workers,
            pin_memory=pin_memory,
        )
        for batch in loaded:
            if len(batch.rows) < 2:  # batch norm needs two
                raise DataError(
                    f"{source.location}: {len(batch.bad)} of {recipe.batch_size} images of a batch "
                    f"cannot be read ({', '.join(set(batch.bad.values()))}), expected at least two "
                    "good ones; repair the data"
                )
            yield epoch, batch


def _announced(
    batches: Iterator[tuple[int, ViewBatch]], targets: TrainingTargets | None, source: ImageSource
) -> Iterator[ViewBatch]:
    """The batches, each told to the targets some batches before its turn."""
    coming: deque[ViewBatch] = deque()
    for epoch, batch in batches:
        if targets:
            pixels = _for_the_teacher(batch, targets)
            targets.announce(source.ids[batch.rows], targets.view(epoch), pixels)
        coming.append(batch)
        if len(coming) > (targets.ahead if targets else 0):
            yield coming.popleft()
    yield from coming


def _for_the_teacher(batch: ViewBatch, targets: TrainingTargets) -> list[torch.Tensor]:
    """[images, 3, height, width] at each size that the targets need."""
    return [pixels[:, 0] for pixels in batch.pixels[1:]] if targets.sizes else []


def _check_views(
    targets: TrainingTargets, source: ImageSource, policy: ViewPolicy, say: Callable[[str], None]
) -> None:
    """That this machine draws the very views that the teacher saw."""
    if targets.policy is None:
        return
    if policy != targets.policy:
        raise StoreMismatchError(
            f"{targets.location}: view policy {targets.policy.to_json()} found, expected "
            f"{policy.to_json()}; train with the targets' own views"
        )
    if proofs := targets.replay_proofs():
        replayed = check_replay(proofs, source, policy)
        say(f"replay proof: {replayed} views drawn again, pixel for pixel what the teacher saw")
    else:
        say(
            f"{targets.location}: holds no replay proof of these images; their views are taken on "
            "trust"
        )


def _one_cycle(step: int, total: int, warmup: float) -> float:
    """Share of the top learning rate: up linearly, then down a half cosine to zero."""
    rise = max(1.0, warmup * total)
    if step < rise:
        return (step + 1) / (rise + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1.0, total - rise)))


def _record(epoch: int, means: list[float], accuracy: SemanticAccuracy | None) -> dict[str, Any]:
    record: dict[str, Any] = {
        "epoch": epoch + 1,
        "semantic_softmax_loss": means[0],
        "semantic_kd_loss": means[1],
    }
    if accuracy:
        record["semantic_top1"] = accuracy.total
        record["accuracy"] = {
            "per_hierarchy": list(accuracy.per_hierarchy),
            "counts": list(accuracy.counts),
        }
    return record


def _epoch_line(record: dict[str, Any]) -> str:
    line = (
        f"epoch {record['epoch']}: semantic softmax loss {record['semantic_softmax_loss']:.4f}, "
        f"KD loss {record['semantic_kd_loss']:.4f}"
    )
    if "semantic_top1" in record:
        line += f", validation semantic top-1 {100 * record['semantic_top1']:.2f}%"
    return line
