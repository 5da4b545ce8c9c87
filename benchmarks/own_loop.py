"""Loops of one's own against `distill pretrain`: accuracy of the examples, and what targets cost.

python benchmarks/own_loop.py [--demo demo-out] [--seeds 3] [--quick]

DEMO is what `distill demo` left. Accuracy is semantic top-1 on the validation images, judged by
`distill evaluate`. Rates are medians of five passes, in turns, in one process.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset

import distill
from distill.data.images import read_image
from distill.data.views import draw_view, render_view, resized

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = (
    "plain_pytorch",
    "timm_task",
    "lightning_module",
    "huggingface_trainer",
    "torchvision_style",
)
DISTILL = [sys.executable, "-m", "distill.cli.main"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demo", type=Path, default=Path("demo-out"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="rates alone")
    args = parser.parse_args()
    store, data = args.demo / "store.zarr", args.demo / "figures"
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        found = rates(two_views(args.demo, scratch), data)
        ratio = {"answers too to images alone": found["images_and_answers"] / found["images_alone"]}
        figures: dict[str, Any] = {"rates": found, "ratio": ratio}
        if not args.quick:
            figures["accuracy"] = accuracies(store, data, args.seeds, scratch)
    print(json.dumps(figures))


def two_views(demo: Path, scratch: Path) -> Path:
    """A store of the demo's images in two views."""
    words: list[Any] = ["precompute", "--teacher", "test_resnet", "--label-set", "plane-figures"]
    words += ["--weights", demo / "teacher", "--data", demo / "figures", "--device", "cpu"]
    words += ["--views", 2, "--store", scratch / "store"]
    subprocess.run([*DISTILL, *map(str, words)], check=True, capture_output=True)
    return scratch / "store"


def rates(store: Path, data: Path) -> dict[str, float]:
    """Rows per second: of look-ups, and of loaders with and without the teacher's answers."""
    targets = distill.open(store, data=data, say=lambda line: None)
    rows = np.random.default_rng(0).permutation(len(targets))
    store_policy = distill.LogitStore.open(targets.location).manifest.views
    policy = distill.ViewPolicy.from_json(store_policy.policy)

    class ImagesAlone(Dataset[dict[str, Any]]):
        def __getitem__(self, row: int) -> dict[str, Any]:
            params = draw_view(policy, targets.source.ids[row], 0)
            image = resized(read_image(targets.source.samples[row]), policy, targets.input_size)
            pixels = render_view(image, params, targets.input_size)
            return {"pixels": pixels, "label": int(targets.labels[row]), "row": row}

    def look_up(views: Any) -> int:
        for start in range(0, len(rows), 256):
            some = rows[start : start + 256]
            targets.fetch(some, views if views is None else np.resize(views, len(some)))
        return len(rows)

    def load(dataset: Dataset[Any], collate: Any = None) -> int:
        batches = DataLoader(dataset, 256, sampler=rows.tolist(), collate_fn=collate)
        return sum(len(batch["row"]) for batch in batches)

    passes: dict[str, Callable[[], int]] = {
        "look_up": lambda: look_up(None),
        "look_up_of_alternating_views": lambda: look_up([0, store_policy.count - 1]),
        "images_alone": lambda: load(ImagesAlone()),
        "images_and_answers": lambda: load(targets.dataset(), targets.collate),
    }
    seconds: dict[str, list[float]] = {name: [] for name in passes}
    for _ in range(6):
        for name, one in passes.items():
            started = time.perf_counter()
            count = one()
            seconds[name].append((time.perf_counter() - started) / count)
    return {name: round(1 / statistics.median(s[1:])) for name, s in seconds.items()}


def accuracies(store: Path, data: Path, seeds: int, scratch: Path) -> dict[str, Any]:
    """Mean and deviation over the seeds, and seconds of a run."""
    found: dict[str, Any] = {}
    for name in ("distill pretrain", *EXAMPLES):
        shares, seconds = [], []
        for seed in range(seeds):
            out = scratch / f"{name.replace(' ', '-')}-{seed}"
            started = time.perf_counter()
            subprocess.run(
                [str(word) for word in command(name, store, data, out, seed)],
                check=True,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=ROOT,
            )
            seconds.append(time.perf_counter() - started)
            judge = [*DISTILL, "evaluate", out, "--data", data, "--device", "cpu", "--json"]
            judged = subprocess.run([str(w) for w in judge], check=True, capture_output=True)
            (figures,) = json.loads(judged.stdout).values()
            shares.append(100 * figures["semantic_top1"])
        found[name] = {
            "semantic_top1": round(statistics.mean(shares), 1),
            "deviation": round(statistics.stdev(shares), 1) if seeds > 1 else None,
            "seconds": round(statistics.median(seconds), 1),
        }
        print(name, found[name], file=sys.stderr, flush=True)
    return found


def command(name: str, store: Path, data: Path, out: Path, seed: int) -> list[Any]:
    if name != "distill pretrain":
        return [sys.executable, f"examples/{name}.py", store.resolve(), data.resolve(), out, seed]
    words: list[Any] = ["pretrain", "--student", "test_resnet", "--init", "random", "--data", data]
    words += ["--targets", store, "--batch-size", 64, "--lr", 0.003, "--label-smoothing", 0.1]
    words += ["--epochs", 5, "--device", "cpu", "--workers", 2, "--out", out, "-o", f"seed={seed}"]
    return [*DISTILL, *words]


if __name__ == "__main__":
    main()
