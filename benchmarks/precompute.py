"""What does a precompute cost beyond the teacher's forward pass?

    python benchmarks/precompute.py [--quick] [--shared ../shared] [--device cuda] [--cpus 0,1]

Runs `distill precompute` as a user does, on full-size ImageNet photographs with tresnet_l at 224
pixels (random weights: they cost the same) and on 64-pixel images with their trained ResNet-18-D.
Before and after it times the bare forward pass of the same model, device, dtype and batch size on
images that lie in memory. The figure is end-to-end images/s ÷ images/s of the bare forward, all in
one run on one machine: read the ratios, the rates vary from machine to machine.

The sample of photographs is copied as often as it takes under other names. About ten minutes on two
cores, three on a GPU; --quick takes a fraction of the images. Without --shared the photographs are
rendered, 500 × 375 pixels of noise and shapes.

Prints a log in Markdown, and as its last line one JSON object of the figures.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from photographs import write_photographs
from whole_path import processor

from distill.hierarchy.semantic import resolve
from distill.models.devices import pick_device
from distill.targets.encoding import EncodingSpec
from distill.teacher_server.teacher.forward_pass import Forward
from distill.teacher_server.teacher.loading import MemberChoice, load_teacher
from distill.teacher_server.teacher.teacher import Teacher

RUNS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--cpus", help="processors to run on, as 0,1; all by default")
    parser.add_argument("--workers", type=int, help="decoding processes; one a processor")
    parser.add_argument("--batch-size", type=int, help="8 and 64 on a CPU, 128 and 512 on a GPU")
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    if options.cpus:
        os.sched_setaffinity(0, {int(cpu) for cpu in options.cpus.split(",")})
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(cores)
    device = pick_device(options.device)
    workers = options.workers if options.workers is not None else cores
    on_gpu = device.type == "cuda"
    print("# Precompute against the bare forward pass\n")
    quick = " --quick" if options.quick else ""
    print(
        f"Command: `python benchmarks/precompute.py{quick}`, {time.strftime('%Y-%m-%d')}, ", end=""
    )
    print(f"{_hardware(device)}, {cores} cores, {workers} decoding processes; ", end="")
    libraries = ", ".join(f"{n} {version(n)}" for n in ("torch", "timm", "pillow"))
    print(f"Python {platform.python_version()}, {libraries}\n", flush=True)

    with tempfile.TemporaryDirectory() as scratch:
        images = (2048 if options.quick else 40_000) if on_gpu else (200 if options.quick else 600)
        photographs = write_photographs(Path(scratch), images, shared=options.shared)
        cases = [
            _Case(
                name="tresnet_l, 224 pixels, 11,221 classes",
                choice=MemberChoice(name="tresnet_l", random_weights=True),
                label_set="imagenet21k-p-fall11",
                data=photographs,
                limit=images,
                batch_size=options.batch_size or (128 if on_gpu else 8),
            )
        ]
        small = options.shared / "data"
        if small.is_dir():
            weights = small / "teachers/resnet18d-64px-tiny-imagenet-h.safetensors"
            cases.append(
                _Case(
                    name="resnet18d, 64 pixels, 440 classes",
                    choice=MemberChoice(name="resnet18d", weights=weights),
                    label_set=str(small / "tiny-imagenet-h/label_set.json"),
                    data=small / "tiny-imagenet-h",
                    limit=2048 if options.quick else 20_000,
                    batch_size=options.batch_size or (512 if on_gpu else 64),
                )
            )
        figures = [
            _measure(case, device, workers, options.compile, Path(scratch)) for case in cases
        ]
    print(json.dumps(figures))


@dataclass(frozen=True, kw_only=True)
class _Case:
    name: str
    choice: MemberChoice
    label_set: str
    data: Path
    limit: int
    batch_size: int


def _measure(
    case: _Case, device: torch.device, workers: int, compiled: bool, scratch: Path
) -> dict[str, Any]:
    teacher = load_teacher([case.choice], resolve(case.label_set), device=device)
    print(f"## {case.name}, {teacher.identity.precision}, batches of {case.batch_size}\n")
    before = _bare(teacher, case.batch_size, compiled)
    words: list[object] = [
        "precompute",
        "--teacher",
        case.choice.name,
        "--label-set",
        case.label_set,
    ]
    words += ["--weights", case.choice.weights] if case.choice.weights else ["--random-weights"]
    words += ["--data", case.data, "--store", scratch / "store", "--limit", case.limit]
    words += ["--device", device, "--workers", workers, "--batch-size", case.batch_size, "--json"]
    words += ["--compile" if compiled else "--no-compile"]
    print(f"    distill {' '.join(map(str, words)).replace(str(scratch), 'OUT')}\n", flush=True)
    with _utilisation(device) as utilisation:
        report = _run([str(word) for word in words])
    after = _bare(teacher, case.batch_size, compiled)
    shutil.rmtree(scratch / "store")
    bare, stages = statistics.mean((before, after)), report["stages"]
    ratio = report["images_per_s"] / bare
    print("| images/s | bare forward before | and after | ratio | bottleneck |")
    print("| ---: | ---: | ---: | ---: | --- |")
    print(f"| {report['images_per_s']:.1f} | {before:.1f} | {after:.1f} | {ratio:.3f} | ", end="")
    print(f"{report['bottleneck']} |\n")
    print("| stage | " + " | ".join(name.replace("_", " ") for name in stages) + " |")
    print("| --- |" + " ---: |" * len(stages))
    print(
        "| s | " + " | ".join(f"{seconds:.1f}" for seconds in stages.values()) + " |\n", flush=True
    )
    return {
        "case": case.name,
        "images": report["images"],
        "images_per_s": round(report["images_per_s"], 2),
        "bare_forward_images_per_s": [round(before, 2), round(after, 2)],
        "ratio": round(ratio, 4),
        "gpu_utilisation_percent": utilisation[0] if utilisation else None,
        "stages": {name: round(seconds, 2) for name, seconds in stages.items()},
    }


def _bare(teacher: Teacher, batch_size: int, compiled: bool) -> float:
    """Images/s of the models alone, on pixels that lie on the device."""
    sizes = teacher.hierarchy.classes_per_hierarchy
    spec = EncodingSpec.named("standard", sizes)
    with Forward(teacher, spec, batch_size=batch_size, compiled=compiled) as forward:
        run = forward.teacher
    pixels = [
        torch.randint(0, 256, (batch_size, 3, *size), dtype=torch.uint8).to(teacher.device)
        for size in teacher.sizes
    ]
    batches = 20 if teacher.device.type == "cuda" else 4
    rates = []
    for _ in range(RUNS + 1):
        _synchronise(teacher.device)
        started = time.perf_counter()
        for _ in range(batches):
            run.logits(pixels)
        _synchronise(teacher.device)
        rates.append(batches * batch_size / (time.perf_counter() - started))
    return statistics.median(rates[1:])  # the first is a warm-up


@contextmanager
def _utilisation(device: torch.device) -> Iterator[list[float]]:
    """Filled at the end with the median utilisation of a GPU while it was in use, in percent."""
    found: list[float] = []
    if device.type != "cuda" or not shutil.which("nvidia-smi"):
        yield found
        return
    query = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
    which = ["--id", str(device.index or 0), "--loop-ms", "500"]
    watching = subprocess.Popen([*query, *which], stdout=subprocess.PIPE, text=True)
    yield found
    watching.terminate()
    samples = [float(line) for line in watching.communicate()[0].split() if line.isdecimal()]
    found += [statistics.median(busy)] if (busy := [s for s in samples if s > 0]) else []


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _run(words: list[str]) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "distill.cli.main", *words],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(done.stderr)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def _hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return processor()


if __name__ == "__main__":
    main()
