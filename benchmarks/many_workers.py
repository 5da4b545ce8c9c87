"""What do a thousand precompute workers ask of an object store?

    python benchmarks/many_workers.py [--quick]

Workers do with a store in S3 what `distill precompute` does: open it, look at its records, ask
before each block whether it is still wanted, write it, and at the end finish the store if it is
complete. A real S3 server (moto's) logs their requests. From runs of one worker the requests of a
start, a block, an end and of finishing are told apart; the sums are held against runs of many
workers, with shares and without (then blocks may be written twice), and extrapolated to 1,000
workers at 12 million images in four views.

Two minutes. Prints a log in Markdown, and as its last line one JSON object.
"""

import argparse
import json
import os
import random
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from store_read import (
    manifest_of_samples,
    synthetic_hierarchy,
    synthetic_manifest,
    synthetic_samples,
)
from whole_path import processor

from distill.hierarchy.semantic import SemanticHierarchy
from distill.store.format.manifest import Manifest, ViewIdentity
from distill.store.logit_store import LogitStore
from distill.targets.rows import TargetRows
from distill.targets.tensors import encode
from distill.teacher_server.precompute.options import Share

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from buckets import make_bucket, s3_server

VIEWS, BLOCK_ROWS = 4, 64
WORKERS, BLOCKS = 1000, 735  # 12 million images in blocks of 16,384
# https://docs.aws.amazon.com/AmazonS3/latest/userguide/optimizing-performance.html, a prefix.
WRITES_PER_S, READS_PER_S = 3500, 5500
KINDS = ("read", "list", "write", "delete")


class RequestLog:
    """Of moto's server."""

    def __init__(self, path: Path) -> None:
        self.path, self.read = path, 0

    def requests(self) -> Counter[str]:
        """Since the last call, by kind; "lost" are conditional writes that came second."""
        time.sleep(0.2)
        text = self.path.read_text()[self.read :]
        self.read += len(text)
        found: Counter[str] = Counter()
        for method, path, status in re.findall(r'"(\w+) (\S+) HTTP/1.1[^"]*" (\d+)', text):
            listing = "list-type" in path or "prefix=" in path
            kind = {"GET": "list" if listing else "read", "HEAD": "read", "PUT": "write"}
            kinds = {**kind, "POST": "delete", "DELETE": "delete"}
            found[kinds[method]] += 1
            found["lost"] += status in ("409", "412")
        return found


