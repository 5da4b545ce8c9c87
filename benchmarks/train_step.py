"""What does a distilled training step cost beyond a plain one, and what does a store save?

    python benchmarks/train_step.py [--quick] [--shared ../shared] [--device cuda] [--threads 2]
        [--student NAME] [--workers N] [--compile]

A resnet18 student, or another, at 224 pixels, 11,221 classes, semantic softmax; teacher tresnet_l
with random weights (what it says costs the same to compute). One batch in memory is trained on
again and again: on labels alone; with targets from a store, of other images each time; with the
teacher in the process; and as timm distils, with `timm.task.LogitDistillationTask` and the same
teacher. The four take turns, so that a machine that slows down slows all of them; the ratio is of
medians. Then images/s of the loader alone, of the step alone, and of one epoch of `distill
pretrain`, with and without the store.

About ten minutes on two cores; --quick takes a small teacher and student at 64 pixels. Prints a log
in Markdown, and as its last line one JSON object.
"""

import argparse
import contextlib
import io
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bare_forward import synchronise
from photographs import write_photographs
from timm.optim import create_optimizer_v2
from timm.task import LogitDistillationTask
from whole_path import processor

from distill.data.order import SampleOrder
from distill.data.source import ImageSource, label_indices, open_source
from distill.data.view_policy import ViewPolicy
from distill.hierarchy.semantic import resolve
from distill.models.devices import pick_device
from distill.store.logit_store import LogitStore
from distill.store.views.cache import Cache
from distill.targets.tensors import TargetSource
from distill.teacher_server.precompute.options import PrecomputeOptions
from distill.teacher_server.precompute.run import precompute
from distill.teacher_server.teacher.loading import MemberChoice, load_teacher
from distill.trainers.models.student import create_student, student_input
from distill.trainers.process_group import Machine, World
from distill.trainers.recipe import Recipe
from distill.trainers.sources.in_process import InProcessTargets
from distill.trainers.sources.store import StoreTargets
from distill.trainers.training.batches import TrainingSet
from distill.trainers.training.objectives import Objective, objective_of
from distill.trainers.training.pretrain import pretrain

LABELS, STORE, LIVE, TIMM = "labels alone", "store", "teacher in the process", "timm's task"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--student", help="timm model name")
    parser.add_argument("--compile", action="store_true", help="students, in whole epochs")
    options = parser.parse_args()
    device = pick_device(options.device)
    if device.type == "cpu":
        torch.set_num_threads(options.threads)
    on_gpu = device.type == "cuda"
    teacher_name, student, side = ("resnet18", "resnet10t", 64) if options.quick else (
        "tresnet_l", "resnet18", 224)  # fmt: skip
    student = options.student or student
    batch_size, rounds = (256, 40) if on_gpu else (64, 4) if options.quick else (32, 12)
    images = 40_000 if on_gpu and not options.quick else 1024 if options.quick else 640

    print("# A training step\n")
    hardware = torch.cuda.get_device_name(device) if on_gpu else f"{options.threads} threads of "
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "timm"))
    print(
        f"Command: `python benchmarks/train_step.py{' --quick' if options.quick else ''} --student "
        f"{student} --device {options.device} --threads {options.threads} --workers "
        f"{options.workers}{' --compile' if options.compile else ''}`, "
        f"{time.strftime('%Y-%m-%d')}, {hardware}{'' if on_gpu else processor()}; Python "
        f"{platform.python_version()}, {libraries}\n",
        flush=True,
    )
    hierarchy = resolve("imagenet21k-p-fall11")
    recipe = Recipe(student=student, image_size=side, batch_size=batch_size, init="random")
    with tempfile.TemporaryDirectory() as scratch:
        source = open_source(
            write_photographs(Path(scratch), images, shared=options.shared, labelled=True)
        )
        labels = label_indices(source, hierarchy)
        teacher = load_teacher(
            [
                MemberChoice(
                    name=teacher_name, random_weights=True, head="semantic", input_size=side
                )
            ],
            hierarchy,
            device=device,
        )
        with contextlib.redirect_stdout(io.StringIO()):
            precompute(
                source=source,
                teacher=teacher,
                path=f"{scratch}/store",
                options=PrecomputeOptions(policy=ViewPolicy(), workers=options.workers),
            )
        stored = StoreTargets(LogitStore.open(f"{scratch}/store"), Cache(Path(scratch) / "cache"))
        live = InProcessTargets(teacher)
        bench = Bench(recipe, objective_of(recipe, hierarchy, labels), source, device)
        steps = {
            LABELS: bench.step(None),
            STORE: bench.step(stored),
            LIVE: bench.step(live),
            TIMM: bench.timm_step(teacher.members[0].model),
        }
        seconds = in_turns(steps, rounds, device)
        _report_steps(seconds, batch_size)
        whole = _whole(recipe, source, hierarchy, stored, Path(scratch), device, options)
    plain = statistics.median(seconds[LABELS])
    ratios = {f"plain to {n}": round(plain / statistics.median(s), 3) for n, s in seconds.items()}
    print(json.dumps({"ratio": ratios, **whole, "step_only": round(batch_size / plain, 1)}))


