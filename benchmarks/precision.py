"""What does a teacher's answer lose in bfloat16, beside what the encoding loses?

    python benchmarks/precision.py [--quick] [--shared ../shared] [--device cuda]

Precomputes the same images in float32 and in bfloat16. The second store's certificate says what
each of them turns the KD gradient by; `store diff`'s comparison says how often the first class is
another one. The teacher is the trained ResNet-18-D of tiny-imagenet-h; without --shared a ResNet-18
that the script trains on rendered figures, on the device. --quick takes few images and epochs.

A minute or two. Prints a log in Markdown, and as its last line one JSON object.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from bare_forward import hardware
from commands import answer_of

from distill.data.rendered.plane_figures import HIERARCHY, FigureSet, write_figures
from distill.models.devices import pick_device
from distill.store.logit_store import LogitStore
from distill.store.upkeep.diff import diff

EXACT, ROUNDED = "float32", "bfloat16"
ANGLES = {"precision": ROUNDED, "mse_middle": "the encoding, half-way student"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    device = pick_device(options.device)
    print("# bfloat16 against float32\n")
    print(
        f"Command: `python benchmarks/precision.py{' --quick' if options.quick else ''} --device "
        f"{options.device}`, {time.strftime('%Y-%m-%d')}, {hardware(device)}; torch "
        f"{version('torch')}\n"
    )
    with tempfile.TemporaryDirectory() as scratch:
        machine = ["--device", device, "--workers", 2]
        limit = 600 if options.quick else 6000
        if (options.shared / "data/teachers").is_dir():
            teacher = _trained(options.shared / "data")
        else:
            teacher = _train(Path(scratch), machine, options.quick)
        stores = {}
        for precision in (EXACT, ROUNDED):
            words = ["--precision", precision, "--limit", limit]
            stores[precision] = Path(scratch) / precision
            answer_of("precompute", *teacher, *machine, *words, "--store", stores[precision])
        angles = answer_of("store", "info", stores[ROUNDED])["fidelity"]["angle_deg"]
        apart = diff(*(LogitStore.open(str(store)) for store in stores.values()))
    several = [each for each in apart.per_hierarchy if each.distance_max > 0]  # classes
    agreement = min(each.top1_agreement for each in several)
    confidence = max(each.confidence_max for each in several)
    print(f"{teacher[1]}, {limit:,} images\n")
    print("| angle of the gradient | median | p99 |\n| --- | ---: | ---: |")
    for name, label in ANGLES.items():
        print(f"| {label} | {angles[name]['median']:.2f}° | {angles[name]['p99']:.2f}° |")
    print(
        f"\nThe first class is the same in {100 * agreement:.2f}% at least, hierarchy by "
        f"hierarchy; confidences differ by {confidence:.3f} at most."
    )
    figures = {"angle_deg": {name: angles[name] for name in ANGLES}, "top1_agreement": agreement}
    print(json.dumps({**figures, "confidence_max": confidence}))


def _trained(data: Path) -> list[object]:
    """Words for tiny-imagenet-h and its teacher."""
    images = data / "tiny-imagenet-h"
    weights = data / "teachers/resnet18d-64px-tiny-imagenet-h.safetensors"
    named = ["--teacher", "resnet18d", "--weights", weights]
    return [*named, "--data", images, "--label-set", images / "label_set.json"]


def _train(scratch: Path, machine: Sequence[object], quick: bool) -> list[object]:
    """Words for rendered figures, and for a teacher that was trained on them."""
    figures = FigureSet(train=600, val=100) if quick else FigureSet()
    write_figures(scratch / "figures", figures)
    data = ["--data", scratch / "figures", "--label-set", HIERARCHY, "--view-policy", "plain"]
    words = ["--student", "resnet18", "--init", "random", "--image-size", figures.pixels]
    words += ["--epochs", 1 if quick else 8, "--lr", 0.003, "--out", scratch / "teacher"]
    answer_of("pretrain", *words, *data, *machine)
    return ["--teacher", "resnet18", "--weights", scratch / "teacher/student.safetensors", *data]


if __name__ == "__main__":
    main()
