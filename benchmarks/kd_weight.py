"""Which KD weight is right, and does one number say it for any number of classes?

    python benchmarks/kd_weight.py [--quick] [--shared ../shared] [--out FOLDER] [--jobs 2]

A weight is told as a pull (`distill.trainers.training.balance`): how many times as hard as the
labels the teacher pulls at the logits of a student that knows nothing yet. Both divergences are
swept over pulls for semantic students of 29 classes (the drawn figures of `distill demo`), of 440
(tiny-imagenet-h) and of 11,222 (the images of tiny-imagenet-h under ImageNet-21K-P's label set and
the one label that it lacks, and a teacher trained on that), KL also for students of the other
schemes. Judged on validation images. Six epochs of a test_resnet on 10,000 images, five on the
figures.

Each student trains on one core, --jobs at a time: an hour and a half on two. With --out a benchmark
that was stopped goes on. --quick takes 1,280 images, one epoch, two pulls and two sizes. Prints a
log in Markdown, and as its last line one JSON object.
"""

import argparse
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from commands import RECIPE, answer_of, benchmark

import distill
from distill.data.source import ImageSource, open_source
from distill.hierarchy.semantic import SemanticHierarchy, resolve
from distill.losses.names import Divergence
from distill.trainers.recipe import Recipe, Scheme
from distill.trainers.training.balance import fresh_pulls, weight_of
from distill.trainers.training.objectives import objective_of

PULLS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
SWEEPS: dict[str, tuple[tuple[Scheme, Divergence], ...]] = {
    "29 classes": (
        *(("semantic", "mse"), ("semantic", "kl")),
        *(("single-label", "kl"), ("multi-label", "kl")),
    ),
    "440 classes": (
        *(("semantic", "mse"), ("semantic", "kl")),
        *(("single-label", "kl"), ("multi-label", "kl")),
    ),
    "11,222 classes": (("semantic", "mse"), ("semantic", "kl")),
}
ROWS = 512  # that pulls are measured on
TINY = ("--config", RECIPE, "--student", "test_resnet", "--epochs", 6)
FIGURES = (
    *("--student", "test_resnet", "--init", "random", "--batch-size", 64, "--lr", 0.003),
    *("--label-smoothing", 0.1, "--image-size", 32),
)
PLAIN = ("--view-policy", "plain")
NO_AUGMENTATION = ("--randaugment-ops", 0, "--cutout", 0)


@dataclass(frozen=True, eq=False)
class Size:
    """Students of one number of classes. words: of their pretraining.

    weights: of each sweep, the one at which teacher and labels pull as hard.
    """

    name: str
    data: Path
    label_set: str | Path
    store: Path
    words: tuple[object, ...]
    weights: dict[tuple[Scheme, Divergence], float]


@dataclass(frozen=True)
class Run:
    """A student. pull 0 has no teacher."""

    scheme: Scheme
    divergence: Divergence
    pull: float
    seed: int = 0

    @property
    def name(self) -> str:
        """Of its folder."""
        scheme = "" if self.scheme == "semantic" else f"{self.scheme}-"
        return f"{scheme}{self.divergence}-{self.pull:g}-{self.seed}"