class Bench:
    """One batch in memory, and steps that train on it, each with a student of its own."""

    def __init__(
        self, recipe: Recipe, objective: Objective, source: ImageSource, device: torch.device
    ) -> None:
        self.recipe, self.objective, self.device = recipe, objective, device
        self.input = student_input(recipe)
        self.batch, _ = next(
            all_images(source).batches(
                recipe,
                World(),
                first_step=0,
                size=self.input.size,
                workers=0,
                pin_memory=device.type == "cuda",
            )
        )
        self.source, self.random = source, np.random.default_rng(0)

    def student(self) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        """Ready to train."""
        model = create_student(self.recipe, self.objective.hierarchy.synsets)
        model = model.to(self.device).to(memory_format=torch.channels_last).train()
        return model, create_optimizer_v2(model, opt="adamw", lr=1e-4, weight_decay=1e-4)

    def step(self, targets: TargetSource | None) -> Callable[[], None]:
        """What `distill.trainers.training.loop` computes in one."""
        model, optimizer = self.student()

        def once() -> None:
            pixels = self.batch.pixels[0][:, 0].to(self.device, non_blocking=True)
            labels = self.objective.labels(self.batch.rows).to(self.device, non_blocking=True)
            inputs = self.input.normalise(pixels)
            with self.autocast():
                logits = model(inputs.contiguous(memory_format=torch.channels_last))
            loss = self.objective.loss(logits=logits, labels=labels)
            if targets:
                asked = self.random.permutation(len(self.source))[: len(pixels)]
                said = targets.fetch(self.source.ids[asked], 0, [pixels]).to(self.device)
                loss = loss + 20 * self.objective.distance(
                    logits=logits, targets=said, labels=labels
                )
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return once

    def timm_step(self, teacher: torch.nn.Module) -> Callable[[], None]:
        """timm's own distillation of logits."""
        model, optimizer = self.student()
        task = LogitDistillationTask(
            student_model=model,
            teacher_model=teacher,
            criterion=torch.nn.CrossEntropyLoss(label_smoothing=0.2, ignore_index=-1),
            distill_loss_weight=1.0,
            device=self.device,
            verbose=False,
        )

        def once() -> None:
            pixels = self.batch.pixels[0][:, 0].to(self.device, non_blocking=True)
            labels = self.objective.labels(self.batch.rows).to(self.device, non_blocking=True)
            with self.autocast():
                inputs = self.input.normalise(pixels)
                inputs = inputs.contiguous(memory_format=torch.channels_last)
                said: dict[str, Any] = task(inputs, labels)
            said["loss"].backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return once

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """As the loop: bfloat16 on a GPU."""
        if self.device.type != "cuda":
            return contextlib.nullcontext()
        return torch.autocast("cuda", dtype=torch.bfloat16)


def all_images(source: ImageSource) -> TrainingSet:
    """To be trained on without targets."""
    return TrainingSet(
        source=source,
        kept=np.ones(len(source), np.bool_),
        order=SampleOrder(len(source), 0),
        policy=ViewPolicy(),
        targets=None,
    )


def in_turns(
    steps: dict[str, Callable[[], None]], rounds: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of each step, `rounds` times, one after the other in each round."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in range(rounds + 1):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            synchronise(device)
            if round_:  # the first is to warm up
                seconds[name].append(time.perf_counter() - started)
    return seconds


def _report_steps(seconds: dict[str, list[float]], batch_size: int) -> None:
    plain = statistics.median(seconds[LABELS])
    store = statistics.median(seconds[STORE])
    print("| step | median ms | images/s | of the plain step | of the store's |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name, each in seconds.items():
        median = statistics.median(each)
        print(
            f"| {name} | {1000 * median:.0f} | {batch_size / median:.1f} | {median / plain:.3f} | "
            f"{median / store:.2f} |"
        )
    print(flush=True)


def _whole(
    recipe: Recipe,
    source: ImageSource,
    hierarchy: Any,
    stored: StoreTargets,
    scratch: Path,
    device: torch.device,
    options: argparse.Namespace,
) -> dict[str, float]:
    """Images/s of the loader alone, and of an epoch; a checkpoint ends it."""
    short = replace(recipe, epochs=1)
    size = student_input(recipe).size
    batches = all_images(source).batches(
        short, World(), first_step=0, size=size, workers=options.workers, pin_memory=False
    )
    next(batches)
    started = time.perf_counter()
    count = sum(len(batch.rows) for batch, _ in batches)
    rates = {"loader_only": count / (time.perf_counter() - started)}
    machine = Machine(device=device, workers=options.workers, compiled=options.compile)
    for name, targets in (("combined_plain", None), ("combined_store", stored)):
        report = pretrain(
            recipe=short,
            source=source,
            validation=None,
            hierarchy=hierarchy,
            targets=targets,
            out=scratch / name,
            machine=machine,
            say=lambda text: None,
        )
        rates[name] = report.images_per_s
    print("| images/s | |")
    print("| --- | ---: |")
    for name, rate in rates.items():
        print(f"| {name.replace('_', ' ')} | {rate:.1f} |")
    print(flush=True)
    return {name: round(rate, 1) for name, rate in rates.items()}


if __name__ == "__main__":
    main()
