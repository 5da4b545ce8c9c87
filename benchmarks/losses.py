"""How much faster are the vectorised losses than one image at a time, and what does sparse cost?

    python benchmarks/losses.py [--quick]

Semantic softmax and semantic KD (dense and sparse, 8 entries per hierarchy), forward and backward,
on the 11,221 classes of ImageNet-21K-P, batch 64 and 1024, beside the plain implementation that the
tests keep as reference. All in one run on one machine: read the ratios, not the milliseconds. About
three minutes on two cores; --quick takes batch 8 alone.

Prints a Markdown table, and as its last line one JSON object of the figures.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from distill.hierarchy.semantic import SemanticHierarchy
from distill.losses.semantic import semantic_kd_loss, semantic_softmax_loss
from distill.targets.encoding import EncodingSpec
from distill.targets.tensors import dense_targets, encode

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from plain_losses import plain_kd_loss, plain_softmax_loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    hierarchy = SemanticHierarchy.bundled("imagenet21k-p-fall11")
    print("# Losses, vectorised against one image at a time\n")
    print(f"Command: `python benchmarks/losses.py{' --quick' if options.quick else ''}`, ", end="")
    print(f"{time.strftime('%Y-%m-%d')}, {options.threads} of {os.cpu_count()} cores, ", end="")
    print(f"Python {platform.python_version()}, torch {version('torch')}, float32, CPU.")
    print("Median of 5 (plain: of 1 at batch 1024), forward and backward.\n")
    print("| batch | loss | plain ms | vectorised ms | ratio |")
    print("| ---: | --- | ---: | ---: | ---: |")
    figures = {}
    for batch in (8,) if options.quick else (64, 1024):
        for name, plain_ms, fast_ms in _measure(batch, hierarchy):
            ratio = plain_ms / fast_ms
            times = f"{plain_ms:.1f} | {fast_ms:.1f} | {ratio:.1f}"
            print(f"| {batch} | {name} | {times} |", flush=True)
            figures[f"{name}, batch {batch}"] = {
                "plain_ms": round(plain_ms, 2),
                "vectorised_ms": round(fast_ms, 2),
                "ratio": round(ratio, 2),
            }
    print("\n" + json.dumps(figures))


def _measure(batch: int, hierarchy: SemanticHierarchy) -> list[tuple[str, float, float]]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(batch, hierarchy.num_classes, generator=generator).requires_grad_()
    teacher = torch.randn(batch, hierarchy.num_classes, generator=generator) * 4
    labels = torch.randint(hierarchy.num_classes, (batch,), generator=generator)
    dense = dense_targets(teacher, hierarchy)
    sparse = encode(
        teacher, hierarchy, EncodingSpec.named("standard", hierarchy.classes_per_hierarchy)
    )

    def kd(targets: object) -> Tensor:
        return semantic_kd_loss(
            student_logits=logits,
            targets=targets,  # type: ignore[arg-type]
            labels=labels,
            hierarchy=hierarchy,
            divergence="mse",
        )

    plain_runs = 1 if batch > 100 else 5
    softmax_plain = _median_ms(
        lambda: plain_softmax_loss(logits, labels, hierarchy, 0.2), logits, plain_runs
    )
    kd_plain = _median_ms(
        lambda: plain_kd_loss(logits, dense.probs, dense.confidence, labels, hierarchy, "mse"),
        logits,
        plain_runs,
    )
    softmax = _median_ms(
        lambda: semantic_softmax_loss(
            logits=logits, labels=labels, hierarchy=hierarchy, label_smoothing=0.2
        ),
        logits,
    )
    return [
        ("semantic softmax", softmax_plain, softmax),
        ("semantic KD, dense", kd_plain, _median_ms(lambda: kd(dense), logits)),
        ("semantic KD, sparse", kd_plain, _median_ms(lambda: kd(sparse), logits)),
    ]


def _median_ms(loss: Callable[[], Tensor], logits: Tensor, runs: int = 5) -> float:
    taken = []
    for run in range(runs + (runs > 1)):
        started = time.perf_counter()
        torch.autograd.grad(loss(), logits)
        if run or runs == 1:  # the first is a warm-up
            taken.append(1000 * (time.perf_counter() - started))
    return statistics.median(taken)


if __name__ == "__main__":
    main()
