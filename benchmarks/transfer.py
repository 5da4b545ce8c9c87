"""Which pretraining makes the student that learns other tasks best?

    python benchmarks/transfer.py [--quick] [--shared ../shared] [--out FOLDER] [--jobs 2]

As tables 2, 3 and 11 of Ridnik et al. 2021 (arXiv 2104.10972) ask it, on small data: students of
each scheme, with and without a teacher, are pretrained on tiny-imagenet-h without 40 of its 200
leaf classes, and fine-tuned on those, on 5,000 images of CIFAR-10, on 3,068 photographs of clothes,
and on mosaics with tags. Of semantic softmax the weights of eq. 4, their square roots, and even
ones. The teacher is a ResNet-18-D, trained on all of Tiny-ImageNet, so that what it tells of the 40
classes' kin is no surprise: of KD the other three tasks are the fair test. Single-label students
learn from that teacher trained further with one softmax on the data of pretraining, in its own
answers; multi-label ones from the same answers as semantic ones. `distill transfer` chooses the
learning rate of each cell on training images, and reports. Semantic students also of 4 and of 24
epochs, on two of the tasks.

A test_resnet of 64 pixels, twelve epochs from random weights, three seeds. Each student trains on
one core, --jobs at a time: about four hours on two cores. With --out a benchmark that was stopped
goes on. --quick takes one seed, one epoch, 1,280 images and two starts. Prints a log in Markdown,
and as its last line one JSON object.
"""

import argparse
import csv
import json
import statistics
import tarfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from commands import RECIPE, answer_of, benchmark, spread

EPOCHS, SEEDS, TUNED_EPOCHS, RATES = 12, 3, 8, "3e-3,1e-2,3e-2"
OTHER_EPOCHS = (4, 24)  # of pretraining, for the curve
HELD_OUT = 5  # every fifth leaf class
STUDENT, TEACHER = "test_resnet", "resnet18d"
MACHINE = ("--device", "cpu", "--workers", 1)
TASKS = ("40 new classes", "mosaics", "CIFAR-10", "clothes")
CURVE_TASKS = ("40 new classes", "CIFAR-10")
PAPER = ("-o", "hierarchy_weights=paper")
FIGURES = ("semantic_top1", "top1", "macro_map", "missing_tag_recovery")


@dataclass(frozen=True)
class Kind:
    """A pretraining. more: words of its command."""

    name: str
    scheme: str
    taught: bool = False
    more: tuple[str, ...] = ()
    epochs: int = EPOCHS


def _both(name: str, scheme: str, *more: str) -> list[Kind]:
    return [
        Kind(f"{name}{' + KD' if taught else ''}", scheme, taught, more) for taught in (False, True)
    ]


KINDS = [
    *_both("semantic", "semantic", *PAPER),
    *_both("single-label", "single-label"),
    *_both("multi-label", "multi-label"),
    *_both("semantic, roots", "semantic", "-o", "hierarchy_weights=sqrt"),
    *_both("semantic, even", "semantic", "-o", "hierarchy_weights=even"),
    *(
        Kind(
            f"semantic + KD ({name})",
            "semantic",
            True,
            (*PAPER, "-o", f"divergence={name.lower()}"),
        )
        for name in ("MSE", "DIST")
    ),
]
# By epochs: those of KINDS, and others.
CURVES = {
    taught: [
        Kind(f"semantic{' + KD' if taught else ''}, {n} epochs", "semantic", taught, PAPER, n)
        for n in OTHER_EPOCHS
    ]
    for taught in (False, True)
}


