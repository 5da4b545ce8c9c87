"""A rehearsal at full scale: to ten million images, 11,221 classes, four views, table to student.

    python benchmarks/rehearsal.py [--quick] [--rows 10000,100000,1000000,10000000] [--out FOLDER]

The images are one picture under as many keys, in a CSV; the teacher is a test_vit of random
weights, whose answers of the first block are real, so that replay is proven. Everything else is by
a user's commands: a precompute that is killed, writers side by side of which one is killed, the end
of the precompute, verify, subset, merge, inspect, a loader with eight processes, a server that
answers from the store. Of each step time, memory and files, and how they grow: a step that grows
faster than the rows is named.

Two hours and 25 GB of disk on two cores; --quick takes 10,000 and 40,000. Prints a log in
Markdown, and as its last line one JSON object.
"""

import argparse
import contextlib
import json
import math
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import urllib3
from PIL import Image
from safetensors.torch import save_file
from whole_path import processor

from distill.hierarchy.semantic import SemanticHierarchy
from distill.store.logit_store import LogitStore
from distill.targets.rows import TargetRows
from distill.targets.tensors import encode

ROWS, QUICK_ROWS = (10_000, 100_000, 1_000_000, 10_000_000), (10_000, 40_000)
VIEWS, WRITERS, LOADERS, BATCHES, ASKED = 4, 2, 8, 300, 300
LABEL_SET = "imagenet21k-p-fall11"
STEEP = 1.25  # time, memory or files by rows, as a power of them

LOAD = r"""
import sys, time, warnings, distill
from torch.utils.data import DataLoader
warnings.filterwarnings("ignore", "This DataLoader will create")
begun = time.perf_counter()
targets = distill.open(sys.argv[1], data=sys.argv[2], cache=sys.argv[4], say=lambda line: None)
loader = DataLoader(targets.dataset(), 64, sampler=targets.sampler(), collate_fn=targets.collate,
                    num_workers=int(sys.argv[3]))
batches = iter(loader)
next(batches)
first = time.perf_counter() - begun
begun, count = time.perf_counter(), 0
for _, batch in zip(range(int(sys.argv[5])), batches):
    count += len(batch["pixels"])
print(first, count / (time.perf_counter() - begun))
"""


@dataclass
class Step:
    """What one command took. memory: of the largest of its processes."""

    seconds: float
    memory_mib: float
    more: dict[str, float] = field(default_factory=dict)


