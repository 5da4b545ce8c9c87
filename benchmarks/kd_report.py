"""Plots of what transfer.py and kd_gain.py found, from the last lines of their results.

    python benchmarks/kd_report.py [--quick] [--results benchmarks/results]

- transfer_hierarchies.svg: accuracy by hierarchy of each pretraining (as figure 6 of Ridnik et al.
  2021, arXiv 2104.10972, has it for one);
- transfer_epochs.svg: accuracy on tasks by epochs of pretraining, with and without a teacher;
- kd_bytes.svg: what a student gains by the bytes of a stored answer;
- kd_teachers.svg: what it gains by its teacher's own accuracy.

--quick only reads them. Ends with one JSON object: how many lines each plot has.
"""

import argparse
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from commands import in_percent
from transfer import EPOCHS

from distill.charts import require_charts

Line = list[tuple[float, float, float]]  # x, mean, deviation


def by_hierarchy(transfer: Mapping[str, Any]) -> dict[str, Line]:
    """Of each pretraining of twelve epochs."""
    lines: dict[str, Line] = {}
    for name, runs in transfer["pretrained"].items():
        if "epochs" not in name and "clamped" not in name:
            levels = zip(*(run["per_hierarchy"] for run in runs), strict=True)
            lines[name] = [
                (float(k), *in_percent(share or 0 for share in s)) for k, s in enumerate(levels)
            ]
    return lines


def by_epochs(transfer: Mapping[str, Any]) -> dict[str, Line]:
    """Of the semantic students, on each task that the curve has."""
    cells = transfer["by epochs"]
    tasks = {cell["task"] for cell in cells}
    known = [c for c in transfer["transfer"] if c["task"] in tasks]
    lines: dict[str, Line] = {}
    for cell in (*cells, *known):
        kind, _, epochs = cell["start"].partition(", ")
        if kind in ("semantic", "semantic + KD") and (not epochs or "epochs" in epochs):
            x = int(re.sub(r"\D", "", epochs) or EPOCHS)
            lines.setdefault(f"{cell['task']}: {kind}", []).append((x, *in_percent(cell["values"])))
    return {name: sorted(line) for name, line in sorted(lines.items())}


def by_bytes(gain: Mapping[str, Any]) -> dict[str, Line]:
    """Of each distance."""
    lines: dict[str, Line] = {}
    for distance in ("kl", "mse", "dist"):
        lines[f"KD, {distance}"] = sorted(
            (size, *in_percent(gain["accuracy"][f"{encoding}, {distance}"]))
            for encoding, size in gain["bytes_per_view"].items()
        )
    return lines


def by_teacher(gain: Mapping[str, Any]) -> dict[str, Line]:
    """One line: a student's accuracy by its teacher's."""
    accuracy = gain["accuracy"]
    almost_exact = next(name for name in accuracy if name.startswith("entries=") and "kl" in name)
    found = {
        name: accuracy.get(f"teacher {name}", accuracy[almost_exact]) for name in gain["teachers"]
    }
    points = sorted((100 * gain["teachers"][name], *in_percent(v)) for name, v in found.items())
    alone = in_percent(accuracy["no teacher"])
    ends = (points[0][0], points[-1][0])
    return {"with the teacher": points, "without one": [(x, *alone) for x in ends]}


def draw(path: Path, lines: Mapping[str, Line], x: str, y: str) -> None:
    """Lines with deviations over the seeds."""
    require_charts(f"plot {path}")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.8), layout="constrained")
    for name, line in lines.items():
        xs, means, deviations = zip(*line, strict=True)
        style = "-" if "KD" in name or "teacher" in name else "--"
        axes.errorbar(xs, means, deviations, label=name, marker=".", capsize=2, linestyle=style)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    figure.savefig(path)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    transfer, gain = (
        json.loads((options.results / f"{name}.md").read_text().strip().splitlines()[-1])
        for name in ("transfer", "kd_gain")
    )
    accuracy = "semantic accuracy on validation images, %"
    plots = {
        "transfer_hierarchies": (by_hierarchy(transfer), "hierarchy", accuracy),
        "transfer_epochs": (by_epochs(transfer), "epochs of pretraining", "top-1 of the task, %"),
        "kd_bytes": (by_bytes(gain), "bytes a view", accuracy),
        "kd_teachers": (by_teacher(gain), "semantic accuracy of the teacher, %", accuracy),
    }
    for name, (lines, x, y) in plots.items():
        if not options.quick:
            draw(options.results / f"{name}.svg", lines, x, y)
    print(json.dumps({name: len(lines) for name, (lines, *_) in plots.items()}))


if __name__ == "__main__":
    main()
