"""Does a detector need a pretrained backbone, or only more time? And on how few images?

    python benchmarks/detection.py [--quick] [--shared ../shared] [--out FOLDER] [--jobs 2]

Figures 1 and 7 of "Rethinking ImageNet pre-training" (He et al. 2018, arXiv 1811.08883) in
miniature. A RetinaNet on a test_resnet learns scenes of plane figures (64 pixels, `distill data
scenes`) from weights that were pretrained on photographs (tiny-imagenet-h, twelve epochs, semantic
softmax without a teacher) and, three times as long, from random ones; of 2,000 images in twelve
epochs, as COCO's 118,000 in the paper, and as many iterations of 350 and 100 of them. Average
precision (COCO's) on 500 other images, three seeds, which choose the images as well.

Each detector trains on one core, --jobs at a time: about two hours on one. With --out a benchmark
that was stopped goes on. --quick takes one epoch of pretraining, few iterations, two sizes and one
seed. Prints a log in Markdown, and as its last line one JSON object.
"""

import json
import statistics
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from commands import RECIPE, answer_of, benchmark, spread

STUDENT, LONGER = "test_resnet", 3
MACHINE = ("--device", "cpu", "--workers", 0)
DETECTOR = ("--detector", "retinanet", "--image-size", 64, "--channels", 64, "--batch-size", 8)


def compared(unit: tuple[Path, Path, Path, int, int, int]) -> dict[str, Any]:
    """Average precision by iteration, of each start."""
    run, scenes, out, images, seed, iterations = unit
    result = out / "figures.json"
    if not result.exists():
        answer_of(
            *("detect", "--student", STUDENT, "--compare", f"{run},random", "--longer", LONGER),
            *(*DETECTOR, "--data", scenes, "--limit", images, "--seed", seed, "--out", out),
            *("--iterations", iterations, "--validate-every", max(1, iterations // 6), *MACHINE),
        )
        curves = {
            start: json.loads((out / start / "run.json").read_text())["history"]
            for start in (run.name, "random")
        }
        found = {
            "pretrained" if start == run.name else start: [
                (h["iteration"], h["validation"]["ap"]) for h in curve
            ]
            for start, curve in curves.items()
        }
        result.write_text(json.dumps(found))
    curves_of: dict[str, Any] = json.loads(result.read_text())
    return curves_of


def main() -> None:
    with benchmark("Detectors from pretrained and from random weights", __doc__) as (options, out):
        sizes = (100, 350) if options.quick else (2000, 350, 100)
        iterations, seeds = (4, 1) if options.quick else (3000, 3)
        data = options.shared.resolve() / "data/tiny-imagenet-h"
        scenes, run = out / "scenes", out / "run"
        if not (scenes / "val.json").exists():
            val = 20 if options.quick else 500
            many = ("--train", max(sizes), "--val", val, "--pixels", 64)
            answer_of("data", "scenes", "--out", scenes, *many)
        answer_of(
            *("pretrain", "--config", RECIPE, "--student", STUDENT, "--init", "random"),
            *("--data", data, "--label-set", data / "label_set.json", "--out", run),
            *("--epochs", 1 if options.quick else 12, "--device", "cpu", "--workers", 1),
            *(("--limit", 640) if options.quick else ()),
        )
        units = [
            (run, scenes, out / f"{images}-{seed}", images, seed, iterations)
            for seed in range(seeds)
            for images in sizes
        ]
        with ThreadPoolExecutor(options.jobs) as pool:
            found = {
                unit[3:5]: curves
                for unit, curves in zip(units, pool.map(compared, units), strict=True)
            }
    print(f"Iterations: {iterations} from pretrained weights, {LONGER * iterations} from random.\n")
    print("## Average precision at the end, %\n")
    print("| images | pretrained | random | random after as many iterations |")
    print("| ---: | ---: | ---: | ---: |")
    for images in sizes:
        of_seeds = [found[images, seed] for seed in range(seeds)]
        ends = {start: [curves[start][-1][1] for curves in of_seeds] for start in of_seeds[0]}
        early = [
            next(ap for iteration, ap in curves["random"] if iteration >= iterations)
            for curves in of_seeds
        ]
        row = " | ".join(spread(each) for each in (ends["pretrained"], ends["random"], early))
        print(f"| {images} | {row} |")
    print("\n## By iteration, all images, mean over the seeds, %\n")
    print("| iteration | pretrained | random |\n| ---: | ---: | ---: |")
    whole = [found[sizes[0], seed] for seed in range(seeds)]
    for i, (iteration, _) in enumerate(whole[0]["random"]):
        cells = [
            f"{100 * statistics.mean(c[start][i][1] for c in whole):.2f}"
            if i < len(whole[0][start]) and whole[0][start][i][0] == iteration
            else ""
            for start in ("pretrained", "random")
        ]
        print(f"| {iteration} | {' | '.join(cells)} |")
    print(flush=True)
    print(json.dumps({f"{images}/{seed}": curves for (images, seed), curves in found.items()}))


if __name__ == "__main__":
    main()
