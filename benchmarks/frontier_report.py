"""Tables and the plot of encoding_frontier.py, which takes a quarter of an hour to run again.

    python benchmarks/frontier_report.py [--quick] [--results benchmarks/results]

Draws encoding_frontier.svg again from the tables in encoding_frontier.md; --quick only reads them.
Ends with one JSON object: how many encodings each table has, and how many are on the frontier.
"""

import argparse
import json
import re
from dataclasses import dataclass
from pathlib import Path

TABLE = re.compile(r"## (.*): payload against angle")
ROW = re.compile(r"\| (.*?): (.*?) \| ([\d.]+)" + r" \| ([\d.]+)°" * 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    points = read_points(options.results / "encoding_frontier.md")
    if not options.quick:
        draw(points, options.results / "encoding_frontier.svg")
    print(json.dumps({name: [len(p), len(frontier(p))] for name, p in points.items()}))


def read_points(path: Path) -> "dict[str, list[Point]]":
    """The tables that `print_points` printed."""
    points: dict[str, list[Point]] = {}
    for line in path.read_text().splitlines():
        if table := TABLE.match(line):
            points[table[1]] = []
        elif points and (row := ROW.match(line)):
            payload, *angles = map(float, row.groups()[2:])
            fresh, near = (angles[0], angles[1]), (angles[2], angles[3])
            points[[*points][-1]].append(Point(row[1], row[2], payload, fresh, near))
    return points


@dataclass(frozen=True)
class Point:
    """One encoding. fresh, near: median and p99 of the angle, in degrees."""

    family: str
    what: str
    payload: float
    fresh: tuple[float, float]
    near: tuple[float, float]


def print_points(name: str, points: list[Point]) -> None:
    best = frontier(points)
    print(f"\n## {name}: payload against angle\n")
    print("| encoding | B per view | fresh median | p99 | near median | p99 | on the frontier |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for p in sorted(points, key=lambda p: p.payload):
        print(
            f"| {p.family}: {p.what} | {p.payload:.1f} | {p.fresh[0]:.2f}° | {p.fresh[1]:.2f}° | "
            f"{p.near[0]:.2f}° | {p.near[1]:.2f}° | {'yes' if p in best else ''} |"
        )


def frontier(points: list[Point]) -> list[Point]:
    """Those that no other beats in bytes and in the worse of both medians."""
    return [
        p
        for p in points
        if not any(
            q.payload < p.payload and max(q.fresh[0], q.near[0]) < max(p.fresh[0], p.near[0])
            for q in points
        )
    ]


def draw(points: dict[str, list[Point]], path: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "distill"
    figure, axes = pyplot.subplots(1, len(points), figsize=(12, 5), constrained_layout=True)
    for axis, (name, found) in zip(axes, points.items(), strict=True):
        for family in dict.fromkeys(p.family for p in found):
            mine = [p for p in found if p.family == family]
            axis.scatter(
                [p.payload for p in mine],
                [max(p.fresh[0], p.near[0]) for p in mine],
                label=family,
                s=18,
            )
        best = sorted(frontier(found), key=lambda p: p.payload)
        axis.plot(
            [p.payload for p in best], [max(p.fresh[0], p.near[0]) for p in best], "k-", lw=0.7
        )
        axis.set(title=name, xlabel="payload, bytes a view", xscale="log", yscale="log")
        axis.set_ylabel("angle of the KD gradient, median of the worse student (°)")
        for numbers in (axis.xaxis, axis.yaxis):
            numbers.set_major_formatter("{x:g}")
            numbers.set_minor_formatter("{x:g}")
        axis.grid(visible=True, which="both", alpha=0.3)
    axes[0].legend(fontsize=8)
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
