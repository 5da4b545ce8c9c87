"""How near is `distill prepare` to decoding, resizing and encoding alone, and with which decoder?

    python benchmarks/prepare.py [--quick] [--cpus 0,1] [--shared ../shared]

A release in fall11's form (a tar of class tars) of imagenet-sample's full-size photographs, each
many times, on this machine's disk. Measured in turns: the floor, one process a core that decodes,
resizes and encodes the same photographs from memory with the same library and does nothing else;
and the command in both formats, from the first header to the report. Best of the rounds of each.

Then decoders, on one core: Pillow, which prepare uses, and OpenCV and simplejpeg where they are
installed (pip install '.[bench]').

3 minutes and 5 GB of disk. --quick takes a tenth. Prints tables in Markdown, and as its last line
one JSON object of the figures.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image
from whole_path import processor

CLASSES, QUICK_CLASSES, IMAGES = 30, 3, 600
SIZE, QUALITY, ROUNDS = 224, 95, 3


def photographs(shared: Path) -> list[bytes]:
    """The JPEGs of imagenet-sample."""
    with tarfile.open(shared / "data/imagenet-sample/sample.tar") as tar:
        files = [tar.extractfile(member) for member in tar if member.isreg()]
        return [content for file in files if file and (content := file.read())[:2] == b"\xff\xd8"]


def write_release(path: Path, photos: list[bytes], classes: int) -> None:
    """A tar of class tars."""
    with tarfile.open(path, "w") as outer:
        for c in range(classes):
            buffer = io.BytesIO()
            with tarfile.open(fileobj=buffer, mode="w") as inner:
                for i in range(IMAGES):
                    add(inner, f"n{c:08d}_{i}.JPEG", photos[(c * IMAGES + i) % len(photos)])
            add(outer, f"n{c:08d}.tar", buffer.getvalue())


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """One member."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def by_pillow(content: bytes) -> bytes:
    """The floor: what prepare does to an image, without any care."""
    image = Image.open(io.BytesIO(content)).convert("RGB")
    buffer = io.BytesIO()
    image.resize((SIZE, SIZE), Image.Resampling.BILINEAR).save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def many(photos: list[bytes], count: int) -> int:
    """`count` images in this process."""
    return sum(len(by_pillow(photos[i % len(photos)])) for i in range(count))


def floor(photos: list[bytes], count: int, workers: int) -> float:
    """Images/s of that many processes, once they are there."""
    with get_context("fork").Pool(workers) as pool:
        pool.map(time.sleep, [0.2] * workers, chunksize=1)
        started = time.perf_counter()
        pool.starmap(many, [(photos, count // workers)] * workers, chunksize=1)
        return count / (time.perf_counter() - started)


def command(raw: Path, out: Path, form: str, workers: int) -> float:
    """Images/s of `distill prepare`, by its own clock: from the first header to the report."""
    ran = subprocess.run(
        [
            *(sys.executable, "-m", "distill.cli.main", "prepare", raw, "--out", out, "--json"),
            *("--format", form, "--workers", str(workers), "--shard-images", "1500"),
        ],
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    report = json.loads(ran.stdout)
    assert report["complete"]
    return sum(report["images"].values()) / report["seconds"]


def decoders() -> dict[str, Callable[[bytes], bytes]]:
    """Those that are installed; all filters but the last are antialiased."""
    found: dict[str, Callable[[bytes], bytes]] = {"Pillow, bilinear (prepare)": by_pillow}
    try:
        import cv2
        import simplejpeg
    except ImportError:
        return found
    cv2.setNumThreads(1)

    def opencv(filter: int) -> Callable[[bytes], bytes]:
        def run(content: bytes) -> bytes:
            image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
            image = cv2.resize(image, (SIZE, SIZE), interpolation=filter)
            return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes()

        return run

    def simple(content: bytes) -> bytes:
        try:
            image = simplejpeg.decode_jpeg(content)
        except ValueError:  # CMYK
            return by_pillow(content)
        small = Image.fromarray(image).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        return simplejpeg.encode_jpeg(np.asarray(small), QUALITY, colorsubsampling="420")

    return found | {
        "simplejpeg, resized by Pillow": simple,
        "OpenCV, area": opencv(cv2.INTER_AREA),
        "OpenCV, bilinear without antialiasing (the authors')": opencv(cv2.INTER_LINEAR),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--cpus", default="0,1")
    parser.add_argument("--shared", type=Path, default=Path(__file__).parents[2] / "shared")
    options = parser.parse_args()
    cpus = [int(cpu) for cpu in options.cpus.split(",")]
    os.sched_setaffinity(0, cpus)
    photos = photographs(options.shared)
    classes = QUICK_CLASSES if options.quick else CLASSES
    count = classes * IMAGES
    rates: dict[str, list[float]] = {"floor": [], "folder": [], "webdataset": []}
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "fall11_whole.tar"
        write_release(raw, photos, classes)
        for turn in range(1 if options.quick else ROUNDS):
            rates["floor"].append(floor(photos, count, len(cpus)))
            for form in ("folder", "webdataset"):
                rates[form].append(command(raw, Path(folder) / f"{form}{turn}", form, len(cpus)))
    best = {name: max(found) for name, found in rates.items()}
    print("# From the raw release to ImageNet-21K-P\n")
    print(f"{processor()}, processors {options.cpus}; {count:,} photographs of")
    print(
        f"{np.mean([*map(len, photos)]) / 1000:.0f} kB to {SIZE} pixels, JPEG quality {QUALITY}\n"
    )
    print("| what | images/s | of the floor |\n| --- | ---: | ---: |")
    print(f"| decode + resize + encode alone | {best['floor']:.0f} | 1 |")
    for form in ("folder", "webdataset"):
        print(
            f"| `prepare --format {form}` | {best[form]:.0f} | {best[form] / best['floor']:.3f} |"
        )
    os.sched_setaffinity(0, cpus[:1])
    print("\nOne core:\n\n| decoder and filter | images/s |\n| --- | ---: |")
    single = {}
    for name, run in decoders().items():
        spent = []
        for _ in range(1 if options.quick else ROUNDS):
            started = time.perf_counter()
            for content in photos:
                run(content)
            spent.append(time.perf_counter() - started)
        single[name] = len(photos) / min(spent)
        print(f"| {name} | {single[name]:.0f} |")
    figures = {f"{name}_images_per_s": round(rate, 1) for name, rate in (best | single).items()}
    ratios = {f: round(best[f] / best["floor"], 3) for f in ("folder", "webdataset")}
    print(json.dumps({"images": count, **figures, "ratio": ratios}))


if __name__ == "__main__":
    main()
