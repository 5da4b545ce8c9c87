"""What does an image cost a process that decodes?

    python benchmarks/loader.py [--quick]

Photographs of 224 pixels, as `distill data prepare` leaves them, rendered here; one process decodes
and draws them, plain and augmented, batches of 64. Microseconds of a core an image: all, and of
these reading and decoding, drawing, and handing over (shared memory, which a machine may be slow to
give). Then what each operation of RandAugment takes. Half a minute on two cores.

Prints a log in Markdown, and as its last line one JSON object.
"""

import argparse
import json
import platform
import resource
import statistics
import tempfile
import time
import timeit
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from photographs import photograph
from whole_path import processor

from distill.data.loader import in_batches, load_views
from distill.data.source import ImageSource, open_source
from distill.data.view_policy import ViewPolicy
from distill.data.views import APPLY, OPERATIONS

SIDE, BATCH, RUNS = 224, 64, 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("# An image in a process that decodes\n")
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchvision", "pillow"))
    print(
        f"Command: `python benchmarks/loader.py{' --quick' if options.quick else ''}`, "
        f"{time.strftime('%Y-%m-%d')}, {processor()}; Python {platform.python_version()}, "
        f"{versions}\n"
    )
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "n02084071"
        folder.mkdir()
        for number in range(100):
            photograph(number, (SIDE, SIDE)).save(folder / f"{number}.jpg", quality=90)
        source, found = open_source(Path(scratch)), {}
        print("| views | µs of a core | read and decode | draw | hand over |")
        print("| --- | ---: | ---: | ---: | ---: |")
        for name in ("plain", "augmented"):
            runs = [
                _look(source, ViewPolicy(name=name), 10 if options.quick else 40)
                for _ in range(2 if options.quick else RUNS)
            ]
            all_, read, draw = (statistics.median(column) for column in zip(*runs, strict=True))
            found[name] = {"all": all_, "read": read, "draw": draw, "hand_over": all_ - read - draw}
            print(f"| {name} | {' | '.join(f'{us:.0f}' for us in found[name].values())} |")
    image, each = photograph(0, (SIDE, SIDE)), {}
    print("\n| operation | µs |\n| --- | ---: |")
    for name, strength in OPERATIONS.items():
        seconds = timeit.repeat(lambda: APPLY[name](image, 0.9 * strength), number=20, repeat=5)  # noqa: B023
        each[name] = 1e6 * min(seconds) / 20
        print(f"| {name} | {each[name]:.0f} |")
    print(flush=True)
    print(json.dumps({**found, "operations": each}))


def _look(source: ImageSource, policy: ViewPolicy, batches: int) -> tuple[float, float, float]:
    """Microseconds an image: all, reading and decoding, drawing."""
    rows = np.arange(batches * BATCH) % len(source)
    before, read, draw = _seconds_of_children(), 0.0, 0.0
    requests = in_batches(rows, (0,), BATCH)
    for batch in load_views(source, policy, [(SIDE, SIDE)], requests, workers=1):
        read, draw = read + batch.read_s, draw + batch.render_s
    micro = 1e6 / len(rows)
    return micro * (_seconds_of_children() - before), micro * read, micro * draw


def _seconds_of_children() -> float:
    """On all cores, of processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
