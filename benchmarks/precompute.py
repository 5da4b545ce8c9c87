"""What does a precompute cost beyond the teacher's forward pass?

    python benchmarks/precompute.py [--quick] [--shared ../shared] [--device cuda] [--cpus 0,1]
        [--policy plain augmented] [--workers N …] [--teacher NAME …]

Runs `distill precompute` as a user does, on full-size ImageNet photographs with tresnet_l and a
flat head (ConvNeXt of ImageNet-22K) at 224 pixels (random weights: they cost the same) and, on a
CPU, on 64-pixel images with their trained ResNet-18-D. Beside it stands the bare forward pass of
the same model and batch size on images that lie on the device, by the fastest of its ways
(`benchmarks/bare_forward.py`). The two take turns: every few seconds the precompute is stopped for
a look at the bare pass, as machines are at times a third slower than at others. The figure is
images/s from the second block on ÷ those of these looks: read the ratios, the rates vary.

The sample of photographs is copied as often as it takes under other names. About fifteen minutes on
two cores, four on a GPU; --quick takes a fraction of the images. Without --shared the photographs
are rendered, 500 × 375 pixels of noise and shapes.

Prints a log in Markdown, and as its last line one JSON object of the figures.
"""

import argparse
import itertools
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from bare_forward import Look, bare_ways, hardware, rates_of
from photographs import write_photographs

from distill.hierarchy.semantic import resolve
from distill.models.devices import pick_device
from distill.teacher_server.teacher.loading import MemberChoice, load_teacher

TEACHERS = "tresnet_l", "convnext_base.fb_in22k"  # the second has a flat head
BLOCKS = 10
TURN_S = {"cuda": 3.0, "cpu": 4.0}  # of a precompute, between two looks at the bare pass
RIVAL = 0.7  # of the fastest way before: such ones may turn out to be the fastest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--cpus", help="processors to run on, as 0,1; all by default")
    parser.add_argument("--workers", nargs="+", type=int, help="decoding processes; one a core")
    parser.add_argument("--policy", nargs="+", default=["augmented"], help="plain, augmented")
    parser.add_argument("--teacher", nargs="+", default=TEACHERS)
    parser.add_argument("--batch-size", type=int, help="8 and 64 on a CPU, 256 on a GPU")
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    if options.cpus:
        os.sched_setaffinity(0, {int(cpu) for cpu in options.cpus.split(",")})
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(cores)
    device = pick_device(options.device)
    workers = options.workers or [cores]
    on_gpu = device.type == "cuda"
    print("# Precompute against the bare forward pass\n")
    quick = " --quick" if options.quick else ""
    print(
        f"Command: `python benchmarks/precompute.py{quick}`, {time.strftime('%Y-%m-%d')}, ", end=""
    )
    print(f"{hardware(device)}, {cores} cores; ", end="")
    libraries = ", ".join(f"{n} {version(n)}" for n in ("torch", "timm", "pillow"))
    print(f"Python {platform.python_version()}, {libraries}\n", flush=True)

    with tempfile.TemporaryDirectory() as scratch:
        images = (4096 if options.quick else 30_000) if on_gpu else (200 if options.quick else 600)
        photographs = write_photographs(Path(scratch), images, shared=options.shared)
        cases = [
            _Case(
                name=f"{name}, 224 pixels, 11,221 classes",
                choice=MemberChoice(name=name, random_weights=True),
                label_set="imagenet21k-p-fall11",
                data=photographs,
                limit=images,
                batch_size=options.batch_size or (256 if on_gpu else 8),
            )
            for name in (options.teacher[:1] if options.quick else options.teacher)
        ]
        small = options.shared / "data"
        if (small / "tiny-imagenet-h").is_dir() and not on_gpu:
            weights = small / "teachers/resnet18d-64px-tiny-imagenet-h.safetensors"
            cases.append(
                _Case(
                    name="resnet18d, 64 pixels, 440 classes",
                    choice=MemberChoice(name="resnet18d", weights=weights),
                    label_set=str(small / "tiny-imagenet-h/label_set.json"),
                    data=small / "tiny-imagenet-h",
                    limit=2048 if options.quick else 20_000,
                    batch_size=options.batch_size or 64,
                )
            )
        looks = [*itertools.product(options.policy, workers)]
        figures = [
            each
            for case in cases
            for each in _measure(case, device, looks, options.compile, Path(scratch))
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
    case: _Case,
    device: torch.device,
    looks: Sequence[tuple[str, int]],
    compiled: bool,
    scratch: Path,
) -> list[dict[str, Any]]:
    """looks: view policy and decoding processes of each precompute."""
    teacher = load_teacher([case.choice], resolve(case.label_set), device=device)
    print(f"## {case.name}, {teacher.identity.precision}, batches of {case.batch_size}\n")
    with bare_ways(teacher, case.batch_size, compiled=compiled or device.type == "cuda") as ways:
        rates = rates_of(ways)
        rivals = {way: ways[way] for way in rates if rates[way] > RIVAL * max(rates.values())}
        ran = [_precompute(case, device, *look, compiled, scratch, rivals) for look in looks]
    print("| bare forward | images/s |\n| --- | ---: |")
    for way, rate in rates.items():
        print(f"| {way} | {rate:.1f} |")
    print("\n| views | processes | images/s | bare meanwhile | ratio | bottleneck |")
    print("| --- | ---: | ---: | ---: | ---: | --- |")
    found = []
    for (policy, workers), each in zip(looks, ran, strict=True):
        fastest = max(each.bare, key=lambda way: statistics.harmonic_mean(each.bare[way]))
        bare = each.bare[fastest]
        meanwhile = statistics.harmonic_mean(bare)  # looks take the same number of images
        ratio = each.rate / meanwhile
        print(
            f"| {policy} | {workers} | {each.rate:.1f} | {fastest}: {meanwhile:.1f}, "
            f"{len(bare)} looks from {min(bare):.1f} to {max(bare):.1f} | {ratio:.3f} | "
            f"{each.report['bottleneck']} |"
        )
        found.append(
            {
                "case": f"{case.name}, {policy}, {workers} processes",
                "images_per_s": round(each.rate, 2),
                "bare": {way: round(rate, 2) for way, rate in rates.items()},
                "bare_meanwhile": {fastest: [round(rate, 2) for rate in bare]},
                "ratio": round(ratio, 4),
                "gpu_utilisation_percent": each.utilisation,
                "stages": {name: round(s, 2) for name, s in each.report["stages"].items()},
            }
        )
    for (policy, workers), each in zip(looks, ran, strict=True):
        stages = ", ".join(f"{name} {s:.1f}" for name, s in each.report["stages"].items())
        print(f"\nSeconds, {policy}, {workers} processes: {stages}")
    print(flush=True)
    return found