class Rehearsal:
    """One number of rows, in a folder of its own."""

    def __init__(self, rows: int, out: Path) -> None:
        self.rows, self.out = rows, out
        self.steps: dict[str, Step] = {}
        self.data, self.store = out / "images/images.csv", out / "store"
        self.cache = {"DISTILL_CACHE": str(out / "cache")}
        weights = out.parent / "teacher.safetensors"
        if not weights.exists():
            torch.manual_seed(0)
            teacher = timm.create_model("test_vit", num_classes=11221)
            save_file(teacher.state_dict(), weights)
        machine = ("--device", "cpu", "--workers", 2, "--input-size", 32, "--batch-size", 64)
        teacher = ("--teacher", "test_vit", "--weights", weights, "--label-set", LABEL_SET)
        self.teacher: tuple[object, ...] = (*teacher, *machine)

    def run(self) -> dict[str, Step]:
        """All steps."""
        self.make_images()
        self.precompute_killed()
        self.write_side_by_side()
        words = ("precompute", *self.teacher, "--data", self.data, "--store", self.store)
        self.command("finish", *words, "--views", VIEWS)
        self.count("finish", self.store)
        self.command("verify", "store", "verify", self.store)
        for part, half in (("subset", "even"), ("subset of the rest", "odd")):
            data = ("--data", self.out / half / "images.csv")
            self.command(
                part, "store", "subset", self.store, *data, "--out", self.out / f"of-{half}"
            )
        halves = (self.out / "of-even", self.out / "of-odd")
        self.command("merge", "store", "merge", *halves, "--out", self.out / "merged")
        self.command("first look", "inspect", self.store)
        self.command("second look", "inspect", self.store)
        self.load()
        self.serve()
        return self.steps

    def make_images(self) -> None:
        """Tables of all, and of the even and odd ones."""
        classes = SemanticHierarchy.bundled(LABEL_SET).synsets
        for name, rows in (
            ("images", range(self.rows)),
            ("even", range(0, self.rows, 2)),
            ("odd", range(1, self.rows, 2)),
        ):
            folder = self.out / name
            folder.mkdir(parents=True)
            picture = np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)
            Image.fromarray(picture).save(folder / "one.jpg")
            with (folder / "images.csv").open("w") as table:
                table.write("path,key,wnid\n")
                table.writelines(
                    f"one.jpg,image{row:08d},{classes[row % len(classes)]}\n" for row in rows
                )

    def precompute_killed(self) -> None:
        """Until its first block is there."""
        words = ["precompute", *self.teacher, "--data", self.data, "--store", self.store]
        with self.timed("start, and the first block"):
            running = started(*words, "--views", VIEWS, "--block-rows", self.block_rows)
            while running.poll() is None and not self.blocks_done():
                time.sleep(0.2)
            running.send_signal(signal.SIGKILL)
            running.wait()

    @property
    def block_rows(self) -> int:
        return 1024 if self.rows < 100_000 else 16384

    def blocks_done(self) -> bool:
        commits = self.store / "commits"
        return commits.is_dir() and any(commits.iterdir())

    def write_side_by_side(self) -> None:
        """The other blocks, by writers of which one is killed and started again."""
        spawn = multiprocessing.get_context("spawn")

        def writer(share: int) -> Any:
            process = spawn.Process(target=write_share, args=(str(self.store), share))
            process.start()
            return process

        with self.timed("write the other blocks") as step:
            writers = [writer(share) for share in range(WRITERS)]
            half = len(LogitStore.open(self.store).pending_blocks()) // 2
            while len(LogitStore.open(self.store).pending_blocks()) > half:
                assert all(process.exitcode in (None, 0) for process in writers)
                time.sleep(0.5)
            os.kill(writers[0].pid, signal.SIGKILL)
            writers[0].join()
            writers[0] = writer(0)
            for process in writers:
                process.join()
                assert process.exitcode == 0
        step.more["views/s"] = self.rows * VIEWS / step.seconds

    def command(self, name: str, *words: object) -> None:
        with self.timed(name) as step:
            running = started(*words)
            step.memory_mib = memory_of(running)
            assert running.returncode == 0, words

    def count(self, name: str, folder: Path) -> None:
        files = [path for path in folder.rglob("*") if path.is_file()]
        total = sum(path.stat().st_size for path in files)
        more = {"files": len(files), "bytes a view": total / self.rows / VIEWS}
        self.steps[name].more |= more

    def load(self) -> None:
        """As a student does; the first time views are decoded into the cache."""
        for name in ("loader, cold", "loader, warm"):
            words = [self.store, self.data, LOADERS, self.out / "cache", BATCHES]
            with self.timed(name) as step:
                running = subprocess.Popen(
                    [sys.executable, "-c", LOAD, *map(str, words)],
                    stdout=subprocess.PIPE,
                    text=True,
                    env={**os.environ, **self.cache},
                )
                step.memory_mib = memory_of(running)
                assert running.returncode == 0
                assert running.stdout
                said = running.stdout.read()
            first, rate = map(float, said.split())
            step.more |= {"first batch, s": first, "images/s": rate}

    def serve(self) -> None:
        """Until it is ready; then samples one by one."""
        ids = LogitStore.open(self.store).sample_ids
        drawn = np.random.default_rng(0).integers(0, self.rows, ASKED)
        log = self.out / "server.log"
        with self.timed("server") as step, log.open("w") as said:
            words = ("serve", *self.teacher[:-2], "--store", self.store, "--port", 0)
            running = started(*words, "--cache", self.out / "cache", stderr=said)
            port, lines = 0, list[dict[str, Any]]()
            while not any(line.get("event") == "ready" for line in lines):
                time.sleep(0.1)
                lines = [json.loads(line) for line in log.read_text().splitlines()]
                port = next((line["port"] for line in lines if "port" in line), port)
            step.more["ready, s"] = time.monotonic() - self._begun
            took = [ask(port, ids[row]) for row in drawn]
            running.send_signal(signal.SIGTERM)
            step.memory_mib = memory_of(running)
        step.more |= {
            "answer, ms": 1000 * float(np.median(took)),
            "slowest answer, ms": 1000 * max(took),
        }

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[Step]:
        self._begun = time.monotonic()
        step = self.steps[name] = Step(0.0, 0.0)
        yield step
        step.seconds = time.monotonic() - self._begun
        print(f"{self.rows}: {name}: {step.seconds:.1f} s", file=sys.stderr, flush=True)


def started(*words: object, stderr: Any = None) -> "subprocess.Popen[str]":
    """A command of ours."""
    return subprocess.Popen(
        [sys.executable, "-m", "distill.cli.main", *(str(word) for word in words)],
        stdout=subprocess.DEVNULL,
        stderr=stderr or subprocess.DEVNULL,
        text=True,
    )


def memory_of(running: "subprocess.Popen[str]") -> float:
    """MiB that it had at most; waits for its end.

    Not wait4's, which begins with the memory of the process that forked.
    """
    most = 0
    while running.poll() is None:
        with contextlib.suppress(OSError):
            found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{running.pid}/status").read_text())
            most = int(found[1]) if found else most
        time.sleep(0.01)
    return most / 1024