class Bench:
    """Splits the data, makes stores, trains and judges by the commands a user types."""

    def __init__(self, options: argparse.Namespace, out: Path) -> None:
        self.shared, self.out, self.jobs = options.shared.resolve() / "data", out, options.jobs
        self.quick = options.quick
        self.limit = ("--limit", 1280) if options.quick else ()
        self.seeds = range(1 if options.quick else SEEDS)
        kinds, curve = KINDS, [kind for some in CURVES.values() for kind in some]
        if options.quick:
            kinds = [replace(kind, epochs=1) for kind in KINDS[:2]]
            curve = [replace(CURVES[True][0], epochs=2)]
        self.kinds, self.curve = kinds, curve
        self.tiny = self.shared / "tiny-imagenet-h"
        self.label_set = ("--label-set", self.tiny / "label_set.json")
        self.data, self.new_classes = out / "pretraining", out / "held-out"

    def split(self) -> None:
        """tiny-imagenet-h without some leaf classes, as tars, and those as class folders."""
        done = self.out / "split.json"
        if done.exists():
            return
        with (self.tiny / "labels.csv").open() as file:
            true = {(row["split"], row["key"]): row["true_wnid"] for row in csv.DictReader(file)}
        leaves = sorted({*true.values()})
        held_out = {*leaves[::HELD_OUT]} if not self.quick else {*leaves[::50]}
        self.data.mkdir(parents=True, exist_ok=True)
        for split in ("train", "val"):
            with tarfile.open(self.data / f"{split}-000000.tar", "w") as kept:
                for path in sorted(self.tiny.glob(f"{split}-*.tar")):
                    with tarfile.open(path) as members:
                        for member in members:
                            key, _, extension = member.name.partition(".")
                            file_of_it = members.extractfile(member)
                            assert file_of_it
                            wnid = true[split, key]
                            if wnid not in held_out:
                                kept.addfile(member, file_of_it)
                            elif extension == "jpg":
                                folder = self.new_classes / split / wnid
                                folder.mkdir(parents=True, exist_ok=True)
                                (folder / member.name).write_bytes(file_of_it.read())
        done.write_text(json.dumps(sorted(held_out)))

    def stores(self) -> dict[bool, Path]:
        """Of the teacher as it is, and (True) of one trained further with one softmax."""
        given = self.shared / "teachers/resnet18d-64px-tiny-imagenet-h.safetensors"
        single = self.out / "single-label-teacher"
        answer_of(
            *("pretrain", "--config", RECIPE, "--student", TEACHER, "--init", given, *self.limit),
            *("--scheme", "single-label", "--lr", 1e-3, "--data", self.data, *self.label_set),
            *("--out", single, "--device", "cpu", "--workers", 2),
            *(("--epochs", 1) if self.quick else ()),
        )
        stores = {}
        for of_one, weights, head in ((False, given, "semantic"), (True, single, "flat")):
            stores[of_one] = self.out / f"store-{head}"
            answer_of(
                *("precompute", "--teacher", TEACHER, "--weights", weights, "--head", head),
                *(*self.label_set, "--data", self.data, "--store", stores[of_one], "--views", 3),
                *("--encoding", "dense", "--randaugment-ops", 0, "--cutout", 0, *self.limit),
                *("--device", "cpu", "--workers", 2),
            )
        return stores

    def pretrain(
        self, kinds: Sequence[Kind], stores: dict[bool, Path]
    ) -> dict[str, list[dict[str, Any]]]:
        """Figures of each kind's runs, by seed."""
        runs = [(kind, seed) for seed in self.seeds for kind in kinds]
        with ThreadPoolExecutor(self.jobs) as pool:
            judged = list(pool.map(lambda run: self._one(run[0], run[1], stores), runs))
        return {
            kind.name: [f for (k, _), f in zip(runs, judged, strict=True) if k is kind]
            for kind in kinds
        }

    def _one(self, kind: Kind, seed: int, stores: dict[bool, Path]) -> dict[str, Any]:
        folder, begun = self.folder(kind, seed), time.monotonic()
        result = folder / "figures.json"
        if result.exists():
            found: dict[str, Any] = json.loads(result.read_text())
            return found
        store = stores[kind.scheme == "single-label"]
        targets = ("--targets", store, "--cache", self.out / "cache") if kind.taught else ()
        answer_of(
            *("pretrain", "--config", RECIPE, "--student", STUDENT, "--epochs", kind.epochs),
            *("--scheme", kind.scheme, *kind.more, "--seed", seed, *targets, *self.limit),
            *("--data", self.data, *self.label_set, "--out", folder, *MACHINE),
            *("-o", f"validate_every={kind.epochs}"),
        )
        truth = ("--truth", self.tiny / "labels.csv")
        (judged,) = answer_of("evaluate", folder, "--data", self.data, *truth, *MACHINE).values()
        figures = {name: judged[name] for name in FIGURES}
        figures["per_hierarchy"] = judged["semantic_top1_per_hierarchy"]
        figures["kd_weight"] = json.loads((folder / "run.json").read_text())["kd_weight"]
        figures["seconds"] = time.monotonic() - begun
        result.write_text(json.dumps(figures))
        return figures

    def folder(self, kind: Kind, seed: int) -> Path:
        """Of a run."""
        name = kind.name.replace(" ", "").replace(",", "-").replace("(", "-").replace(")", "")
        return self.out / f"{name}-{seed}"

    def transfer(
        self, kinds: Sequence[Kind], table: str, tasks: Sequence[str]
    ) -> tuple[list[dict[str, Any]], float]:
        """Cells of a table, and the seconds that making them took."""
        begun, downstream = time.monotonic(), self.shared / "downstream"
        named: list[object] = [
            f"{kind.name}={self.folder(kind, seed)}" for kind in kinds for seed in self.seeds
        ]
        if not self.quick and kinds is self.kinds:
            named.append("random=random")
        places = {
            "40 new classes": self.new_classes,
            "mosaics": downstream / "mosaic-tags",
            "CIFAR-10": downstream / "cifar10-5k",
            "clothes": downstream / "clothing-96px",
        }
        tags = ("--tags", f"mosaics={downstream / 'mosaic-tags/tags.csv'}")
        cells: list[dict[str, Any]] = answer_of(
            *("transfer", *named, "--student", STUDENT, "--jobs", self.jobs, "--device", "cpu"),
            *(word for task in tasks for word in ("--data", f"{task}={places[task]}")),
            *(*(tags if "mosaics" in tasks else ()), "--out", self.out / table),
            *("--lr", "3e-3" if self.quick else RATES, "--seeds", len(self.seeds)),
            *("--epochs", 1 if self.quick else TUNED_EPOCHS),
            *("-o", "label_smoothing=0.1", "-o", "views.randaugment_ops=0", "-o", "views.cutout=0"),
        )
        return cells, time.monotonic() - begun


