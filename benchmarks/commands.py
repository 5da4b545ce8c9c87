"""Commands of ours as a user types them, for benchmarks of what they make; options of those."""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from whole_path import processor

RECIPE = Path(__file__).resolve().parents[1] / "deploy/configs/tiny-imagenet-h.toml"


def answer_of(*arguments: object) -> Any:
    """What a command says with --json; students train on one core, a teacher runs on all."""
    words = [str(argument) for argument in arguments]
    one_core = {} if words[0] == "precompute" else {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "distill.cli.main", *words, "--json"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **one_core},
    )
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout)


def in_percent(shares: Iterable[float]) -> tuple[float, float]:
    """Over the seeds, in %; the deviation of one is 0."""
    values = [100 * share for share in shares]
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def spread(shares: Iterable[float]) -> str:
    """Mean ± deviation, in %."""
    return "{:.2f} ± {:.2f}".format(*in_percent(shares))


def ratios_in(found: Any, where: str = "") -> Iterator[tuple[str, float]]:
    """Numbers under the key "ratio", by the keys that lead to them."""
    if isinstance(found, Mapping):
        inside = f"{where}, " if where else ""
        for key, value in found.items():
            if key != "ratio":
                yield from ratios_in(value, f"{inside}{key}")
            elif isinstance(value, Mapping):
                yield from ((f"{inside}{name}", float(number)) for name, number in value.items())
            else:
                yield where or "ratio", float(value)
    elif isinstance(found, list):
        for i, each in enumerate(found):
            yield from ratios_in(each, each.get("case", f"{i}") if isinstance(each, dict) else "")


@contextmanager
def benchmark(
    title: str, about: str, *, jobs: int = 2, libraries: Sequence[str] = ("torch", "timm")
) -> Iterator[tuple[argparse.Namespace, Path]]:
    """The options given, and the folder to work in; prints the head of the log.

    about: the benchmark's docstring.
    """
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--out", type=Path, help="keep what is made, and go on there")
    parser.add_argument("--jobs", type=int, default=jobs)
    options = parser.parse_args()
    words = f"{Path(sys.argv[0]).name}{' --quick' if options.quick else ''} --jobs {options.jobs}"
    versions = ", ".join(f"{name} {version(name)}" for name in libraries)
    print(f"# {title}\n")
    print(
        f"Command: `python benchmarks/{words}`, {time.strftime('%Y-%m-%d')}, {processor()}, one "
        f"core a student; Python {platform.python_version()}, {versions}\n",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as scratch:
        out = (options.out or Path(scratch)).resolve() / ("quick" if options.quick else "full")
        out.mkdir(parents=True, exist_ok=True)
        yield options, out
