"""What do loader processes cost to start, by fork and by forkserver?

    python benchmarks/loader_start.py [--quick]

Stores are read and written through obstore, images in buckets are read through boto3, because a
process that was forked after obstore was used waits for ever. Loaders that start by forkserver
would end that: this measures their price. For each way: seconds until the first batch of 64 images
of the demo's figures, with 2 workers, and the private memory of a worker over a table of samples of
the size of ImageNet-21K-P's (--rows). Prints a Markdown table, ends with one JSON line.
"""

import argparse
import json
import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from distill.data.formats.samples import ROW
from distill.data.rendered.plane_figures import FigureSet, write_figures
from distill.data.source import ImageSource, open_source

WORKERS = 2
MIB = 2**20


def private_bytes() -> int:
    """Memory that this process shares with no other."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    kib = {
        name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines[1:])
    }
    return 1024 * (kib["Private_Clean"] + kib["Private_Dirty"])


class Probe(Dataset[tuple[int, int]]):
    """Reads an image, and says how much memory its process has for itself."""

    def __init__(self, source: ImageSource, table: np.ndarray[Any, Any]) -> None:
        self.source, self.table = source, table

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, row: int) -> tuple[int, int]:
        from distill.data.images import read_image

        read_image(self.source.samples[row])
        return int(self.table["label"][row]), private_bytes()


def first_batch(source: ImageSource, table: np.ndarray[Any, Any], context: str) -> dict[str, float]:
    """Seconds to the first batch, and MiB a worker has for itself by then."""
    if context == "forkserver":
        multiprocessing.set_forkserver_preload(["distill.data.loader", "distill.data.images"])
    started = time.perf_counter()
    loader = DataLoader(
        Probe(source, table),
        batch_size=64,
        num_workers=WORKERS,
        multiprocessing_context=context,
    )
    batches = iter(loader)
    _, private = next(batches)
    seconds = time.perf_counter() - started
    del batches
    return {"seconds": seconds, "private_mib": float(private.max()) / MIB}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=11_060_223)
    parser.add_argument("--quick", action="store_true", help="A table of 100,000 rows.")
    options = parser.parse_args()
    rows = 100_000 if options.quick else options.rows
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        write_figures(Path(folder), FigureSet(train=1024, val=32))
        source = open_source(folder)
        table = np.ones(rows, ROW)  # touched, so that it is there
        results = {
            f"{context}, {name} start": first_batch(source, table, context)
            for context in ("fork", "forkserver")
            for name in ("first", "second")
        }
    size = table.nbytes / MIB
    print(f"{WORKERS} workers, {rows} rows of {size:.0f} MiB; torch {torch.__version__}\n")
    print("| start | seconds to the first batch | MiB of a worker's own |\n| --- | ---: | ---: |")
    for name, each in results.items():
        print(f"| {name} | {each['seconds']:.2f} | {each['private_mib']:.0f} |")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
