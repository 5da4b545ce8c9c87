"""The benchmarks at a size for two cores, a report, and what got slower: `make bench`.

    python benchmarks/suite.py [--shared ../shared] [--out bench-out] [--only NAME …] [--record]

Runs each benchmark with --quick. Ratios that it prints, of one run on one machine and the higher
the better, are compared with those last recorded on the same kind of machine (results/suite.json).
What is lower by more than a quarter runs again, and is slower if it still is. --record keeps the
ratios of this run. Those that need ../shared are left out without it.

Writes report.md, report.svg and a log of each benchmark. Ends with 1 where one fails or is slower.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from commands import ratios_in
from whole_path import processor

from distill.charts import require_charts

HERE = Path(__file__).resolve().parent
RECORD = HERE / "results/suite.json"
SLOWER = 0.75
DEMO = "demo"


@dataclass(frozen=True)
class Part:
    """A benchmark. shared: needs the project's data. more: of its words."""

    name: str
    shared: bool = False
    more: tuple[str, ...] = ()


PARTS = (
    Part("losses", more=("--threads", "1")),
    Part("store_read"),
    Part("store_scale"),
    Part("inspector"),
    Part("loader"),
    Part("loader_start"),
    Part("own_loop", more=("--demo", DEMO)),
    Part("precompute", shared=True),
    Part("train_step", shared=True),
    Part("serving", shared=True),
    Part("prepare", shared=True),
    Part("whole_path", shared=True),
    Part("encoding_frontier", shared=True),
    Part("half_way", shared=True),
    Part("mixed_answers", shared=True),
    Part("single_answer", shared=True),
    Part("kd_weight", shared=True),
    Part("kd_gain", shared=True),
    Part("transfer", shared=True),
    Part("kd_report"),
    Part("long_schedules", shared=True),
    Part("detection", shared=True),
    Part("rehearsal"),
    Part("many_workers"),
)


def run(part: Part, shared: Path, out: Path) -> tuple[dict[str, float], str]:
    """Ratios, and what went wrong."""
    words = [sys.executable, HERE / f"{part.name}.py", "--quick", *part.more]
    words += ["--shared", shared] if part.shared else []
    with (out / f"{part.name}.md").open("w") as log, (out / f"{part.name}.err").open("w") as errors:
        done = subprocess.run(
            [str(word) for word in words], cwd=out, stdout=log, stderr=errors, check=False
        )
    if done.returncode:
        said = (out / f"{part.name}.err").read_text().strip().splitlines()
        return {}, said[-1] if said else f"exit code {done.returncode}"
    last = (out / f"{part.name}.md").read_text().strip().splitlines()[-1]
    return dict(ratios_in(json.loads(last))), ""


def slower(now: Mapping[str, float], before: Mapping[str, float]) -> list[str]:
    """Names of ratios that are lower by more than noise."""
    return [name for name in now if name in before and now[name] < SLOWER * before[name]]


def report(
    found: Mapping[str, Mapping[str, float]], recorded: Mapping[str, Any], since: str
) -> Iterator[str]:
    """The table, in Markdown."""
    yield f"Against {since}\n"
    yield "| benchmark | ratio | now | recorded | |"
    yield "| --- | --- | ---: | ---: | --- |"
    for part, ratios in found.items():
        before = recorded.get(part, {})
        worse = slower(ratios, before)
        for name, value in ratios.items():
            was = f"{before[name]:.3g}" if name in before else ""
            mark = "**slower**" if name in worse else ""
            yield f"| {part} | {name} | {value:.3g} | {was} | {mark} |"


def draw(found: Mapping[str, Mapping[str, float]], recorded: Mapping[str, Any], path: Path) -> None:
    """Each ratio as a share of what was recorded."""
    require_charts(f"plot {path}")
    from matplotlib import pyplot

    shares = {
        f"{part}: {name}": value / recorded[part][name]
        for part, ratios in found.items()
        for name, value in ratios.items()
        if recorded.get(part, {}).get(name)
    }
    if not shares:
        return
    height = 1 + 0.25 * len(shares)
    figure, axes = pyplot.subplots(figsize=(9, height), layout="constrained")
    axes.barh(list(shares), list(shares.values()), color="#4c6ef5")
    axes.axvline(1, color="black", linewidth=1)
    axes.axvline(SLOWER, color="#c92a2a", linestyle="--", linewidth=1)
    axes.invert_yaxis()
    axes.set_xlabel("share of the recorded ratio; left of the red line is slower")
    figure.savefig(path)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--out", type=Path, default=Path("bench-out"))
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    out, shared = options.out.resolve(), options.shared.resolve()
    out.mkdir(parents=True, exist_ok=True)
    machine = f"{processor()}, {os.cpu_count()} cores"
    records: dict[str, Any] = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    recorded = records.get(machine, {"date": "", "ratios": {}})
    since = f"{recorded['date']} on {machine}" if recorded["date"] else f"nothing: new is {machine}"
    found: dict[str, dict[str, float]] = {}
    wrong = []
    for part in PARTS:
        if options.only and part.name not in options.only:
            continue
        if part.shared and not shared.is_dir():
            print(f"{part.name}: left out, no {shared}", flush=True)
            continue
        if DEMO in part.more and not (out / DEMO / "store.zarr").is_dir():
            demo = [sys.executable, "-m", "distill.cli.main", "-q", "demo", "--out", DEMO]
            subprocess.run(demo, cwd=out, check=True, stdout=subprocess.DEVNULL)
        begun = time.monotonic()
        before = recorded["ratios"].get(part.name, {})
        ratios, trouble = run(part, shared, out)
        if slower(ratios, before):
            again, trouble = run(part, shared, out)
            ratios = {name: max(ratios[name], again.get(name, 0.0)) for name in ratios}
        found[part.name] = ratios
        wrong += [f"{part.name}: {trouble}"] if trouble else []
        wrong += [f"{part.name}: {name} got slower" for name in slower(ratios, before)]
        print(f"{part.name}: {time.monotonic() - begun:.0f} s {trouble}", flush=True)
    lines = [*report(found, recorded["ratios"], since), "", *(f"- {line}" for line in wrong)]
    draw(found, recorded["ratios"], out / "report.svg")
    text = "\n".join(["# Benchmarks\n", *lines, "\n![Shares of the recorded ratios](report.svg)"])
    (out / "report.md").write_text(text + "\n")
    print("\n".join(lines), flush=True)
    if options.record:
        kept = {**recorded["ratios"], **{part: each for part, each in found.items() if each}}
        records[machine] = {"date": time.strftime("%Y-%m-%d"), "ratios": kept}
        RECORD.write_text(json.dumps(records, indent=1, sort_keys=True) + "\n")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
