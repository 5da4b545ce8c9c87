"""What does the whole path cost and give on real images, on two cores?

    python benchmarks/whole_path.py [--quick] [--shared ../shared]

Precomputes two augmented views of the 20,000 training images of tiny-imagenet-h with its
ResNet-18-D teacher, pretrains a small student with and without that store, and inspects the store;
each by the command a user types. Validation accuracy is against the true classes: the validation
images are not mis-tagged. About ten minutes on two cores; --quick takes 2,000 images and one epoch.

Prints a log in Markdown, and as its last line one JSON object of the figures.
"""

import argparse
import json
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--cpus", default="0,1", help="processors to run on")
    options = parser.parse_args()
    data = options.shared / "data" / "tiny-imagenet-h"
    epochs, limit = (1, ["--limit", 2000]) if options.quick else (8, [])

    print("# The whole path on tiny-imagenet-h\n")
    print(
        f"Command: `python benchmarks/whole_path.py{' --quick' if options.quick else ''}`, ", end=""
    )
    print(
        f"{time.strftime('%Y-%m-%d')}, processors {options.cpus} of {processor()}; Python ", end=""
    )
    libraries = ", ".join(f"{n} {version(n)}" for n in ("torch", "timm", "zarr", "pillow"))
    print(f"{platform.python_version()}, {libraries}\n", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch)
        weights = options.shared / "data/teachers/resnet18d-64px-tiny-imagenet-h.safetensors"
        label_set = ["--label-set", data / "label_set.json"]
        machine = ["--device", "cpu", "--workers", 2]
        student = ["pretrain", "--student", "test_resnet", "--init", "random", "--data", data]
        student += [*machine, *limit]
        student += ["--epochs", epochs, "--lr", 0.003, "--batch-size", 128, "--image-size", 64]

        run = lambda *arguments: _run(options.cpus, out, *arguments)  # noqa: E731
        precomputed = run(
            "precompute", "--teacher", "resnet18d", "--weights", weights, *label_set,
            "--data", data, "--store", out / "store", "--views", 2, *machine, *limit,
        )  # fmt: skip
        plain = run(*student, *label_set, "--out", out / "without-kd")
        kd = run(
            *student, "--targets", out / "store", "--cache", out / "cache", "--out", out / "with-kd"
        )
        inspected = run("inspect", out / "store")
    store = precomputed["store"]
    print(
        json.dumps(
            {
                "images": store["rows"],
                "views": store["views"],
                "precompute_images_per_s": round(precomputed["images_per_s"], 1),
                "precompute_s": round(precomputed["seconds"], 1),
                "bytes_total": store["bytes_total"],
                "bytes_per_view": round(store["bytes_per_view"], 1),
                "angle_deg": store["fidelity"]["angle_deg"],
                "epochs": epochs,
                "images_per_s_without_kd": round(plain["images_per_s"], 1),
                "images_per_s_with_kd": round(kd["images_per_s"], 1),
                "semantic_top1_without_kd": round(plain["validation"]["semantic_top1"], 4),
                "semantic_top1_with_kd": round(kd["validation"]["semantic_top1"], 4),
                "per_hierarchy_without_kd": [
                    round(a, 4) for a in plain["validation"]["semantic_top1_per_hierarchy"]
                ],
                "per_hierarchy_with_kd": [
                    round(a, 4) for a in kd["validation"]["semantic_top1_per_hierarchy"]
                ],
                "confidence_mean": [
                    round(k["confidence_mean"], 4) for k in inspected["per_hierarchy"]
                ],
            }
        )
    )


def _run(cpus: str, scratch: Path, *arguments: object) -> dict[str, Any]:
    """Run a command of ours in its own process on those processors; log it, return its --json."""
    words = [str(argument) for argument in arguments]
    shown = shlex.join(words).replace(str(scratch), "OUT")
    print(f"```\n$ distill {shown}", flush=True)
    started = time.monotonic()
    done = subprocess.run(
        ["taskset", "-c", cpus, sys.executable, "-m", "distill.cli.main", *words, "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(done.stderr)
    for line in done.stderr.splitlines():
        if "left" not in line:
            print(line)
    print(f"{time.monotonic() - started:.1f} s wall clock\n```\n", flush=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return platform.processor()


if __name__ == "__main__":
    main()
