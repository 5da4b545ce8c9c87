"""Does cleaning labels help more, the longer the training? Softmax or sigmoid?

    python benchmarks/long_schedules.py [--quick] [--shared ../shared] [--out FOLDER] [--jobs 2]

Table 2 of "Are we done with ImageNet?" (Beyer et al. 2020, arXiv 2006.07159) in miniature: there
ResNet-50 is trained for 90, 270 and 900 epochs on ImageNet-1K, by softmax or sigmoid, on all images
or on those that held-out models confirm. Here a test_resnet of 64 pixels is trained for 8, 24 and
80 epochs on 2,000 images of 20 leaf classes of tiny-imagenet-h, of which 10% get the label of
another image; `distill data clean` looks for them with five folds of 24 epochs, and for comparison
a list leaves out just those. Judged by the true labels of 500 validation images, three seeds.

Each student trains on one core, --jobs at a time: about two hours on one. With --out a benchmark
that was stopped goes on. --quick takes 600 images, two short lengths and one seed.
Prints a log in Markdown, and as its last line one JSON object.
"""

import argparse
import csv
import json
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from commands import answer_of, benchmark, in_percent, spread

STUDENT, CLASSES, FOLDS, CLEANING_EPOCHS, WRONG = "test_resnet", 20, 5, 24, 0.1
MACHINE = ("--device", "cpu", "--workers", 1)
PLAIN = ("-o", "views.randaugment_ops=0", "-o", "views.cutout=0")
LOSSES = {
    "softmax": ("--scheme", "single-label", "--label-smoothing", 0),
    "sigmoid": ("--scheme", "multi-label", "-o", "multi_label_loss=bce"),
}