@dataclass(frozen=True)
class _Ran:
    """A precompute: its images/s from the second block on and those of the bare pass meanwhile.

    report: what the command says. utilisation: of a GPU, in percent.
    """

    rate: float
    bare: dict[str, list[float]]
    report: dict[str, Any]
    utilisation: float | None


def _precompute(
    case: _Case,
    device: torch.device,
    policy: str,
    workers: int,
    compiled: bool,
    scratch: Path,
    ways: Mapping[str, Look],
) -> _Ran:
    words: list[object] = ["precompute", "--teacher", case.choice.name]
    words += ["--label-set", case.label_set, "--view-policy", policy]
    words += ["--weights", case.choice.weights] if case.choice.weights else ["--random-weights"]
    words += ["--data", case.data, "--store", scratch / "store", "--limit", case.limit]
    words += ["--block-rows", max(1, case.limit // BLOCKS), "--log", scratch / "log.jsonl"]
    words += ["--device", device, "--workers", workers, "--batch-size", case.batch_size, "--json"]
    words += ["--compile" if compiled else "--no-compile"]
    print(f"    distill {' '.join(map(str, words)).replace(str(scratch), 'OUT')}\n", flush=True)
    with _utilisation(device) as utilisation:
        report, pauses, bare = _in_turn([str(word) for word in words], TURN_S[device.type], ways)
    events = map(json.loads, (scratch / "log.jsonl").read_text().splitlines())
    written = [each for each in events if each["event"] == "block written"]
    begun, ended = (datetime.fromisoformat(written[i]["time"]).timestamp() for i in (0, -1))
    stopped = sum(stop - start for start, stop in pauses if begun < start < ended)
    rate = sum(each["rows"] for each in written[1:]) / (ended - begun - stopped)
    shutil.rmtree(scratch / "store")
    (scratch / "log.jsonl").unlink()
    return _Ran(rate, bare, report, utilisation[0] if utilisation else None)


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


def _in_turn(
    words: list[str], turn_s: float, ways: Mapping[str, Look]
) -> tuple[dict[str, Any], list[tuple[float, float]], dict[str, list[float]]]:
    """What the command says; when it was stopped and went on, and what the looks then found."""
    pauses, found = [], {way: list[float]() for way in ways}
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as errors:
        running = subprocess.Popen(
            [sys.executable, "-m", "distill.cli.main", *words],
            stdout=said,
            stderr=errors,
            start_new_session=True,  # its decoders are stopped with it
        )
        while running.poll() is None:
            with suppress(subprocess.TimeoutExpired):
                running.wait(turn_s)
                continue
            os.killpg(running.pid, signal.SIGSTOP)
            begun = time.time()
            for way, look in ways.items():
                found[way].append(look())
            pauses.append((begun, time.time()))
            os.killpg(running.pid, signal.SIGCONT)
        for file in (said, errors):
            file.seek(0)
        if running.returncode:
            sys.exit(errors.read())
        return json.load(said), pauses, {way: found[way] or [ways[way]()] for way in ways}


if __name__ == "__main__":
    main()
