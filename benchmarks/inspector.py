"""What does it cost to look at a store of twelve million images?

    python benchmarks/inspector.py [--quick] [--cpus 0,1]

A synthetic store of ImageNet-21K-P's shape (11,221 classes, 11 hierarchies, one view): blocks of
8,192 peaked answers, a few of them different and the others links to their chunks. Measured, each
in a process of its own: the first look, which reads all of it; the second, from what the first left
beside the store; then pages of `distill inspect --serve`, asked over HTTP.

A few minutes and 3 GB of disk. --quick takes 200,000 images. Prints a table in Markdown, and as its
last line one JSON object of the figures.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import urllib3
from store_read import manifest_of_samples, synthetic_manifest, synthetic_samples
from whole_path import processor

from distill.hierarchy.semantic import SemanticHierarchy
from distill.store.format import commits
from distill.store.format.chunks import chunk_key
from distill.store.format.codes import ANSWER_ARRAYS
from distill.store.logit_store import LogitStore
from distill.targets.tensors import encode

BLOCK_ROWS, DIFFERENT = 8192, 4
BLOCKS = 1465  # 12,001,280 images

LOOK = r"""
import re, sys, time
from distill.store.logit_store import LogitStore
from distill.teacher_server.inspect.findings import Rules
from distill.teacher_server.inspect.inspection import open_inspection
started = time.perf_counter()
inspection = open_inspection(sys.argv[1], rules=Rules())
opened = time.perf_counter() - started
inspection.overview
overview = time.perf_counter() - started
inspection.subtrees
tags = time.perf_counter() - started
peak = re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1]
anonymous = re.search(r"RssAnon:\s+(\d+)", open("/proc/self/status").read())[1]
print(opened, overview, tags, int(peak) / 1024, int(anonymous) / 1024)
"""
PAGES = {
    "overview": "/",
    "classes": "/tree",
    "a subtree": "/tree/n00015388",
    "gallery": "/gallery",
    "gallery, a subtree": "/gallery?tag=n00015388",
    "gallery, suspect": "/gallery?kind=suspect",
    "gallery, nothing found": "/gallery?hierarchy=3&low=0.9999",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--cpus", default="0,1", help="processors to run on")
    options = parser.parse_args()
    os.sched_setaffinity(0, {int(cpu) for cpu in options.cpus.split(",")})
    torch.set_num_threads(2)
    blocks = 25 if options.quick else BLOCKS
    with tempfile.TemporaryDirectory() as scratch:
        store = make_store(Path(scratch) / "store", blocks)
        figures: dict[str, Any] = {"images": blocks * BLOCK_ROWS}
        for name in ("first look", "second look"):
            opened, overview, tags, peak, anonymous = look(store)
            figures |= {
                f"{name}: open, s": round(opened, 2),
                f"{name}: figures per hierarchy, s": round(overview, 2),
                f"{name}: tags and subtrees, s": round(tags, 2),
                f"{name}: memory at most, pages of the cache included, MiB": round(peak),
                f"{name}: memory of its own at the end, MiB": round(anonymous),
            }
        cache = sum(f.stat().st_size for f in Path(f"{store}.inspect").iterdir())
        figures["kept beside the store, bytes an image"] = round(cache / figures["images"], 1)
        figures |= pages(store)
    print(
        f"Command: `python benchmarks/inspector.py{' --quick' if options.quick else ''}`, ", end=""
    )
    print(f"{time.strftime('%Y-%m-%d')}, {processor()}, processors {options.cpus}\n")
    print("| what | figure |\n| --- | ---: |")
    for name, value in figures.items():
        print(f"| {name} | {value:,} |")
    first, second = (figures[f"{look} look: tags and subtrees, s"] for look in ("first", "second"))
    print(json.dumps({**figures, "ratio": {"first look to second": first / second}}))


def make_store(path: Path, blocks: int) -> Path:
    hierarchy = SemanticHierarchy.bundled("imagenet21k-p-fall11")
    ids, _ = synthetic_samples(blocks * BLOCK_ROWS)
    labels = np.random.default_rng(2).integers(0, hierarchy.num_classes, len(ids))
    manifest = manifest_of_samples(synthetic_manifest(hierarchy, len(ids)), ids, labels)
    store = LogitStore.create(path, manifest, ids=ids, labels=labels, hierarchy=hierarchy.to_json())
    torch.manual_seed(0)
    for block in range(DIFFERENT):
        logits = torch.randn(BLOCK_ROWS, hierarchy.num_classes) * 2.5
        answers = encode(logits, hierarchy, manifest.encoding).to_rows()
        store.write_block(block, [answers], {"bad": []})
    records = store.records()
    for block in range(DIFFERENT, blocks):
        source = block % DIFFERENT
        for name in ANSWER_ARRAYS:
            os.link(path / chunk_key(name, source), path / chunk_key(name, block))
        commits.write_record(store.objects, {**records[source], "block": block})
    store.finish()
    return path


def look(store: Path) -> list[float]:
    said = subprocess.run(
        [sys.executable, "-c", LOOK, str(store)], capture_output=True, text=True, check=True
    )
    return [float(word) for word in said.stdout.split()]


def pages(store: Path) -> dict[str, float]:
    """Seconds until the pages are served, milliseconds of each (median of ten)."""
    words = [sys.executable, "-m", "distill.cli.main", "inspect", str(store), "--serve"]
    started = time.perf_counter()
    found: dict[str, float] = {}
    with subprocess.Popen([*words, "--port", "0"], stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr
        match = None
        while match is None:
            match = re.search(r"http://\S+/", server.stderr.readline())
        base = match[0].rstrip("/")
        http = urllib3.PoolManager(timeout=120)
        while "Images × views" not in http.request("GET", base + "/").data.decode():
            time.sleep(0.1)
        found["pages: from the command to the overview, s"] = round(
            time.perf_counter() - started, 2
        )
        sample = re.search(
            r"/sample/[0-9a-f]+", http.request("GET", base + "/gallery").data.decode()
        )
        assert sample
        for name, path in {**PAGES, "a sample": sample[0]}.items():
            reply = http.request("GET", base + path)
            assert reply.status == 200, (name, reply.data)
            times = []
            for _ in range(10):
                asked = time.perf_counter()
                http.request("GET", base + path)
                times.append(time.perf_counter() - asked)
            found[f"pages: {name}, ms"] = round(1000 * median(times), 1)
        server.terminate()
    return found


if __name__ == "__main__":
    main()
