"""Where does the time of a teacher's pass and of a student's step go? Traces of both.

    python benchmarks/traces.py [--quick] [--device cuda] [--out FOLDER]

tresnet_l answers batches as a precompute does, and a ResNet-50 takes distilled steps, eleven
hierarchies each. Writes trace-pass.json.gz and trace-step.json.gz, for chrome://tracing or
Perfetto, and prints what took longest, and how many kernels were launched. --quick takes small
models.

Prints a log in Markdown, and as its last line one JSON object.
"""

import argparse
import gzip
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from bare_forward import hardware, synchronise
from torch.profiler import ProfilerActivity, profile

from distill.hierarchy.semantic import resolve
from distill.models.devices import pick_device
from distill.targets.encoding import EncodingSpec
from distill.targets.tensors import encode
from distill.teacher_server.teacher.batch_size import random_pixels
from distill.teacher_server.teacher.forward_pass import Forward
from distill.teacher_server.teacher.loading import MemberChoice, load_teacher
from distill.trainers.models.student import create_student, student_input
from distill.trainers.recipe import Recipe
from distill.trainers.training.mixing import mixed_losses
from distill.trainers.training.objectives import objective_of
from distill.trainers.training.optimizer import make_optimizer

TIMES, SHOWN, LABEL_SET = 5, 12, "imagenet21k-p-fall11"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=Path("traces"))
    options = parser.parse_args()
    device = pick_device(options.device)
    options.out.mkdir(parents=True, exist_ok=True)
    print("# Traces\n")
    print(
        f"Command: `python benchmarks/traces.py{' --quick' if options.quick else ''} --device "
        f"{options.device}`, {time.strftime('%Y-%m-%d')}, {hardware(device)}; torch "
        f"{torch.__version__}\n"
    )
    figures = {
        "pass": traced("pass", a_pass(device, options.quick), device, options.out),
        "step": traced("step", a_step(device, options.quick), device, options.out),
    }
    print(json.dumps(figures))


def a_pass(device: torch.device, quick: bool) -> Callable[[], None]:
    """Launch and collect a batch."""
    hierarchy = resolve(LABEL_SET)
    choice = MemberChoice(name="resnet10t" if quick else "tresnet_l", random_weights=True)
    teacher = load_teacher([choice], hierarchy, device=device)
    size = 256 if device.type == "cuda" else 4
    spec = EncodingSpec.named("standard", hierarchy.classes_per_hierarchy)
    forward = Forward(teacher, spec, batch_size=size)
    pixels = random_pixels(teacher, size)

    def once() -> None:
        forward.collect(forward.launch(pixels))

    return once


def a_step(device: torch.device, quick: bool) -> Callable[[], None]:
    """A distilled step, targets of a store's form."""
    hierarchy = resolve(LABEL_SET)
    size = 256 if device.type == "cuda" else 4
    name, side = ("resnet10t", 64) if quick else ("resnet50", 224)
    recipe = Recipe(student=name, image_size=side, init="random")
    model = create_student(recipe, hierarchy.synsets).to(device)
    model = model.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer, labels = make_optimizer(recipe, model), np.arange(size)
    objective = objective_of(recipe, hierarchy, labels)
    spec = EncodingSpec.named("standard", hierarchy.classes_per_hierarchy)
    answers = encode(torch.randn(size, hierarchy.num_classes, device=device), hierarchy, spec)
    pixels = torch.randint(0, 256, (size, side, side, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    own = objective.labels([*range(size)]).to(device)
    on_gpu = device.type == "cuda"

    def once() -> None:
        inputs = student_input(recipe).normalise(pixels.to(device, non_blocking=True))
        with torch.autocast(device.type, torch.bfloat16, enabled=on_gpu):
            logits = model(inputs)
        loss, kd = mixed_losses(objective, logits, own, answers, 1.0)
        (loss + kd).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return once


def traced(
    name: str, once: Callable[[], None], device: torch.device, out: Path
) -> dict[str, float]:
    """Milliseconds of the host and of the device, and kernels or operators, each time."""
    for _ in range(3):
        once()
    synchronise(device)
    started = time.perf_counter()
    for _ in range(TIMES):
        once()
    synchronise(device)
    wall_ms = 1000 * (time.perf_counter() - started) / TIMES
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as record:
        for _ in range(TIMES):
            once()
        synchronise(device)
    plain = out / f"trace-{name}.json"
    record.export_chrome_trace(str(plain))
    (out / f"trace-{name}.json.gz").write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()
    key = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    events = sorted(record.key_averages(), key=lambda event: -getattr(event, key))
    events = [e for e in events if getattr(e, key) and _on_device(e) == on_gpu]
    kernels = sum(e.count for e in events) / TIMES
    device_ms = sum(getattr(e, key) for e in events) / 1000 / TIMES
    print(f"## A {name}: {wall_ms:.1f} ms, {device_ms:.1f} of the device, {kernels:.0f} launches\n")
    print("| ms | times | |\n| ---: | ---: | --- |")
    for event in events[:SHOWN]:
        ms = getattr(event, key) / 1000 / TIMES
        print(f"| {ms:.2f} | {event.count / TIMES:.0f} | {event.key[:90]} |")
    print(flush=True)
    return {"wall_ms": wall_ms, "device_ms": device_ms, "launches": kernels}


def _on_device(event: object) -> bool:
    return "CUDA" in str(getattr(event, "device_type", ""))


if __name__ == "__main__":
    main()