def main() -> None:
    with benchmark("Which pretraining transfers", __doc__) as (options, out):
        bench = Bench(options, out)
        bench.split()
        stores = bench.stores()
        pretrained = bench.pretrain(bench.kinds, stores)
        _print_pretrained(pretrained)
        cells, seconds = bench.transfer(bench.kinds, "table", TASKS[: 2 if options.quick else None])
        print("## After fine-tuning: top-1, of mosaics macro mAP\n")
        _print_cells(cells)
        trained = sum(run["seconds"] for runs in pretrained.values() for run in runs)
        hours = f"{trained / 3600:.1f} core-hours, transfer {seconds / 3600:.1f} hours"
        print(f"Pretraining took {hours}.\n", flush=True)
        longer = bench.pretrain(bench.curve, stores)
        curve, _ = bench.transfer(bench.curve, "curve", CURVE_TASKS[: 1 if options.quick else None])
    print("## By epochs of pretraining\n")
    _print_cells(curve)
    print(json.dumps({"pretrained": pretrained | longer, "transfer": cells, "by epochs": curve}))


def _print_pretrained(pretrained: dict[str, list[dict[str, Any]]]) -> None:
    print("## On the classes of pretraining, validation images, %\n")
    print("| student | KD weight | semantic accuracy | fine top-1 | macro mAP | missing tags |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name, runs in pretrained.items():
        cells = " | ".join(spread([run[figure] for run in runs]) for figure in FIGURES)
        print(f"| {name} | {statistics.mean(run['kd_weight'] for run in runs):.3g} | {cells} |")
    print("\n## Semantic accuracy by hierarchy, mean over the seeds, %\n")
    levels = range(len(next(iter(pretrained.values()))[0]["per_hierarchy"]))
    print("| student | " + " | ".join(map(str, levels)) + " |")
    print("| --- |" + " ---: |" * len(levels))
    for name, runs in pretrained.items():
        shares = [statistics.mean(run["per_hierarchy"][k] or 0 for run in runs) for k in levels]
        print(f"| {name} | " + " | ".join(f"{100 * share:.1f}" for share in shares) + " |")
    print(flush=True)


def _print_cells(cells: list[dict[str, Any]]) -> None:
    from distill.trainers.transfer import Cell, as_table

    known = [{k: v for k, v in cell.items() if k != "mean"} for cell in cells]
    for line in as_table([Cell(**{**cell, "values": tuple(cell["values"])}) for cell in known]):
        print(line)
    print("\nLearning rates chosen:\n")
    for start in dict.fromkeys(cell["start"] for cell in cells):
        chosen = [
            f"{c['task']} {c['lr']:g}{' (an end)' if c['lr_at_an_end'] else ''}"
            for c in cells
            if c["start"] == start
        ]
        print(f"- {start}: " + ", ".join(chosen))
    print(flush=True)


if __name__ == "__main__":
    main()
