"""What it takes to evaluate at full size: the meters of `distill evaluate` on synthetic logits.

    python benchmarks/evaluation_size.py [--images 100000] [--student resnet18]

Prints the time of the meters and of a student's forward pass for as many images, and the most
memory that the process held.
"""

import argparse
import resource
import time

import numpy as np
import torch

from distill.hierarchy.semantic import SemanticHierarchy
from distill.models.creation import create_model
from distill.trainers.evaluation.evaluate import most_specific
from distill.trainers.evaluation.meters import (
    Meter,
    SemanticMeter,
    SingleLabelMeter,
    label_meter,
)
from distill.trainers.models.meaning import LogitsMeaning
from distill.trainers.process_group import World

BATCH = 256
CPU = torch.device("cpu")


def main() -> None:
    """Feed all meters, batch by batch, with logits that know the label half of the time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--student", default="resnet18")
    options = parser.parse_args()
    hierarchy = SemanticHierarchy.bundled("imagenet21k-p-fall11")
    draw = np.random.default_rng(0)
    labels = draw.integers(0, hierarchy.num_classes, options.images)
    reading = LogitsMeaning("semantic", taught=True)
    meters: dict[str, Meter] = {
        "semantic": SemanticMeter(labels, hierarchy, reading, CPU),
        "single label": SingleLabelMeter(
            labels, hierarchy, reading, most_specific(labels, hierarchy), CPU
        ),
        "mAP": label_meter(labels, hierarchy, reading, CPU),
    }
    seconds = dict.fromkeys(meters, 0.0)
    generator = torch.Generator().manual_seed(0)
    for first in range(0, options.images, BATCH):
        rows = list(range(first, min(first + BATCH, options.images)))
        logits = torch.randn(len(rows), hierarchy.num_classes, generator=generator)
        known = torch.rand(len(rows), generator=generator) < 0.5
        logits[torch.arange(len(rows)), torch.from_numpy(labels[rows])] += 6.0 * known
        for name, meter in meters.items():
            started = time.perf_counter()
            meter.update(logits=logits, rows=rows)
            seconds[name] += time.perf_counter() - started
    for name, meter in meters.items():
        started = time.perf_counter()
        figures = meter.result(World())
        seconds[name] += time.perf_counter() - started
        shown = {k: round(v, 4) for k, v in figures.items() if isinstance(v, float)}
        print(f"{name}: {seconds[name]:.1f} s; {shown}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    model = create_model(options.student, hierarchy.num_classes).eval()
    images = torch.randn(BATCH, 3, 224, 224)
    with torch.inference_mode():
        model(images)
        started = time.perf_counter()
        model(images)
        forward = (time.perf_counter() - started) * options.images / BATCH
    total = sum(seconds.values())
    print(
        f"{options.images} images × {hierarchy.num_classes} classes: meters {total:.0f} s, forward "
        f"pass of {options.student} {forward:.0f} s ({forward / (forward + total):.0%} of both); "
        f"peak {peak:.2f} GiB"
    )


if __name__ == "__main__":
    main()
