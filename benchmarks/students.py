"""Which scheme makes the best student, and what does the teacher add?

    python benchmarks/students.py [--quick] [--shared ../shared] [--out FOLDER] [--jobs 4]

On tiny-imagenet-h: 20,000 training images, 30% of them tagged with an ancestor of their true class,
5,000 validation images with true classes, a ResNet-18-D teacher. Every student has the recipe
deploy/configs/tiny-imagenet-h.toml and differs from the others in scheme, targets and seed alone.
First the weight of the KD term is swept for each scheme with one seed; then the students run with
three seeds, with the best weight where they have KD; seed 0 and the validation images serve both.
Judged by `distill evaluate`: semantic accuracy and fine top-1 (among the 200 leaf classes) on
validation images, and how many of the tags that training images lack are supplied.

Each student trains on one core, --jobs at a time: about an hour and a half on four cores. With
--out a benchmark that was stopped goes on. --quick takes 1,280 images, one epoch and one seed.
Prints a log in Markdown, and as its last line one JSON object.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from commands import RECIPE, answer_of, benchmark, spread

FIGURES = ("semantic_top1", "top1", "missing_tag_recovery")
SWEEPS: dict[str, tuple[float, ...]] = {
    "semantic": (10, 20, 30, 50, 100, 300),
    "single-label": (30, 100, 300, 1000),
    "multi-label": (10, 100),
}


@dataclass(frozen=True)
class Run:
    """A student. kd_weight 0 has no targets."""

    scheme: str
    kd_weight: float
    seed: int
    live: bool = False
    even: bool = False  # weights of the hierarchies

    @property
    def name(self) -> str:
        """Of its folder."""
        kd = f"-kd{self.kd_weight:g}" if self.kd_weight else ""
        more = ("-live" if self.live else "") + ("-even" if self.even else "")
        return f"{self.scheme}{kd}{more}-seed{self.seed}"


class Bench:
    """Trains and judges students by the commands a user types."""

    def __init__(self, options: argparse.Namespace, out: Path) -> None:
        shared = options.shared.resolve() / "data"
        self.data, self.out, self.jobs = shared / "tiny-imagenet-h", out, options.jobs
        self.weights = shared / "teachers/resnet18d-64px-tiny-imagenet-h.safetensors"
        self.label_set = ("--label-set", self.data / "label_set.json")
        self.limit = ("--limit", 1280) if options.quick else ()
        self.epochs = ("--epochs", 1) if options.quick else ()

    def precompute(self) -> dict[str, Any]:
        """Three views of all training images."""
        return answer_of(
            *("precompute", "--teacher", "resnet18d", "--weights", self.weights, *self.label_set),
            *("--data", self.data, "--store", self.out / "store", "--views", 3, *self.limit),
            *("--randaugment-ops", 0, "--cutout", 0, "--device", "cpu", "--workers", 2),
        )

    def all(self, runs: Sequence[Run]) -> dict[Run, dict[str, Any]]:
        """Figures of each."""
        with ThreadPoolExecutor(self.jobs) as pool:
            return dict(zip(runs, pool.map(self.one, runs), strict=True))

    def one(self, run: Run) -> dict[str, Any]:
        """Train a student, judge it."""
        folder = self.out / run.name
        result = folder / "figures.json"
        if result.exists():
            found: dict[str, Any] = json.loads(result.read_text())
            return found
        machine = ("--device", "cpu", "--workers", 1)
        targets: tuple[object, ...] = ()
        if run.live:
            targets = ("--targets", "timm:resnet18d", "--teacher-weights", self.weights)
        elif run.kd_weight:
            targets = ("--targets", self.out / "store", "--cache", self.out / "cache")
        weight: tuple[object, ...] = ("-o", "divergence=mse")
        weight += ("--kd-weight", run.kd_weight) if run.kd_weight else ()
        weight += ("-o", "hierarchy_weights=even") if run.even else ()
        answer_of(
            *("pretrain", "--config", RECIPE, "--scheme", run.scheme, "--seed", run.seed, *weight),
            *("--data", self.data, *self.label_set, *targets, "--out", folder, *machine),
            *(*self.limit, *self.epochs),
        )
        truth = ("--truth", self.data / "labels.csv")
        (judged,) = answer_of(
            "evaluate", folder, "--data", self.data, *truth, *machine, *self.limit
        ).values()
        figures = {name: judged[name] for name in (*FIGURES, "micro_map", "macro_map", "top5")}
        figures["per_hierarchy"] = judged["semantic_top1_per_hierarchy"]
        result.write_text(json.dumps(figures))
        return figures


def main() -> None:
    with benchmark("Students on tiny-imagenet-h", __doc__, jobs=4) as (options, out):
        bench = Bench(options, out)
        bench.precompute()
        seeds = (0,) if options.quick else (0, 1, 2)
        swept, best = _sweep(bench, quick=options.quick)
        table = _table(bench, best, seeds)
    print(json.dumps({"seeds": seeds, "best_kd_weight": best, "sweep": swept, "table": table}))


def _sweep(bench: Bench, *, quick: bool) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """Semantic accuracy by scheme and weight, and the best weights."""
    weights = {scheme: some[:2] if quick else some for scheme, some in SWEEPS.items()}
    runs = [Run(scheme, w, 0) for scheme, some in weights.items() for w in some]
    found = bench.all(runs)
    swept = {
        scheme: {f"{w:g}": found[Run(scheme, w, 0)]["semantic_top1"] for w in some}
        for scheme, some in weights.items()
    }
    best = {scheme: float(max(row, key=lambda w: row[w])) for scheme, row in swept.items()}
    print("## Weight of the KD term: semantic accuracy on validation images, %, seed 0\n")
    for scheme, row in swept.items():
        print(f"- {scheme}: " + ", ".join(f"{w} → {100 * a:.2f}" for w, a in row.items()))
    print(flush=True)
    return swept, best


def _table(
    bench: Bench, best: dict[str, float], seeds: Sequence[int]
) -> dict[str, dict[str, list[float]]]:
    """Mean and deviation over the seeds, by kind of student."""
    kinds: dict[str, tuple[Any, ...]] = {
        "single-label": ("single-label", 0.0, False),
        "multi-label (ASL)": ("multi-label", 0.0, False),
        "semantic": ("semantic", 0.0, False),
        "semantic, even weights": ("semantic", 0.0, False, True),
        "single-label + KD": ("single-label", best["single-label"], False),
        "semantic + KD": ("semantic", best["semantic"], False),
        "semantic + KD, live teacher": ("semantic", best["semantic"], True),
    }
    runs = {
        name: [Run(scheme, weight, seed, *more) for seed in seeds]
        for name, (scheme, weight, *more) in kinds.items()
    }
    found = bench.all([run for some in runs.values() for run in some])
    print(f"## Students, mean ± standard deviation over seeds {', '.join(map(str, seeds))}, %\n")
    print("| student | semantic accuracy | fine top-1 | missing tags supplied |")
    print("| --- | ---: | ---: | ---: |")
    table = {}
    for name, some in runs.items():
        columns = {figure: [found[run][figure] for run in some] for figure in FIGURES}
        cells = " | ".join(spread(values) for values in columns.values())
        print(f"| {name} | {cells} |")
        table[name] = {figure: [round(v, 4) for v in values] for figure, values in columns.items()}
    print("\n## Semantic accuracy by hierarchy, mean over the seeds, %\n")
    levels = range(len(found[runs["semantic"][0]]["per_hierarchy"]))
    print("| student | " + " | ".join(map(str, levels)) + " |")
    print("| --- |" + " ---: |" * len(levels))
    for name, some in runs.items():
        shares = [statistics.mean(found[run]["per_hierarchy"][k] for run in some) for k in levels]
        print(f"| {name} | " + " | ".join(f"{100 * share:.1f}" for share in shares) + " |")
    print(flush=True)
    return table


if __name__ == "__main__":
    main()