@contextmanager
def served(scratch: Path) -> Iterator[RequestLog]:
    """A server with a bucket, to which the environment leads."""
    log = scratch / "log"
    with s3_server(log) as url:
        keys = {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any"}
        os.environ |= {"AWS_ENDPOINT_URL": url, "AWS_REGION": "us-east-1", **keys}
        make_bucket(url, "stores")
        yield RequestLog(log)


def made(name: str, blocks: int) -> tuple[str, list[TargetRows]]:
    """An empty store, and answers of one block."""
    hierarchy = synthetic_hierarchy()
    rows = blocks * BLOCK_ROWS
    manifest = replace(
        synthetic_manifest(hierarchy, rows),
        views=ViewIdentity(count=VIEWS, policy={"name": "augmented"}),
        block_rows=BLOCK_ROWS,
    )
    ids, labels = synthetic_samples(rows)
    manifest = manifest_of_samples(manifest, ids, labels)
    where = f"s3://stores/{name}"
    LogitStore.create(where, manifest, ids=ids, labels=labels, hierarchy=hierarchy.to_json())
    return where, answers_of(manifest, hierarchy)


def answers_of(manifest: Manifest, hierarchy: SemanticHierarchy) -> list[TargetRows]:
    torch.manual_seed(0)
    logits = torch.randn(VIEWS, BLOCK_ROWS, hierarchy.num_classes) * 2.5
    return [encode(each, hierarchy, manifest.encoding).to_rows() for each in logits]


def start(where: str) -> LogitStore:
    """As `precompute.run.open_or_create` and `fill` do."""
    store = LogitStore.open(where)
    store.damaged_records()
    return store


def write(store: LogitStore, blocks: Sequence[int], answers: Sequence[TargetRows]) -> int:
    """How many were still wanted."""
    written = 0
    for block in blocks:
        if store.is_pending(block):
            store.write_block(block, answers, {"bad": []})
            written += 1
    return written


def end(store: LogitStore) -> None:
    """As `precompute.run.finish_if_complete`."""
    if not store.pending_blocks() and store.certificate is None:
        store.finish()


def work(where: str, share: Share, answers: Sequence[TargetRows]) -> int:
    """All that one worker does; how many blocks it wrote."""
    store = start(where)
    blocks = share.of(store.pending_blocks())
    random.shuffle(blocks)
    written = write(store, blocks, answers)
    end(store)
    return written


def told_apart(log: RequestLog, blocks: int) -> dict[str, Counter[str]]:
    """Requests of each thing that a worker does, by one that does it alone."""
    where, answers = made(f"alone-{blocks}", blocks)
    found: dict[str, Counter[str]] = {}
    log.requests()
    store = start(where)
    store.pending_blocks()
    found["start"] = log.requests()
    write(store, range(blocks - 1), answers)
    found["block"] = per(log.requests(), blocks - 1)
    start(where).pending_blocks()
    found["record at a start"] = per(log.requests() - found["start"], blocks - 1)
    end(store)
    found["end"] = log.requests()
    write(store, [blocks - 1], answers)
    log.requests()
    end(store)
    found["block at the finish"] = per(log.requests() - found["end"], blocks)
    return found


def per(found: Counter[str], count: int) -> Counter[str]:
    """Of each."""
    return Counter({kind: number / count for kind, number in found.items()})  # type: ignore[misc]


def predicted(parts: dict[str, Counter[str]], workers: int, blocks: int) -> dict[str, float]:
    """Requests of all, when all start on an empty store and one finishes it."""
    times = {"start": workers, "block": blocks, "end": workers, "block at the finish": blocks}
    return {kind: sum(parts[part][kind] * count for part, count in times.items()) for kind in KINDS}


def measured(
    log: RequestLog, workers: int, blocks: int, *, shares: bool
) -> tuple[Counter[str], int]:
    """Requests of workers side by side, and blocks written."""
    where, answers = made(f"{workers}-{blocks}-{shares}", blocks)
    log.requests()
    each = [Share(index=i, count=workers) if shares else Share() for i in range(workers)]
    with ThreadPoolExecutor(workers) as pool:
        written = sum(pool.map(lambda share: work(where, share, answers), each))
    found = log.requests()
    assert LogitStore.open(where).certificate
    log.requests()
    return found, written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    sizes = [(4, 8), (8, 16)] if options.quick else [(4, 16), (16, 32), (32, 96)]
    print("# Many workers and an object store\n")
    print(
        f"Command: `python benchmarks/many_workers.py{' --quick' if options.quick else ''}`, ",
        end="",
    )
    print(f"{time.strftime('%Y-%m-%d')}, {processor()}; moto's S3 server\n")
    with tempfile.TemporaryDirectory() as scratch, served(Path(scratch)) as log:
        parts = told_apart(log, 16)
        print("| requests of | " + " | ".join(KINDS) + " |\n| --- |" + " ---: |" * len(KINDS))
        for part, counts in parts.items():
            print(f"| {part} | " + " | ".join(f"{counts[kind]:.2f}" for kind in KINDS) + " |")
        print("\n| workers, blocks | " + " | ".join(KINDS) + " | lost | blocks written |")
        print("| --- |" + " ---: |" * (len(KINDS) + 2))
        runs = []
        for workers, blocks in sizes:
            sums = predicted(parts, workers, blocks)
            cells = " | ".join(f"{sums[kind]:.0f}" for kind in KINDS)
            print(f"| {workers}, {blocks}: predicted | {cells} | | {blocks} |")
            for shares in (True, False):
                found, written = measured(log, workers, blocks, shares=shares)
                cells = " | ".join(str(found[kind]) for kind in (*KINDS, "lost"))
                how = "shares" if shares else "no shares"
                print(f"| {workers}, {blocks}: {how} | {cells} | {written} |", flush=True)
                runs.append({"workers": workers, "blocks": blocks, "shares": shares, **found})
    sums = predicted(parts, WORKERS, BLOCKS)
    again = WORKERS * BLOCKS / 2 * parts["record at a start"]["read"]
    print(
        f"\n{WORKERS} workers, {BLOCKS} blocks: " + ", ".join(f"{sums[k]:.0f} {k}" for k in KINDS)
    )
    starts = WORKERS * parts["start"]["read"]
    print(
        f"- all start at once: {starts:.0f} reads, {starts / READS_PER_S:.1f} s of what S3 grants"
    )
    print(f"- all start again half-way: {again:.0f} more, {again / READS_PER_S:.0f} s")
    print(f"- finishing: {BLOCKS * parts['block at the finish']['read']:.0f} reads, by one of them")
    print(json.dumps({"parts": parts, "runs": runs, "at 1000": sums}))


if __name__ == "__main__":
    main()
