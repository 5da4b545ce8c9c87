"""Does a detector need a pretrained backbone, or only more time? And on how few images?

    python benchmarks/detection.py [--quick] [--shared ../shared] [--out FOLDER] [--jobs 2]

Figures 1 and 7 of "Rethinking ImageNet pre-training" (He et al. 2018, arXiv 1811.08883) in
miniature. A RetinaNet on a test_resnet learns scenes of plane figures (64 pixels, `distill data
scenes`) from weights that were pretrained on photographs (tiny-imagenet-h, twelve epochs, semantic
softmax without a teacher), and from random ones: 2,000 images in a short schedule, of eight epochs,
and in one three times as long; and in the long one 200 of them. Average precision (COCO's) on 500
other images, three seeds, which choose the images as well.

Each detector trains on one core, --jobs at a time: about two hours on one. With --out a benchmark
that was stopped goes on. --quick takes one epoch of pretraining, few iterations, and one seed.
Prints a log in Markdown, and as its last line one JSON object.
"""

import json
import statistics
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from commands import RECIPE, answer_of, benchmark, spread

STUDENT, ALL, FEW, SHORT, LONG = "test_resnet", 2000, 200, 2000, 6000
MACHINE = ("--device", "cpu", "--workers", 0)
DETECTOR = ("--detector", "retinanet", "--image-size", 64, "--channels", 64, "--batch-size", 8)
Curves = dict[str, list[tuple[int, float]]]  # average precision by iteration, of each start


def compared(unit: tuple[Path, Path, Path, int, int, int]) -> Curves:
    """From pretrained and from random weights, by the same schedule."""
    run, scenes, out, images, iterations, seed = unit
    result = out / "figures.json"
    if not result.exists():
        answer_of(
            *("detect", "--student", STUDENT, "--compare", f"{run},random", "--longer", 1),
            *(*DETECTOR, "--data", scenes, "--limit", images, "--seed", seed, "--out", out),
            *("--iterations", iterations, "--validate-every", max(1, iterations // 12), *MACHINE),
        )
        found = {}
        for name, start in (("pretrained", run.name), ("random", "random")):
            history = json.loads((out / start / "run.json").read_text())["history"]
            found[name] = [(h["iteration"], h["validation"]["ap"] or 0.0) for h in history]
        result.write_text(json.dumps(found))
    curves: Curves = json.loads(result.read_text())
    return curves


def main() -> None:
    with benchmark("Detectors from pretrained and from random weights", __doc__) as (options, out):
        seeds = range(1 if options.quick else 3)
        cells = [(ALL, SHORT), (ALL, LONG), (FEW, LONG)]
        if options.quick:
            cells = [(40, 4), (40, 12), (20, 12)]
        data = options.shared.resolve() / "data/tiny-imagenet-h"
        scenes, run = out / "scenes", out / "run"
        if not (scenes / "val.json").exists():
            many = ("--train", cells[0][0], "--val", 20 if options.quick else 500, "--pixels", 64)
            answer_of("data", "scenes", "--out", scenes, *many)
        answer_of(
            *("pretrain", "--config", RECIPE, "--student", STUDENT, "--init", "random"),
            *("--data", data, "--label-set", data / "label_set.json", "--out", run),
            *("--epochs", 1 if options.quick else 12, "--device", "cpu", "--workers", 1),
            *(("--limit", 640) if options.quick else ()),
        )
        units = [
            (run, scenes, out / f"{images}-{iterations}-{seed}", images, iterations, seed)
            for seed in seeds
            for images, iterations in cells
        ]
        with ThreadPoolExecutor(options.jobs) as pool:
            done = zip(units, pool.map(compared, units), strict=True)
            found = {unit[3:]: curves for unit, curves in done}
    print("## Average precision at the end, %\n")
    print("| images | iterations | pretrained | random | difference |")
    print("| ---: | ---: | ---: | ---: | ---: |")
    for images, iterations in cells:
        ends = [
            {name: curve[-1][1] for name, curve in found[images, iterations, seed].items()}
            for seed in seeds
        ]
        gains = [end["pretrained"] - end["random"] for end in ends]
        columns = ([end["pretrained"] for end in ends], [end["random"] for end in ends], gains)
        print(f"| {images} | {iterations} | {' | '.join(map(spread, columns))} |")
    for images, iterations in cells[1:]:
        print(f"\n## By iteration, {images} images, mean over the seeds, %\n")
        print("| iteration | pretrained | random |\n| ---: | ---: | ---: |")
        of_seeds = [found[images, iterations, seed] for seed in seeds]
        for i, (iteration, _) in enumerate(of_seeds[0]["random"]):
            means = [
                f"{100 * statistics.mean(curves[name][i][1] for curves in of_seeds):.1f}"
                for name in ("pretrained", "random")
            ]
            print(f"| {iteration} | {' | '.join(means)} |")
    print(flush=True)
    print(json.dumps({"/".join(map(str, cell)): curves for cell, curves in found.items()}))


if __name__ == "__main__":
    main()
