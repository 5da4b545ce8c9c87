"""How fast can a teacher's models be, on their own? The baseline that others are held against.

    python benchmarks/bare_forward.py [--quick] [--teacher NAME …] [--device cuda]
        [--batch-size N …] [--compile]

A timm model with random weights, channels last, on pixels that lie on the device: as a teacher of
ours runs it; with cuDNN's own search for kernels; with weights in bfloat16; compiled; as a CUDA
graph; and on a CPU with a lane for each thread beside all threads on one batch. Each where the
device can. The fastest is what is to be reached. Weights are random: they cost the same.

Prints a log in Markdown, and as its last line one JSON object: images/s by teacher, batch size and
way. About a minute a teacher on a GPU; --quick takes one small teacher and batch.
"""

import argparse
import copy
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn
from whole_path import processor

from distill.errors import first_line
from distill.events import Journal
from distill.hierarchy.semantic import resolve
from distill.models.devices import pick_device
from distill.targets.encoding import EncodingSpec
from distill.teacher_server.teacher.batch_size import measure, warm_up
from distill.teacher_server.teacher.captured import CapturedPasses
from distill.teacher_server.teacher.forward_pass import Forward
from distill.teacher_server.teacher.loading import MemberChoice, load_teacher
from distill.teacher_server.teacher.teacher import Teacher

TEACHERS = "tresnet_l", "convnext_base.fb_in22k", "vit_large_patch16_224"
LOOKS, LOOK_S = 5, 1.0
Pass = Callable[[], object]
Look = Callable[[], float]  # images/s of a second or so


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--teacher", nargs="+", default=TEACHERS)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch-size", nargs="+", type=int, help="256 on a GPU, 8 and 16 on a CPU")
    parser.add_argument("--compile", action="store_true", help="on a CPU too")
    options = parser.parse_args()
    device = pick_device(options.device)
    on_gpu = device.type == "cuda"
    sizes = options.batch_size or ([256] if on_gpu else [8, 16])
    teachers = options.teacher
    if options.quick:
        teachers, sizes = ["resnet10t"], [4]
    quick = " --quick" if options.quick else ""
    print("# Bare forward passes\n")
    print(
        f"Command: `python benchmarks/bare_forward.py{quick} --device {options.device}`, "
        f"{time.strftime('%Y-%m-%d')}, {hardware(device)}; Python {platform.python_version()}, "
        f"torch {version('torch')}, timm {version('timm')}\n"
    )
    found: dict[str, dict[str, float]] = {}
    for name in teachers:
        choice = MemberChoice(name=name, random_weights=True)
        teacher = load_teacher([choice], resolve("imagenet21k-p-fall11"), device=device)
        for size in sizes:
            with bare_ways(teacher, size, compiled=on_gpu or options.compile) as ways:
                rates = rates_of(ways)
            found[f"{name}, batches of {size}"] = rates
            print(f"## {name}, {teacher.identity.precision}, batches of {size}\n")
            print("| way | images/s |\n| --- | ---: |")
            for way, rate in rates.items():
                print(f"| {way} | {rate:.1f} |")
            print(flush=True)
        del teacher
    print(json.dumps(found))


def rates_of(ways: Mapping[str, Look]) -> dict[str, float]:
    """Images/s of each, the median of some looks."""
    return {way: statistics.median(look() for _ in range(LOOKS)) for way, look in ways.items()}


@contextmanager
def bare_ways(teacher: Teacher, batch_size: int, *, compiled: bool) -> Iterator[dict[str, Look]]:
    """Ways to run the models alone, warmed up; those that fail are named and left out."""
    pixels = [
        torch.randint(0, 256, (batch_size, *size, 3), dtype=torch.uint8)
        .to(teacher.device)
        .permute(0, 3, 1, 2)
        for size in teacher.sizes
    ]
    ways: dict[str, Look] = {}
    for way, run in _passes(teacher, pixels, compiled):
        try:
            for _ in range(3):
                run()
        except Exception as error:  # compilers and drivers raise whatever is wrong with them
            print(f"{way}: {first_line(error)}\n")
        else:
            ways[way] = partial(_rate, run, batch_size, teacher.device)
    spec = EncodingSpec.named("standard", teacher.hierarchy.classes_per_hierarchy)
    on_cpu = teacher.device.type == "cpu"
    with Forward(teacher, spec, batch_size=batch_size) if on_cpu else nullcontext() as lanes:
        if lanes:
            warm_up(lanes, pixels)
            ways["a lane a thread"] = partial(measure, lanes, pixels)
        yield ways


def _passes(
    teacher: Teacher, pixels: Sequence[Tensor], compiled: bool
) -> Iterator[tuple[str, Pass]]:
    yield "as is", lambda: teacher.logits(pixels)
    on_gpu = teacher.device.type == "cuda"
    if on_gpu:
        yield "cuDNN's search", _cudnn_searches(lambda: teacher.logits(pixels))
    models = [_in_bfloat16(member.model) if on_gpu else member.model for member in teacher.members]
    inputs = dict(zip(teacher.sizes, pixels, strict=True))
    normalise = [(member.input, inputs[member.input.size]) for member in teacher.members]

    def plainly(models: Sequence[nn.Module]) -> Pass:
        @torch.inference_mode()
        def run() -> list[Tensor]:
            given = [each.normalise(some) for each, some in normalise]
            if on_gpu:
                given = [each.bfloat16() for each in given]
            return [model(some) for model, some in zip(models, given, strict=True)]

        return run

    if on_gpu:
        yield "bfloat16 weights", plainly(models)
        captured = CapturedPasses(teacher.logits, Journal())
        yield "a CUDA graph", lambda: captured(pixels)
    if compiled:
        made = teacher.compiled()
        yield "compiled", lambda: made.logits(pixels)
        if on_gpu:
            fast: Any = [torch.compile(each, mode="max-autotune-no-cudagraphs") for each in models]
            yield "bfloat16 weights, compiled, autotuned", plainly(fast)


def _in_bfloat16(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).to(torch.bfloat16)


def _cudnn_searches(run: Pass) -> Pass:
    def searching() -> object:
        before = torch.backends.cudnn.benchmark
        torch.backends.cudnn.benchmark = True
        try:
            return run()
        finally:
            torch.backends.cudnn.benchmark = before

    return searching


def _rate(run: Pass, batch_size: int, device: torch.device) -> float:
    synchronise(device)
    started, passes = time.perf_counter(), 0
    while passes < 2 or time.perf_counter() - started < LOOK_S:
        for _ in range(1 if device.type == "cpu" else 10):
            run()
            passes += 1
        synchronise(device)
    return passes * batch_size / (time.perf_counter() - started)


def synchronise(device: torch.device) -> None:
    """Until all that was launched is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def hardware(device: torch.device) -> str:
    """What it is called."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor()


if __name__ == "__main__":
    main()
