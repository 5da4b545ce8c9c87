"""Charts of what other parts measured, as PNG, SVG or PDF by the file's name."""

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from distill.errors import ConfigError, optional
from distill.files import write_atomically

FORMATS = (".png", ".svg", ".pdf")


@runtime_checkable
class ConfidenceFigures(Protocol):
    """What is drawn of one hierarchy; quantiles are 5, 25, 50, 75 and 95%."""

    @property
    def hierarchy(self) -> int: ...
    @property
    def classes(self) -> int: ...
    @property
    def confidence_mean(self) -> float | None: ...
    @property
    def confidence_quantiles(self) -> tuple[float | None, ...]: ...
    @property
    def labelled(self) -> float | None: ...
    @property
    def same_top(self) -> float | None: ...
    @property
    def confidence_change(self) -> float | None: ...


def require_charts(option: str) -> None:
    """Before work that ends in a chart.

    Raises:
        ConfigError: what draws them is not installed. option: that asks for one.
    """
    with optional("charts", option):
        import matplotlib

    matplotlib.use("agg")


def draw_inspection(folder: Path, teacher: str, figures: Sequence[ConfidenceFigures]) -> list[Path]:
    """Confidence, classes and agreement per hierarchy, each as PNG and SVG; what was written.

    A chart of which there are no figures is left out.
    """
    written = []
    for suffix in (".png", ".svg"):
        for name, draw in (
            ("confidence", _draw_confidence),
            ("classes", _draw_classes),
            ("agreement", _draw_agreement),
        ):
            empty = {"agreement": figures[0].same_top, "confidence": figures[0].confidence_mean}
            if empty.get(name, 0) is None:
                continue
            path = folder / f"{name}{suffix}"
            with _drawn(path) as axes:
                draw(axes, figures)
                axes.set_xticks([row.hierarchy for row in figures])
                axes.set_xlabel("hierarchy")
                axes.set_title(f"{axes.get_title()}, teacher {teacher}")
            written.append(path)
    return written


def _draw_confidence(axes: Any, figures: Sequence[ConfidenceFigures]) -> None:
    """Figure 7 of Ridnik et al. 2021 (arXiv 2104.10972), with spread, over the share of tags."""
    boxes = [
        {"whislo": q[0], "q1": q[1], "med": q[2], "q3": q[3], "whishi": q[4], "mean": mean}
        for q, mean in ((row.confidence_quantiles, row.confidence_mean) for row in figures)
    ]
    places = [row.hierarchy for row in figures]
    tagged = [row.labelled for row in figures]
    axes.bar(places, tagged, width=0.8, color="#d9e2ec", label="images with a tag there")
    axes.bxp(boxes, positions=places, showfliers=False, showmeans=True, widths=0.45)
    axes.plot([], [], "^", color="C2", label="mean confidence")
    axes.set_ylim(0, 1.02)
    axes.set_ylabel("confidence P_k, share of images")
    axes.set_title("Confidence per hierarchy")
    axes.legend(loc="lower left", fontsize=8)


def _draw_classes(axes: Any, figures: Sequence[ConfidenceFigures]) -> None:
    """Figure 5 of Ridnik et al. 2021."""
    bars = axes.bar([row.hierarchy for row in figures], [row.classes for row in figures])
    axes.bar_label(bars, fontsize=8)
    axes.set_ylabel("classes")
    axes.set_title("Classes per hierarchy")


def _draw_agreement(axes: Any, figures: Sequence[ConfidenceFigures]) -> None:
    places = [row.hierarchy for row in figures]
    axes.plot(places, [row.same_top for row in figures], "o-", label="same most probable class")
    axes.plot(places, [row.confidence_change for row in figures], "s-", label="mean |ΔP_k|")
    axes.set_ylim(0, 1.02)
    axes.set_ylabel("between successive views of an image")
    axes.set_title("Agreement of views")
    axes.legend(fontsize=8)


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


def draw_study(
    folder: Path,
    points: Mapping[str, tuple[float, float]],
    by_class: Mapping[str, Sequence[float]],
) -> None:
    """Figures 4 and 6 of Beyer et al. 2020 (arXiv 2006.07159).

    points: accuracy by labels and by reassessed ones, by model. by_class: accuracies of classes,
    the most ambiguous first.
    """
    with _drawn(folder / "accuracy.svg") as axes:
        for name, (x, y) in points.items():
            axes.plot([x], [y], "o", label=name)
        axes.set_xlabel("accuracy by labels")
        axes.set_ylabel("by reassessed labels")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    with _drawn(folder / "classes.svg") as axes:
        for name, values in by_class.items():
            style = {"color": "black", "zorder": 3} if name == "oracle" else {"alpha": 0.6}
            axes.plot(range(1, len(values) + 1), values, label=name, **style)
        axes.set_xlabel("classes, the most ambiguous first")
        axes.set_ylabel("accuracy by labels")
        axes.grid(alpha=0.3)
        axes.legend(loc="lower right", fontsize=8)


@contextmanager
def _drawn(path: Path) -> Iterator[Any]:
    """Axes to draw on, written to `path` in the end."""
    if path.suffix.lower() not in FORMATS:
        raise ConfigError(f"plot {path} found, expected a name that ends in {', '.join(FORMATS)}")
    require_charts(f"plot {path}")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    try:
        yield axes
        buffer = io.BytesIO()
        figure.savefig(buffer, format=path.suffix[1:].lower(), dpi=130)
    finally:
        pyplot.close(figure)
    write_atomically(path, buffer.getvalue())
