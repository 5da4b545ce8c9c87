"""How fast do a student's targets come back, and what does opening a big store cost?

    python benchmarks/store_read.py [--quick] [--cpus 0,1] [--rows 524288]

One synthetic store of tiny-imagenet-h's shape (440 classes, 10 hierarchies; answers as peaked as a
trained teacher's), read in every way there is, in one run on the same processors:
- decoding a view (cold) and gathering batches of 512 random rows from it (warm), with and without
  the lookup of sample ids;
- streaming in block-shuffled order;
- what people do instead: rows selected from the Zarr arrays; a flat file of 404-byte records, as
  TinyViT keeps (its paper stores 100 logits a view), through mmap; one torch.save file an image.
Then a store of 12 million rows, of which only the documents and ids exist, is opened in a process
of its own that reports its time and memory.

Prints a table in Markdown, and as its last line one JSON object of the figures.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import zarr

from distill.data.order import SampleOrder
from distill.data.sample_ids import samples_digest
from distill.hierarchy.semantic import SemanticHierarchy
from distill.store.format.codes import ANSWER_ARRAYS
from distill.store.format.manifest import (
    DatasetIdentity,
    HierarchyIdentity,
    Manifest,
    TeacherIdentity,
    ViewIdentity,
)
from distill.store.logit_store import LogitStore
from distill.store.views.cache import Cache
from distill.store.views.lookup import open_row_index
from distill.store.views.resident import open_resident_view
from distill.store.views.stream import StreamedView
from distill.targets.encoding import EncodingSpec
from distill.targets.tensors import encode

BATCH = 512
RECORD_BYTES = 404
LEVELS = (7, 37, 87, 108, 85, 51, 27, 19, 12, 5)  # of tiny-imagenet-h
BIG_ROWS = 12_000_000

OPEN_BIG = r"""
import re, sys, time
started = time.perf_counter()
from distill.store.logit_store import LogitStore
imported = time.perf_counter()
store = LogitStore.open(sys.argv[1])
store.require_complete()
opened = time.perf_counter()
peak_kib = re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1]
print(opened - imported, imported - started, int(peak_kib) / 1024)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--cpus", default="0,1", help="processors to run on")
    parser.add_argument("--rows", type=int, default=524288)
    options = parser.parse_args()
    os.sched_setaffinity(0, {int(cpu) for cpu in options.cpus.split(",")})
    torch.set_num_threads(2)
    rows = 16384 if options.quick else options.rows
    big_rows = 200_000 if options.quick else BIG_ROWS
    with tempfile.TemporaryDirectory() as scratch:
        figures = measure(Path(scratch), rows)
        figures |= open_big(Path(scratch), big_rows)
    print("\n| what | figure |\n| --- | --- |")
    for name, value in figures.items():
        print(f"| {name} | {value:,} |")
    gathered = figures["gather from a resident view, rows/s"]
    ratio = {"gather to mmap": gathered / figures["404-byte records through mmap, rows/s"]}
    print(json.dumps({**figures, "ratio": ratio}))


def measure(scratch: Path, rows: int) -> dict[str, float]:
    generator = np.random.default_rng(0)
    store = synthetic_store(scratch / "store", rows)
    cache = Cache(scratch / "cache")
    started = time.perf_counter()
    view = open_resident_view(store, 0, cache, workers=2)
    decoded = rows / (time.perf_counter() - started)
    index, ids = open_row_index(store, cache), store.sample_ids
    batches = [generator.integers(0, rows, BATCH) for _ in range(500)]
    wanted = [ids[batch] for batch in batches]
    small = batches[: 20 if rows < 20_000 else 40]

    flat = scratch / "flat"
    flat.write_bytes(generator.bytes(rows * RECORD_BYTES))
    records = np.memmap(flat, np.uint8, "r", shape=(rows, RECORD_BYTES))
    some = 4096
    for i in range(some):
        torch.save((torch.zeros(100, dtype=torch.int16), torch.zeros(100)), scratch / f"{i}.pt")
    arrays = [zarr.open_array(Path(store.location, n), mode="r") for n in ANSWER_ARRAYS]

    stream = StreamedView(store, 0, capacity=8)
    order = SampleOrder(rows, 0, block_rows=store.manifest.block_rows, window=8).epoch(0)

    def each(count: int, read: Callable[[int], object]) -> float:
        begun = time.perf_counter()
        for i in range(count):
            read(i)
        return BATCH * count / (time.perf_counter() - begun)

    view.gather(np.arange(rows))  # into the page cache
    figures = {
        "decode a view, rows/s": decoded,
        "gather from a resident view, rows/s": each(500, lambda i: view.gather(batches[i])),
        "gather by sample id, rows/s": each(500, lambda i: view.gather(index.rows(wanted[i]))),
        "stream in block-shuffled order, rows/s": each(
            rows // BATCH, lambda i: stream.gather(order[i * BATCH : (i + 1) * BATCH])
        ),
        "Zarr row selection, rows/s": each(
            len(small) // 10, lambda i: [a.oindex[np.sort(small[i]), 0] for a in arrays]
        ),
        "404-byte records through mmap, rows/s": each(500, lambda i: records[batches[i]].copy()),
        "one torch.save file an image, rows/s": each(
            4, lambda i: [torch.load(scratch / f"{j % some}.pt") for j in batches[i]]
        ),
        "bytes a view on disk": store.bytes_total() / rows,
        "bytes a view in the cache": view.records.itemsize,
    }
    return {name: round(value) for name, value in figures.items()}


