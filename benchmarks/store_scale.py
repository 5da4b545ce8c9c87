"""What 12 million rows in four views cost: files, writing, flushing, finishing, reading.

    python benchmarks/store_scale.py [--quick] [--rows 786432] [--cpus 0,1]

A part of such a store is written for real, with every write flushed to the disk and then with no
flush at all, read back as `finish` does, decoded and gathered from. Files are counted, and opening
and finishing timed, on 12 million rows whose shards are links to one block's.

Prints a table in Markdown, and as its last line one JSON object of the figures.
"""

import argparse
import json
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from store_read import (
    manifest_of_samples,
    synthetic_hierarchy,
    synthetic_manifest,
    synthetic_samples,
)

from distill.hierarchy.semantic import SemanticHierarchy
from distill.store.format import commits
from distill.store.format.chunks import chunk_key
from distill.store.format.codes import ANSWER_ARRAYS
from distill.store.format.manifest import Manifest, ViewIdentity
from distill.store.logit_store import LogitStore
from distill.store.views.cache import Cache
from distill.store.views.resident import open_resident_view
from distill.targets.encoding import EncodingSpec
from distill.targets.rows import TargetRows
from distill.targets.tensors import encode

VIEWS, WHOLE, BATCH = 4, 12_000_000, 512
IMAGES_PER_S = 2000.0  # a fast GPU's, against which a flush is held


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rows", type=int, default=786432)
    parser.add_argument("--cpus", default="0,1", help="processors to run on")
    options = parser.parse_args()
    os.sched_setaffinity(0, {int(cpu) for cpu in options.cpus.split(",")})
    torch.set_num_threads(1)
    rows, whole = (32768, 200_000) if options.quick else (options.rows, WHOLE)
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", "/var/tmp")) as scratch:
        figures = part_of_it(Path(scratch), rows) | all_of_it(Path(scratch), whole)
    print("\n| what | figure |\n| --- | --- |")
    for name, value in figures.items():
        print(f"| {name} | {value:,} |")
    print(json.dumps(figures))


def manifest_and_answers(rows: int) -> tuple[Manifest, SemanticHierarchy, list[TargetRows]]:
    hierarchy = synthetic_hierarchy()
    sizes = hierarchy.classes_per_hierarchy
    manifest = replace(
        synthetic_manifest(hierarchy, rows),
        views=ViewIdentity(count=VIEWS, policy={"name": "augmented"}),
        encoding=EncodingSpec.named("standard", sizes),
        block_rows=16384,
    )
    torch.manual_seed(0)
    likely = torch.randn(hierarchy.num_classes) * 1.5
    answers = [
        encode(
            torch.randn(manifest.block_rows, hierarchy.num_classes) * 2.5 + likely,
            hierarchy,
            manifest.encoding,
        ).to_rows()
        for _ in range(VIEWS)
    ]
    return manifest, hierarchy, answers


def part_of_it(scratch: Path, rows: int) -> dict[str, float]:
    manifest, hierarchy, answers = manifest_and_answers(rows)
    ids, labels = synthetic_samples(rows)
    manifest = manifest_of_samples(manifest, ids, labels)
    seconds = {}
    flush = os.fsync
    for name in ("flushed", "not flushed"):
        os.fsync = flush if name == "flushed" else lambda fd: None
        path = scratch / name.replace(" ", "-")
        store = LogitStore.create(
            path, manifest, ids=ids, labels=labels, hierarchy=hierarchy.to_json()
        )
        started = time.perf_counter()
        for block in range(manifest.num_blocks):
            store.write_block(block, answers, {"bad": []})
        seconds[name] = time.perf_counter() - started
    os.fsync = flush
    store = LogitStore.open(scratch / "flushed")
    started = time.perf_counter()
    assert not store.damaged_blocks()
    read_back = time.perf_counter() - started
    store.finish()
    cache = Cache(scratch / "cache")
    started = time.perf_counter()
    view = open_resident_view(store, 1, cache, workers=2)
    decoded = time.perf_counter() - started
    started = time.perf_counter()
    open_resident_view(store, 1, cache)
    generator = np.random.default_rng(0)
    batches = [generator.integers(0, rows, BATCH) for _ in range(400)]
    view.gather(np.arange(rows))
    started = time.perf_counter()
    for batch in batches:
        view.gather(batch)
    gathered = time.perf_counter() - started
    answered = rows * VIEWS
    cost = (seconds["flushed"] - seconds["not flushed"]) / manifest.num_blocks
    gpu = manifest.block_rows * VIEWS / IMAGES_PER_S
    return {
        "rows written": rows,
        "views of each": VIEWS,
        "bytes a view on disk": round(store.bytes_total() / answered, 1),
        "write, views/s": round(answered / seconds["flushed"]),
        "write without a flush, views/s": round(answered / seconds["not flushed"]),
        "flushes of a block, ms": round(1000 * cost, 1),
        f"of a block's time at {IMAGES_PER_S:.0f} views/s, %": round(100 * cost / gpu, 3),
        "read all back before finishing, views/s": round(answered / read_back),
        "decode a view, rows/s": round(rows / decoded),
        "gather, rows/s": round(BATCH * len(batches) / gathered),
    }


def all_of_it(scratch: Path, rows: int) -> dict[str, float]:
    rows = -(-rows // 16384) * 16384  # the last block is as long as the others
    manifest, hierarchy, answers = manifest_and_answers(rows)
    ids, labels = synthetic_samples(rows)
    manifest = manifest_of_samples(manifest, ids, labels)
    store = LogitStore.create(
        scratch / "all", manifest, ids=ids, labels=labels, hierarchy=hierarchy.to_json()
    )
    store.write_block(0, answers, {"bad": []})
    record = store.records()[0]
    for block in range(1, manifest.num_blocks):
        for name in ANSWER_ARRAYS:
            os.link(scratch / "all" / chunk_key(name, 0), scratch / "all" / chunk_key(name, block))
        commits.write_record(store.objects, {**record, "block": block})
    started = time.perf_counter()
    store.finish()
    finished = time.perf_counter() - started
    started = time.perf_counter()
    again = LogitStore.open(scratch / "all")
    again.require_complete()
    opened = time.perf_counter() - started
    started = time.perf_counter()
    again.block_commits()
    indexed = time.perf_counter() - started
    there = list((scratch / "all").rglob("*"))
    return {
        "rows of all": rows,
        "files": sum(path.is_file() for path in there),
        "folders": sum(path.is_dir() for path in there),
        "reads of a view": len(ANSWER_ARRAYS) * manifest.num_blocks,
        "finish them, all read back, s": round(finished),
        "open them, ms": round(1000 * opened, 1),
        "look all commits up, ms": round(1000 * indexed, 1),
    }


if __name__ == "__main__":
    main()