def ask(port: int, sample: Sequence[int]) -> float:
    """Seconds for one sample's answer."""
    inputs = [
        {
            "name": "sample_id",
            "datatype": "UINT64",
            "shape": [1, 2],
            "data": [int(half) for half in sample],
        },
        {"name": "view", "datatype": "INT32", "shape": [1], "data": [1]},
    ]
    begun = time.perf_counter()
    url = f"http://127.0.0.1:{port}/v2/models/teacher/infer"
    reply = HTTP.request("POST", url, json={"inputs": inputs})
    taken = time.perf_counter() - begun
    answer = {output["name"]: output["data"] for output in reply.json()["outputs"]}
    assert reply.status == 200
    assert answer["status"] == [0]
    return taken


HTTP = urllib3.PoolManager(timeout=60)


def write_share(location: str, share: int) -> None:
    """Blocks of one of several writers, with answers as peaked as a trained teacher's."""
    torch.set_num_threads(1)
    store = LogitStore.open(location)
    hierarchy = SemanticHierarchy.bundled(LABEL_SET)
    answers, random = peaked(hierarchy, store), np.random.default_rng(0)
    views = [answers.select(random.permutation(len(answers))) for _ in range(VIEWS)]
    for block in store.pending_blocks():
        if block % WRITERS == share:
            rows = store.manifest.rows_of_block(block)
            store.write_block(
                block, [view.select(np.arange(len(rows))) for view in views], {"bad": []}
            )


def peaked(hierarchy: SemanticHierarchy, store: LogitStore) -> TargetRows:
    """One block's answers."""
    manifest = store.manifest
    spec = manifest.encoding
    rows = TargetRows.empty(manifest.block_rows, sum(spec.entries), hierarchy.num_hierarchies)
    generator = torch.Generator().manual_seed(0)
    likely = torch.randn(hierarchy.num_classes, generator=generator) * 1.5
    for begin in range(0, manifest.block_rows, 512):
        logits = torch.randn(512, hierarchy.num_classes, generator=generator) * 2.5 + likely
        rows.put(np.arange(begin, begin + 512), encode(logits, hierarchy, spec).to_rows())
    return rows


def growth(runs: dict[int, dict[str, Step]]) -> list[str]:
    """What grows faster than the rows do, between the two largest."""
    if len(runs) < 2:
        return []
    before, most = sorted(runs)[-2:]
    found = []
    for name, step in runs[most].items():
        earlier = runs[before][name]
        pairs = {"seconds": (step.seconds, earlier.seconds)}
        pairs["memory"] = (step.memory_mib, earlier.memory_mib)
        for figure, (now, then) in pairs.items():
            power = math.log(max(now, 1e-9) / max(then, 1e-9)) / math.log(most / before)
            if power > STEEP:
                found.append(f"{name}: {figure} grow as rows^{power:.2f}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rows", default=",".join(map(str, ROWS)))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    sizes = QUICK_ROWS if options.quick else [int(rows) for rows in options.rows.split(",")]
    runs: dict[int, dict[str, Step]] = {}
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", "/var/tmp")) as scratch:
        for rows in sizes:
            folder = (options.out or Path(scratch)) / str(rows)
            folder.mkdir(parents=True)
            runs[rows] = Rehearsal(rows, folder).run()
    print("# A rehearsal at full scale\n")
    print(
        f"Command: `python benchmarks/rehearsal.py{' --quick' if options.quick else ''}`, ", end=""
    )
    print(f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores, {processor()}\n")
    for what in ("seconds", "memory_mib"):
        print(
            f"\n| {what.replace('_mib', ', MiB')} | "
            + " | ".join(f"{rows:,}" for rows in runs)
            + " |"
        )
        print("| --- |" + " ---: |" * len(runs))
        for name in next(iter(runs.values())):
            cells = (f"{getattr(steps[name], what):,.1f}" for steps in runs.values())
            print(f"| {name} | " + " | ".join(cells) + " |")
    print("\n| of it | " + " | ".join(f"{rows:,}" for rows in runs) + " |")
    print("| --- |" + " ---: |" * len(runs))
    for name, step in next(iter(runs.values())).items():
        for figure in step.more:
            cells = (f"{steps[name].more[figure]:,.1f}" for steps in runs.values())
            print(f"| {name}: {figure} | " + " | ".join(cells) + " |")
    steep = growth(runs)
    print(
        "\n" + ("\n".join(f"- {line}" for line in steep) or "Nothing grows faster than the rows.")
    )
    print(
        json.dumps({rows: {n: vars(s) for n, s in steps.items()} for rows, steps in runs.items()})
    )


if __name__ == "__main__":
    main()