class Bench:
    """Trains and judges students by the commands a user types."""

    def __init__(self, options: argparse.Namespace, out: Path) -> None:
        self.shared, self.out, self.jobs = options.shared.resolve() / "data", out, options.jobs
        self.images = 1280 if options.quick else 10_000
        self.limit: tuple[object, ...] = ("--limit", self.images)
        self.quick: bool = options.quick
        self.epochs: tuple[object, ...] = ("--epochs", 1) if options.quick else ()

    def sizes(self) -> list[Size]:
        """Their teachers and stores are made where they are not there."""
        tiny = self.shared / "tiny-imagenet-h"
        weights = self.shared / "teachers/resnet18d-64px-tiny-imagenet-h.safetensors"
        own = tiny / "label_set.json"
        return [
            self._figures(),
            self._size("440 classes", tiny, own, weights, TINY, NO_AUGMENTATION, 3, 0.2),
            *([] if self.quick else [self._wide(tiny, weights)]),
        ]

    def _figures(self) -> Size:
        demo = self.out / "demo"
        if not self._store("29 classes").exists():
            answer_of("demo", "--out", demo)
        data, weights = demo / "figures", demo / "teacher/student.safetensors"
        words = (*FIGURES, "--epochs", 5)
        return self._size("29 classes", data, "plane-figures", weights, words, PLAIN, 1, 0.1)

    def _wide(self, tiny: Path, weights: Path) -> Size:
        folder, name = self.out / "wide-teacher", self.out / "wide.json"
        labels = resolve(str(tiny / "label_set.json")).synsets
        wide = SemanticHierarchy.bundled("imagenet21k-p-fall11").synsets
        (self.out / "wnids.txt").write_text("\n".join(sorted({*wide, *labels})))
        if not name.exists():
            answer_of("hierarchy", "build", self.out / "wnids.txt", "--out", name)
        if not self._store("11,222 classes").exists():
            answer_of(
                *("pretrain", "--config", RECIPE, "--student", "resnet18d", "--init", weights),
                *("--lr", 1e-3, "--data", tiny, "--label-set", name, "--out", folder),
                *("--device", "cpu", "--workers", 2),
            )
        trained = folder / "student.safetensors"
        return self._size("11,222 classes", tiny, name, trained, TINY, NO_AUGMENTATION, 3, 0.2)

    def _store(self, size: str) -> Path:
        """What is taught; where it is there, so is its teacher."""
        return self.out / size.replace(" ", "-") / "store"

    def _size(
        self,
        name: str,
        data: Path,
        label_set: str | Path,
        weights: Path,
        words: tuple[object, ...],
        policy: tuple[object, ...],
        views: int,
        label_smoothing: float,
    ) -> Size:
        store = self._store(name)
        teacher = "test_resnet" if label_set == "plane-figures" else "resnet18d"
        answer_of(
            *("precompute", "--teacher", teacher, "--weights", weights, "--label-set", label_set),
            *("--data", data, "--store", store, "--views", views, *policy, *self.limit),
            *("--device", "cpu", "--workers", 2),
        )
        images = open_source(data).limited(self.images)
        weights_by = _weights(SWEEPS[name], store, images, label_smoothing)
        return Size(name, data, label_set, store, words, weights_by)

    def all(self, size: Size, runs: list[Run]) -> dict[Run, tuple[float, float]]:
        """Semantic accuracy and fine top-1 of each."""
        with ThreadPoolExecutor(self.jobs) as pool:
            return dict(zip(runs, pool.map(lambda run: self.one(size, run), runs), strict=True))

    def one(self, size: Size, run: Run) -> tuple[float, float]:
        """Train a student, judge it."""
        folder = size.store.parent / run.name
        result = folder / "figures.json"
        if result.exists():
            semantic, fine = json.loads(result.read_text())
            return semantic, fine
        machine = ("--device", "cpu", "--workers", 1)
        targets: tuple[object, ...] = ()
        if run.pull:
            targets = ("--targets", size.store, "--cache", self.out / "cache")
            weight = size.weights[run.scheme, run.divergence]
            targets += ("--kd-weight", run.pull * weight)
        answer_of(
            *("pretrain", *size.words, "--seed", run.seed, "--data", size.data, *targets),
            *("--scheme", run.scheme, "--divergence", run.divergence),
            *(
                "-o",
                "hierarchy_weights=paper",
                "--label-set",
                size.label_set,
                "--out",
                folder,
                *machine,
            ),
            *(*self.limit, *self.epochs),
        )
        truth = ("--truth", size.data / "labels.csv")
        (judged,) = answer_of(
            "evaluate", folder, "--data", size.data, *truth, *machine, *self.limit
        ).values()
        found = judged["semantic_top1"], judged["top1"]
        result.write_text(json.dumps(found))
        return found


def _weights(
    sweeps: Sequence[tuple[Scheme, Divergence]],
    store: Path,
    data: ImageSource,
    label_smoothing: float,
) -> dict[tuple[Scheme, Divergence], float]:
    """Of each sweep: the one at which teacher and labels pull as hard."""
    weights = {}
    targets = distill.open(store, data=data, say=lambda line: None)
    rows = np.arange(min(ROWS, len(targets)))
    labels, answers = torch.from_numpy(targets.labels[rows]), targets.fetch(rows)
    for scheme, divergence in sweeps:
        recipe = Recipe(
            student="", scheme=scheme, divergence=divergence, label_smoothing=label_smoothing
        )
        objective = objective_of(recipe, targets.hierarchy, np.zeros(0, np.int64))
        weights[scheme, divergence] = weight_of(*fresh_pulls(objective, labels, answers))
    return weights


def main() -> None:
    figures: dict[str, Any] = {}
    with benchmark("The weight of the KD term", __doc__) as (options, out):
        pulls = PULLS[2:4] if options.quick else PULLS
        bench = Bench(options, out)
        for size in bench.sizes():
            figures[size.name] = _swept(bench, size, pulls)
    print(json.dumps(figures))


def _swept(bench: Bench, size: Size, pulls: tuple[float, ...]) -> dict[str, Any]:
    schemes = {scheme for scheme, _ in size.weights}
    found = bench.all(
        size,
        [Run(scheme, "mse", 0.0) for scheme in sorted(schemes)]
        + [Run(*sweep, pull) for sweep in size.weights for pull in pulls],
    )
    print(f"## {size.name}: semantic accuracy / fine top-1 by pull, %\n")
    heads = " | ".join(f"{pull:g}" for pull in pulls)
    print(f"| scheme | divergence | weight at pull 1 | no teacher | {heads} |")
    print("| --- | --- |" + " ---: |" * (2 + len(pulls)))
    figures: dict[str, Any] = {}
    for (scheme, divergence), weight in size.weights.items():
        runs = [Run(scheme, "mse", 0.0), *(Run(scheme, divergence, pull) for pull in pulls)]
        cells = (" / ".join(f"{100 * figure:.1f}" for figure in found[run]) for run in runs)
        print(f"| {scheme} | {divergence} | {weight:.3g} | " + " | ".join(cells) + " |")
        figures[f"{scheme}, {divergence}"] = {
            "weight": weight,
            **{f"{run.pull:g}": found[run] for run in runs},
        }
    print(flush=True)
    return figures


if __name__ == "__main__":
    main()