def synthetic_store(path: Path, rows: int) -> LogitStore:
    """One view of peaked answers; every block holds the same 8192, which changes no speed."""
    hierarchy = synthetic_hierarchy()
    manifest = synthetic_manifest(hierarchy, rows)
    ids, labels = synthetic_samples(rows)
    manifest = manifest_of_samples(manifest, ids, labels)
    store = LogitStore.create(path, manifest, ids=ids, labels=labels, hierarchy=hierarchy.to_json())
    torch.manual_seed(0)
    logits = torch.randn(manifest.block_rows, hierarchy.num_classes) * 2.5
    answers = encode(logits, hierarchy, manifest.encoding).to_rows()
    for block in range(manifest.num_blocks):
        store.write_block(block, [answers], {"bad": []})
    store.finish()
    return store


def synthetic_hierarchy() -> SemanticHierarchy:
    """Of tiny-imagenet-h's shape."""
    synsets = [f"n{i:08d}" for i in range(sum(LEVELS))]
    parents: dict[str, list[str]] = {}
    level_start = 0
    for above, size in itertools.pairwise(LEVELS):
        for i in range(size):
            parent = synsets[level_start + i % above]
            parents[synsets[level_start + above + i]] = [parent, *parents.get(parent, [])]
        level_start += above
    return SemanticHierarchy.from_chains(synsets, parents, drop_deepest=False)


def synthetic_manifest(hierarchy: SemanticHierarchy, rows: int) -> Manifest:
    sizes = hierarchy.classes_per_hierarchy
    return Manifest(
        teacher=TeacherIdentity(
            name="synthetic", fingerprint="0" * 64, input_size=(64, 64), precision="float32"
        ),
        hierarchy=HierarchyIdentity(
            name=hierarchy.name,
            digest=hierarchy.digest,
            num_classes=hierarchy.num_classes,
            classes_per_hierarchy=sizes,
        ),
        dataset=DatasetIdentity(digest="", rows=rows),
        views=ViewIdentity(count=1, policy={"name": "plain"}),
        encoding=EncodingSpec.named("standard", sizes),
        block_rows=8192,
    )


def synthetic_samples(rows: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(1)
    ids = np.frombuffer(generator.bytes(rows * 16), np.uint64).reshape(-1, 2)
    ids = ids[np.argsort(ids[:, 0])]
    return ids, generator.integers(0, sum(LEVELS), rows)


def manifest_of_samples(manifest: Manifest, ids: np.ndarray, labels: np.ndarray) -> Manifest:
    from dataclasses import replace

    digest = samples_digest(ids, labels)
    return replace(manifest, dataset=DatasetIdentity(digest=digest, rows=len(ids)))


def open_big(scratch: Path, rows: int) -> dict[str, float]:
    """Documents, ids and commits of a store of many rows; no chunk is needed to open it."""
    from distill.store.format import commits

    hierarchy = SemanticHierarchy.bundled("imagenet21k-p-fall11")
    ids, labels = synthetic_samples(rows)
    manifest = manifest_of_samples(synthetic_manifest(hierarchy, rows), ids, labels)
    store = LogitStore.create(
        scratch / "big", manifest, ids=ids, labels=labels, hierarchy=hierarchy.to_json()
    )
    for block in range(manifest.num_blocks):
        record = {"block": block, "bad": [], "content_sha256": [f"{block:064x}"], "host": "bench"}
        record |= {"store": manifest.identity, "chunk_bytes": [[0, 0, 0, 0]]}
        commits.write_record(store.objects, record)
    LogitStore.damaged_blocks = lambda self, stopping: []  # type: ignore[assignment,method-assign,misc]
    store.finish()
    said = subprocess.run(
        [sys.executable, "-c", OPEN_BIG, str(scratch / "big")],
        capture_output=True,
        text=True,
        check=True,
    )
    opened, imported, peak_mib = map(float, said.stdout.split())
    cache = Cache(scratch / "cache")
    started = time.perf_counter()
    index = open_row_index(store, cache)
    built = time.perf_counter() - started
    wanted = [ids[np.random.default_rng(i).integers(0, rows, BATCH)] for i in range(200)]
    started = time.perf_counter()
    for some in wanted:
        index.rows(some)
    lookup = 200 * BATCH / (time.perf_counter() - started)
    return {
        "rows of the big store": rows,
        "open it, ms": round(1000 * opened),
        "imports before that, ms": round(1000 * imported),
        "memory of the process that opened it, MiB": round(peak_mib),
        "write its ids into the cache, once, ms": round(1000 * built),
        "look ids up in it, rows/s": round(lookup),
    }


if __name__ == "__main__":
    main()