class Bench:
    """Plants wrong labels, cleans, trains and judges by the commands a user types."""

    def __init__(self, options: argparse.Namespace, out: Path) -> None:
        self.tiny, self.out = options.shared.resolve() / "data/tiny-imagenet-h", out
        self.jobs, self.quick = options.jobs, options.quick
        self.images = 600 if self.quick else 2000
        self.epochs = (1, 2) if self.quick else (8, 24, 80)
        self.seeds = range(1 if self.quick else 3)
        self.data = out / "data"

    def plant(self) -> None:
        """Class folders of leaf classes, with wrong labels among the training images."""
        if (self.out / "wrong.csv").exists():
            return
        with (self.tiny / "labels.csv").open() as file:
            true = {(row["split"], row["key"]): row["true_wnid"] for row in csv.DictReader(file)}
        leaves = sorted({*true.values()})[:: 200 // CLASSES]
        random = np.random.default_rng(0)
        rows: list[tuple[str, ...]] = []
        wrong: list[tuple[str, ...]] = []
        good: list[tuple[str, ...]] = []
        for split, most in (("train", self.images), ("val", 500)):
            left = dict.fromkeys(leaves, most // len(leaves))
            for tar in sorted(self.tiny.glob(f"{split}-*.tar")):
                with tarfile.open(tar) as members:
                    for member in members:
                        key, _, suffix = member.name.partition(".")
                        wnid = true[split, key]
                        if suffix != "jpg" or not left.get(wnid):
                            continue
                        left[wnid] -= 1
                        label = wnid
                        if split == "train" and random.random() < WRONG:
                            label = leaves[int(random.integers(len(leaves)))]
                        folder = self.data / split / label
                        folder.mkdir(parents=True, exist_ok=True)
                        content = members.extractfile(member)
                        assert content
                        (folder / member.name).write_bytes(content.read())
                        if split == "train":
                            rows.append((f"{label}/{key}", wnid))
                            (good if label == wnid else wrong).append((f"{label}/{key}",))
        _write(self.out / "truth.csv", [("key", "true_wnid"), *rows])
        _write(self.out / "right.csv", [("key",), *good])
        parents = {"parents": dict.fromkeys(leaves)}
        (self.out / "labels.json").write_text(json.dumps(parents))
        _write(self.out / "wrong.csv", [("key",), *wrong])

    def clean(self) -> dict[str, Any]:
        """What `distill data clean` found."""
        found: dict[str, Any] = answer_of(
            *("data", "clean", "--student", STUDENT, "--init", "random", "--data", self.data),
            *("--label-set", self.out / "labels.json", "--folds", 2 if self.quick else FOLDS),
            *("--epochs", 1 if self.quick else CLEANING_EPOCHS, "--lr", 3e-3, "--image-size", 64),
            *(*PLAIN, "--label-smoothing", 0.1, "--truth", self.out / "truth.csv"),
            *("--out", self.out / "clean", "--jobs", self.jobs, "--device", "cpu"),
        )
        return found

    def accuracies(self) -> dict[tuple[str, str, int], list[float]]:
        """By loss, images and epochs: of each seed."""
        lists = {
            "all": (),
            "cleaned": ("--samples", self.out / "clean/cleaned.csv"),
            "only right": ("--samples", self.out / "right.csv"),
        }
        cells = [
            (loss, images, epochs) for epochs in self.epochs for loss in LOSSES for images in lists
        ]
        runs = [(cell, seed) for seed in self.seeds for cell in cells]

        def one(run: tuple[tuple[str, str, int], int]) -> float:
            (loss, images, epochs), seed = run
            folder = self.out / f"{loss}-{images}-{epochs}-{seed}".replace(" ", "-")
            result = folder / "figures.json"
            if not result.exists():
                answer_of(
                    *("finetune", "--student", STUDENT, "--init", "random", "--data", self.data),
                    *(*LOSSES[loss], *lists[images], "--epochs", epochs, "--lr", 3e-3, *PLAIN),
                    *("--image-size", 64, "--seed", seed, "-o", f"validate_every={epochs}"),
                    *("--out", folder, *MACHINE),
                )
                (judged,) = answer_of("evaluate", folder, "--data", self.data, *MACHINE).values()
                result.write_text(json.dumps(judged["top1"]))
            return float(json.loads(result.read_text()))

        with ThreadPoolExecutor(self.jobs) as pool:
            found = dict(zip(runs, pool.map(one, runs), strict=True))
        return {cell: [found[cell, seed] for seed in self.seeds] for cell in cells}


def _write(path: Path, rows: list[tuple[str, ...]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def main() -> None:
    with benchmark("Cleaned labels and long schedules", __doc__) as (options, out):
        bench = Bench(options, out)
        bench.plant()
        cleaned = bench.clean()
        del cleaned["files"]
        suspect = cleaned["against_truth"]["suspect"]
        shares = [suspect[name] or 0.0 for name in ("precision", "recall")]
        print(
            f"`distill data clean` keeps {100 * cleaned['retained']:.1f}% of {cleaned['images']} "
            f"images: {suspect['images']} suspect, of {suspect['wrong']} wrong ones; precision "
            f"{100 * shares[0]:.1f}%, recall {100 * shares[1]:.1f}%.\n"
        )
        found = bench.accuracies()
        print("## Top-1 by the true labels, %\n")
        print("| loss | images | " + " | ".join(f"{n} epochs" for n in bench.epochs) + " |")
        print("| --- | --- |" + " ---: |" * len(bench.epochs))
        for loss, images in dict.fromkeys((loss, images) for loss, images, _ in found):
            row = " | ".join(spread(found[loss, images, n]) for n in bench.epochs)
            print(f"| {loss} | {images} | {row} |")
        print("\n## What cleaning adds, points\n")
        print("| loss | images | " + " | ".join(f"{n} epochs" for n in bench.epochs) + " |")
        print("| --- | --- |" + " ---: |" * len(bench.epochs))
        for loss in LOSSES:
            for images in ("cleaned", "only right"):
                gains = [
                    np.subtract(found[loss, images, n], found[loss, "all", n]) for n in bench.epochs
                ]
                row = " | ".join("{:+.2f} ± {:.2f}".format(*in_percent(gain)) for gain in gains)
                print(f"| {loss} | {images} | {row} |")
        print(flush=True)
        accuracy = {"/".join(map(str, cell)): values for cell, values in found.items()}
    print(json.dumps({"cleaned": cleaned, "accuracy": accuracy}))


if __name__ == "__main__":
    main()
