"""Charts of what other parts measured, as PNG, SVG or PDF by the file's name."""

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from distill.errors import ConfigError
from distill.files import write_atomically

FORMATS = (".png", ".svg", ".pdf")


def draw_confidence(
    path: Path,
    *,
    classes: Sequence[int],
    quantiles: Sequence[Sequence[float]],
    means: Sequence[float],
    labelled: Sequence[float],
    title: str,
) -> None:
    """Teacher confidence per hierarchy (5, 25, 50, 75, 95% quantiles) over the share of labels.

    Figure 7 of Ridnik et al. 2021 (arXiv 2104.10972), with spread.
    """
    with _drawn(path) as axes:
        boxes = [
            {"whislo": q[0], "q1": q[1], "med": q[2], "q3": q[3], "whishi": q[4], "mean": mean}
            for q, mean in zip(quantiles, means, strict=True)
        ]
        places = list(range(len(classes)))
        axes.bar(places, labelled, width=0.8, color="#d9e2ec", label="images with a label there")
        axes.bxp(boxes, positions=places, showfliers=False, showmeans=True, widths=0.45)
        axes.plot([], [], "^", color="C2", label="mean confidence")
        axes.set_xticks(places, [f"{k}\n{n} classes" for k, n in enumerate(classes)], fontsize=8)
        axes.set_ylim(0, 1.02)
        axes.set_xlabel("hierarchy")
        axes.set_ylabel("confidence P_k, share of images")
        axes.set_title(title)
        axes.legend(loc="lower left", fontsize=8)


def draw_curves(
    path: Path,
    curves: Mapping[str, Sequence[tuple[float, float]]],
    *,
    x: str,
    y: str,
    title: str,
    mark: tuple[float, float, str] | None = None,
) -> None:
    """One line each, through points (x, y), y a share. mark: a point with what it is called.

    Figure 6 of Ridnik et al. 2021 (arXiv 2104.10972): accuracy over epochs by scheme.
    """
    with _drawn(path) as axes:
        for name, points in curves.items():
            axes.plot(*zip(*points, strict=True), marker=".", label=name)
        if mark:
            axes.plot([mark[0]], [mark[1]], "o", color="black", markersize=7, fillstyle="none")
            axes.annotate(mark[2], mark[:2], textcoords="offset points", xytext=(8, -12))
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        axes.set_title(title)
        axes.grid(alpha=0.3)
        axes.legend(loc="lower right", fontsize=8)


@contextmanager
def _drawn(path: Path) -> Iterator[Any]:
    """Axes to draw on, written to `path` in the end."""
    if path.suffix.lower() not in FORMATS:
        raise ConfigError(f"plot {path} found, expected a name that ends in {', '.join(FORMATS)}")
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    try:
        yield axes
        buffer = io.BytesIO()
        figure.savefig(buffer, format=path.suffix[1:].lower(), dpi=130)
    finally:
        pyplot.close(figure)
    write_atomically(path, buffer.getvalue())
